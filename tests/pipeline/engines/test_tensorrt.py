"""The TensorRT engines on a GPU that is none (``fake_gpu``): values, order, graphs, errors, clean-up."""

import sys
import threading
from collections import deque

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError, PlanError, ShapeError

RUNTIMES = ("tensorrt", "tensorrt-rtx")
SCHEDULES = ("late", "others first", "eager")
GRAPH_CALLS = ("execute_async_v3", "cuStreamBeginCapture", "cuGraphLaunch", "cuGraphExecDestroy")


@pytest.fixture
def open_fake(fake_machine, add_plan, red_bundle):
    """``open_fake("tensorrt", program=b"…", version="…", …)``: an engine for a plan with this entry; closed at the end."""
    engines = []

    def open_it(runtime="tensorrt", **entry):
        fake_machine.install(runtime)
        engines.append(open_engine(add_plan(red_bundle, runtime, **entry), runtime))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


def frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def series(*shapes):
    return [frames(*shape, seed) for seed, shape in enumerate(shapes)]


def through(engine, given, in_flight=3):
    """The masks of some frames, of which several are in flight at once."""
    masks, waiting = [], 0
    for one in given:
        if waiting == in_flight:
            masks.append(engine.collect())
            waiting -= 1
        engine.submit(one)
        waiting += 1
    return masks + [engine.collect() for _ in range(waiting)]


def wrong(masks, given):
    """The numbers of the masks that are not the red channel of their frames."""
    assert len(masks) == len(given)
    return [
        number
        for number, (mask, one) in enumerate(zip(masks, given, strict=True))
        if not np.array_equal(mask, one[..., 2])
    ]


def told(caught):
    """An error's message, which is one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal(kind, use):
    """An error's message; the error itself, and what is in its frames, is forgotten."""
    with pytest.raises(kind) as caught:
        use()
    return told(caught)


def graph_calls(machine):
    counted = [machine.gpu.calls.count(name) for name in GRAPH_CALLS]
    machine.gpu.calls.clear()
    return counted


# Values ---------------------------------------------------------------------------------------------------------------

SERIES = {
    "one size": [(1, 5, 7)] * 8,
    "batched": [(3, 5, 7)] * 7,
    "every size new": [(1, 5, 7), (1, 7, 5), (1, 4, 4), (1, 9, 2), (1, 1, 1), (1, 2, 9)],
    "two sizes in turn": [(1, 5, 7), (1, 5, 7), (1, 6, 8), (1, 6, 8), (1, 6, 8)] * 3,
    "growing": [(1, side, side) for side in (2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 8)],
    "shrinking": [(1, side, side) for side in (8, 8, 8, 7, 6, 5, 4, 4, 3, 3, 3, 2)],
    "batches of any size": [(1, 4, 6), (4, 4, 6), (2, 4, 6), (2, 4, 6), (8, 4, 6), (1, 4, 6)],
}


@pytest.mark.parametrize("shapes", SERIES.values(), ids=SERIES)
@pytest.mark.parametrize("integrated", [False, True], ids=["desktop", "jetson"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_masks_are_right_in_any_order_that_cuda_may_choose(
    fake_machine, open_fake, runtime, schedule, integrated, shapes
):
    fake_machine.gpu.schedule, fake_machine.gpu.integrated = schedule, integrated
    engine, given = open_fake(runtime), series(*shapes)
    for in_flight in (1, 2, 3):
        assert wrong(through(engine, given, in_flight), given) == []
    assert "compute" in fake_machine.gpu.done
    assert ("upload" in fake_machine.gpu.done) is ("download" in fake_machine.gpu.done) is not integrated
    engine.close()
    assert fake_machine.held() == {}


def test_frames_may_be_written_over_once_their_masks_are_collected(open_fake):
    engine, image = open_fake(), np.zeros((1, 4, 4, 3), np.uint8)
    for number in range(5):
        image[:] = number
        engine.submit(image)
        assert (engine.collect() == number).all()


def test_memory_is_kept_for_the_largest_frames_so_far(fake_machine, open_fake):
    engine = open_fake()
    through(engine, series(*SERIES["shrinking"]))
    assert fake_machine.held()["DeviceAllocation"] == 2 * engine.in_flight
    allocated = fake_machine.gpu.calls.count("cuMemAlloc")
    through(engine, series(*SERIES["shrinking"]))
    assert fake_machine.gpu.calls.count("cuMemAlloc") == allocated


def test_nothing_is_copied_where_both_sides_share_one_memory(fake_machine, open_fake):
    fake_machine.gpu.integrated = True
    through(open_fake(), series(*SERIES["one size"]))
    copies = {"cuMemAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"}
    assert copies.isdisjoint(fake_machine.gpu.calls)
    assert "cuMemHostGetDevicePointer" in fake_machine.gpu.calls


# What the fake can see: an engine that leaves something out ------------------------------------------------------------


@pytest.mark.parametrize("stream", ["_compute", "_download"])
def test_a_wait_that_is_left_out_is_seen(fake_machine, open_fake, monkeypatch, stream):
    engine, given = open_fake(), series(*[(1, 5, 7)] * 6)
    wait = fake_machine.cuda.Stream.wait_for_event

    def wait_or_not(self, event):
        if self is not getattr(engine, stream):
            wait(self, event)

    monkeypatch.setattr(fake_machine.cuda.Stream, "wait_for_event", wait_or_not)
    assert wrong(through(engine, given), given)


def test_masks_that_are_not_waited_for_are_seen(fake_machine, open_fake, monkeypatch):
    engine, given = open_fake(), series(*[(1, 5, 7)] * 4)
    monkeypatch.setattr(fake_machine.cuda.Event, "synchronize", lambda self: self)
    assert wrong(through(engine, given), given) == [0, 1, 2, 3]


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_a_buffer_that_is_used_again_too_early_is_seen(fake_machine, open_fake, schedule):
    fake_machine.gpu.schedule = schedule
    engine, given = open_fake(), series(*[(1, 5, 7)] * 3)
    engine(given[0])
    slots = list(engine._free)
    engine._slot_for = lambda shape: slots[0]
    assert wrong(through(engine, given), given)
    engine._busy, engine._free = deque(), deque(slots)
    slots.clear()


@pytest.mark.parametrize("left_out", ["wait", "graph"])
def test_work_for_another_shape_is_seen(fake_machine, open_fake, monkeypatch, left_out):
    engine = open_fake()
    through(engine, series((1, 5, 7), (1, 5, 7), (1, 5, 7)), 1)
    if left_out == "graph":
        monkeypatch.setattr(type(engine._free[0]), "drop_graph", lambda self: None)
        given = series((1, 7, 5), (1, 7, 5))
    else:
        monkeypatch.setattr(fake_machine.cuda.Stream, "synchronize", lambda self: None)
        given = series((1, 5, 7), (1, 7, 5))
    with pytest.raises(AssertionError, match="another shape"):
        through(engine, given)
    monkeypatch.undo()
    assert fake_machine.gpu.faults
    fake_machine.gpu.faults.clear()
    fake_machine.gpu.broken = "after a fault the fake is good for nothing"
    fake_machine.gpu.alive.clear()


# Graphs ---------------------------------------------------------------------------------------------------------------


def test_a_graph_is_recorded_on_the_second_run_and_launched_from_then_on(fake_machine, open_fake):
    engine = open_fake()
    counted = []
    for given in series(*[(1, 5, 7)] * 4):
        assert wrong([engine(given)], [given]) == []
        counted.append(graph_calls(fake_machine))
    assert counted == [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    for given in series(*[(1, 7, 5)] * 3):  # the old recording goes, and a new one is made
        assert wrong([engine(given)], [given]) == []
        counted.append(graph_calls(fake_machine))
    assert counted[4:] == [[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0]]
    engine.close()
    assert graph_calls(fake_machine)[3] == 1
    assert fake_machine.held() == {}


def test_each_of_three_buffers_has_its_own_graph(fake_machine, open_fake):
    engine, given = open_fake(), series(*[(1, 5, 7)] * 9)
    assert wrong(through(engine, given), given) == []
    assert graph_calls(fake_machine) == [4, 3, 8, 0]
    assert fake_machine.held()["executable"] == 3
    assert "graph" not in fake_machine.held()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("at", ["begin", "execute", "instantiate"])
def test_a_plan_that_cannot_be_recorded_runs_all_the_same(fake_machine, open_fake, at, schedule):
    fake_machine.gpu.refuse_capture, fake_machine.gpu.schedule = at, schedule
    engine, given = open_fake(), series(*SERIES["two sizes in turn"])
    assert wrong(through(engine, given), given) == []
    executed, begun, launched, _ = graph_calls(fake_machine)
    assert executed == len(given) + (at != "begin")
    assert begun == (at != "begin")
    assert launched == 0
    assert "graph" not in fake_machine.held()


def test_without_cuda_bindings_nothing_is_recorded(fake_machine, open_fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    engine, given = open_fake(), series(*SERIES["one size"])
    assert wrong(through(engine, given), given) == []
    assert graph_calls(fake_machine) == [len(given), 0, 0, 0]


def test_tensorrt_rtx_makes_its_graphs_itself(fake_machine, open_fake):
    engine, given = open_fake("tensorrt-rtx"), series(*SERIES["one size"])
    assert wrong(through(engine, given), given) == []
    assert graph_calls(fake_machine) == [len(given), 0, 0, 0]
    config = engine._context._config
    assert config.cuda_graph_strategy is fake_machine.tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def test_tensorrt_proper_is_given_no_runtime_config_and_keeps_no_cache(open_fake):
    engine = open_fake("tensorrt")
    assert engine._context._config is None
    engine(frames(1, 4, 4))
    engine.close()
    assert [path.suffix for path in (engine.bundle.folder / "engines").iterdir()] == [".plan"]


# Errors ---------------------------------------------------------------------------------------------------------------


def rebuild(engine_or_folder, runtime):
    return rf"rebuild it with: python -m compile --bundle {engine_or_folder} --target {runtime}$"


@pytest.mark.parametrize("allocations", [0, 1])
def test_out_of_memory_is_one_line_and_leaves_nothing_behind(fake_machine, open_fake, allocations):
    engine = open_fake()
    fake_machine.gpu.allocations_left = allocations
    with pytest.raises(BackendUnavailableError, match=r"^Fake GPU: CUDA failed: cuMemAlloc failed: out of memory$"):
        engine(frames(1, 5, 7))
    assert "DeviceAllocation" not in fake_machine.held()
    assert "PagelockedHostAllocation" not in fake_machine.held()
    assert "Event" not in fake_machine.held()
    fake_machine.gpu.allocations_left = None
    given = series((1, 5, 7), (1, 5, 7))
    assert wrong(through(engine, given), given) == []


def test_out_of_memory_on_another_thread_than_the_engines_leaves_nothing_behind(fake_machine, open_fake):
    engine = on_a_thread(open_fake)
    fake_machine.gpu.allocations_left = 1
    with pytest.raises(BackendUnavailableError, match="out of memory"):
        engine(frames(1, 5, 7))


def test_out_of_memory_for_larger_frames_leaves_an_engine_that_goes_on_with_small_ones(fake_machine, open_fake):
    engine, given = open_fake(), series(*[(1, 4, 4)] * 5)
    through(engine, given)
    fake_machine.gpu.allocations_left = 1
    with pytest.raises(BackendUnavailableError, match="out of memory"):
        engine(frames(1, 9, 9))
    fake_machine.gpu.allocations_left = None
    assert wrong(through(engine, given), given) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_plan_that_cannot_be_run_is_refused_and_nothing_was_submitted(fake_machine, open_fake, runtime, schedule):
    fake_machine.gpu.schedule = schedule
    engine = open_fake(runtime)
    engine.submit(frames(1, 4, 4))
    fake_machine.settings.refuse_execute = True
    folder = engine.bundle.folder
    for _ in range(4):
        with pytest.raises(PlanError) as caught:
            engine.submit(frames(1, 4, 4))
    assert told(caught) == (
        f"{folder}/engines/{runtime}-fp32.plan: TensorRT cannot run the plan: "
        f"rebuild it with: python -m compile --bundle {folder} --target {runtime}"
    )
    with pytest.raises(PlanError):
        engine.submit(frames(1, 5, 5))
    with pytest.raises(PlanError):
        engine.submit(frames(1, 6, 6))
    fake_machine.settings.refuse_execute = False
    assert wrong([engine.collect()], [frames(1, 4, 4)]) == []
    given = series((1, 4, 4), (1, 7, 7), (1, 7, 7))
    assert wrong(through(engine, given), given) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("during", ["idle", "submit", "collect"])
def test_a_gpu_that_failed_is_one_line_and_close_returns(fake_machine, open_fake, runtime, during):
    engine = open_fake(runtime)
    through(engine, series(*[(1, 4, 4)] * 4))
    engine.submit(frames(1, 4, 4))
    fake_machine.gpu.broken = "an illegal memory access was encountered"
    if during != "idle":
        use = engine.collect if during == "collect" else lambda: engine.submit(frames(1, 4, 4))
        message = refusal(BackendUnavailableError, use)
        assert message.startswith("Fake GPU: CUDA failed: cu")
        assert message.endswith("failed: an illegal memory access was encountered")
    engine.close()
    engine.close()
    fake_machine.gpu.alive.clear()  # not given back: PyCUDA would complain about each object


def test_a_gpu_that_cannot_even_be_made_current_is_one_line_and_close_returns(fake_machine, open_fake):
    engine = open_fake()
    engine.submit(frames(1, 4, 4))
    fake_machine.gpu.broken, fake_machine.gpu.refuse_push = "unspecified launch failure", True
    with pytest.raises(BackendUnavailableError, match=r"^Fake GPU: CUDA failed: cuCtxPushCurrent failed: unspecified"):
        engine.collect()
    engine.close()
    fake_machine.gpu.alive.clear()  # nothing can be given back


def test_a_plan_that_tensorrt_refuses_is_told_with_its_own_words(fake_machine, open_fake):
    with pytest.raises(PlanError) as caught:
        open_fake("tensorrt", program=b"no plan")
    message = told(caught)
    assert "tensorrt-fp32.plan: TensorRT refuses the plan: Error Code 1: Serialization (" in message
    assert "only a warning" not in message
    assert message.endswith("/planned --target tensorrt")
    assert fake_machine.settings.deserialized == [b"no plan"]
    assert fake_machine.held() == {}


def test_the_words_of_an_earlier_plan_are_not_told_again(fake_machine, red_bundle, add_plan):
    with pytest.raises(PlanError, match="Serialization"):
        open_engine(add_plan(red_bundle, "tensorrt", program=b"no plan", name="first"), "tensorrt")
    fake_machine.settings.refuse_context = True
    with pytest.raises(BackendUnavailableError, match=r"GPU: TensorRT cannot run the plan: out of device memory: end "):
        open_engine(add_plan(red_bundle, "tensorrt", name="second"), "tensorrt")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_context_that_cannot_be_made_leaves_nothing_behind(fake_machine, open_fake, runtime):
    fake_machine.settings.refuse_context = True
    with pytest.raises(BackendUnavailableError, match="cannot run the plan: out of device memory") as caught:
        open_fake(runtime)
    told(caught)
    assert fake_machine.held() == {}


def program(node, inputs, output):
    graph = helper.make_graph([node], "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def value(name, kind=TensorProto.UINT8, channels=(3,)):
    return helper.make_tensor_value_info(name, kind, ["N", "H", "W", *channels])


OTHER_PROGRAMS = {
    "masks are float": (
        helper.make_node("Cast", ["frames"], ["masks"], to=TensorProto.FLOAT),
        [value("frames")],
        value("masks", TensorProto.FLOAT),
    ),
    "frames are float": (
        helper.make_node("Cast", ["frames"], ["masks"], to=TensorProto.UINT8),
        [value("frames", TensorProto.FLOAT)],
        value("masks"),
    ),
    "two inputs": (
        helper.make_node("Max", ["frames", "others"], ["masks"]),
        [value("frames"), value("others")],
        value("masks"),
    ),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("other", OTHER_PROGRAMS.values(), ids=OTHER_PROGRAMS)
def test_a_plan_of_something_else_is_no_frame_program(fake_machine, open_fake, runtime, other):
    node, inputs, output = other
    names = ", ".join([*(one.name for one in inputs), "masks"])
    with pytest.raises(
        PlanError,
        match=rf"\.plan: expected one uint8 input and one uint8 output, got {names}: this is no frame program: rebuild",
    ) as caught:
        open_fake(runtime, program=program(node, inputs, output))
    told(caught)
    assert fake_machine.held() == {}


def test_masks_of_another_shape_are_refused(fake_machine, open_fake):
    node = helper.make_node("Identity", ["frames"], ["masks"])
    engine = open_fake(program=program(node, [value("frames")], value("masks")))
    with pytest.raises(PlanError, match=r"expected masks of \(1, 4, 5\) for these frames, got \(1, 4, 5, 3\): rebuild"):
        engine(frames(1, 4, 5))


def test_frames_that_the_plan_was_not_built_for(fake_machine, open_fake):
    fake_machine.settings.profile = ((1, 4, 4, 3), (1, 8, 8, 3), (2, 16, 32, 3))
    engine = open_fake()
    engine.submit(frames(1, 4, 4))
    for shape in ((1, 3, 8), (3, 8, 8), (1, 17, 32), (1, 8, 33)):
        with pytest.raises(ShapeError) as caught:
            engine.submit(frames(*shape))
        count, height, width = shape
        assert told(caught) == (
            f"frames: expected from 1 of 4×4 to 2 of 16×32 as the plan was built for, got {count} of {height}×{width}: "
            f"rebuild it with: python -m compile --bundle {engine.bundle.folder} --target tensorrt "
            f"--frame {height}x{width} --batch {count}"
        )
    assert wrong([engine.collect()], [frames(1, 4, 4)]) == []
    given = series((2, 16, 32), (1, 4, 4))
    assert wrong(through(engine, given), given) == []


def test_a_plan_for_one_size_names_it_once(fake_machine, open_fake):
    fake_machine.settings.profile = ((1, 4, 6, 3),) * 3
    engine, given = open_fake(), series(*[(1, 4, 6)] * 4)
    assert wrong(through(engine, given), given) == []
    with pytest.raises(ShapeError, match=r"^frames: expected 1 of 4×6 as the plan was built for, got 1 of 6×4: "):
        engine(frames(1, 6, 4))


def test_frames_that_tensorrt_refuses_although_the_profile_takes_them(fake_machine, open_fake):
    engine = open_fake()
    engine(frames(1, 4, 4))
    fake_machine.settings.profile = ((1, 4, 4, 3),) * 3  # not what the manifest says
    with pytest.raises(PlanError, match=r"\.plan: TensorRT refuses frames of \(1, 5, 5, 3\): rebuild it with"):
        engine(frames(1, 5, 5))
    given = series((1, 4, 4), (1, 4, 4))
    assert wrong(through(engine, given), given) == []


# Threads and the end --------------------------------------------------------------------------------------------------


def on_a_thread(work):
    done = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    return done[0]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_made_on_one_thread_used_on_a_second_closed_on_a_third(fake_machine, open_fake, runtime):
    engine, given = on_a_thread(lambda: open_fake(runtime)), series(*SERIES["growing"])
    assert on_a_thread(lambda: wrong(through(engine, given), given)) == []
    assert wrong(through(engine, given), given) == []
    on_a_thread(engine.close)
    assert fake_machine.held() == {}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_closed_with_frames_in_flight(fake_machine, open_fake, schedule, count):
    fake_machine.gpu.schedule = schedule
    engine = open_fake()
    through(engine, series(*[(1, 4, 4)] * 4))
    for given in series(*[(1, 4, 4)] * count):
        engine.submit(given)
    engine.close()
    engine.close()
    assert fake_machine.held() == {}
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.collect()


def test_two_engines_side_by_side(open_fake):
    first, second = open_fake(name="first"), open_fake(name="second")
    given = series(*SERIES["growing"])
    for one in given:
        first.submit(one)
        second.submit(one[:, ::-1])
        assert wrong([first.collect(), second.collect()], [one, one[:, ::-1]]) == []


@pytest.mark.parametrize(
    ("runtime", "description"),
    [("tensorrt", "TensorRT 10.3.0.30, Fake GPU (8.9)"), ("tensorrt-rtx", "TensorRT-RTX 1.7.1.116, Fake GPU (8.9)")],
)
def test_the_description_names_version_and_gpu(open_fake, runtime, description):
    assert open_fake(runtime).description == description


def test_a_version_compatible_plan_may_run_its_own_code_and_no_other_may(fake_machine, open_fake):
    fake_machine.settings.lean_runtime_inside = True
    with pytest.raises(PlanError, match="contains host code"):
        open_fake(name="plain")
    engine = open_fake(name="compatible", version_compatible=True)
    assert wrong([engine(frames(1, 4, 4))], [frames(1, 4, 4)]) == []
    assert fake_machine.settings.runtimes == [(-1, False), (-1, True)]


def test_a_plan_for_a_dla_core_is_loaded_for_it(fake_machine, open_fake):
    open_fake(dla_core=1)
    assert fake_machine.settings.runtimes == [(1, False)]


# TensorRT-RTX's cache of kernels --------------------------------------------------------------------------------------


def cache_path(engine):
    return engine.bundle.folder / "engines" / "tensorrt-rtx-fp32.plan.sm89.cache"


def test_kernels_are_kept_after_the_first_frame_and_at_the_end(open_fake):
    engine = open_fake("tensorrt-rtx")
    assert not cache_path(engine).exists()
    engine(frames(1, 4, 4))
    assert cache_path(engine).read_bytes() == b"cache of 1.7:(1, 4, 4, 3)"
    engine(frames(1, 5, 5))
    assert cache_path(engine).read_bytes() == b"cache of 1.7:(1, 4, 4, 3)"  # not after every frame
    engine.close()
    assert cache_path(engine).read_bytes() == b"cache of 1.7:(1, 4, 4, 3)|(1, 5, 5, 3)"
    assert cache_path(engine).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "content", "kept"), [(0o644, None, True), (0o646, None, False), (0o644, b"x", False)])
def test_kernels_are_taken_from_the_file_unless_anyone_could_have_written_it(
    fake_machine, red_bundle, add_plan, mode, content, kept
):
    fake_machine.install("tensorrt-rtx")
    bundle = add_plan(red_bundle, "tensorrt-rtx")
    with open_engine(bundle, "tensorrt-rtx") as engine:
        engine(frames(1, 4, 4))
    if content is not None:
        cache_path(engine).write_bytes(content)
    cache_path(engine).chmod(mode)
    with open_engine(bundle, "tensorrt-rtx") as engine:
        assert (engine._context._config._cache._kernels == {b"(1, 4, 4, 3)"}) is kept
        assert wrong([engine(frames(1, 5, 5))], [frames(1, 5, 5)]) == []
    assert b"(1, 5, 5, 3)" in cache_path(engine).read_bytes()


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(open_fake, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    engine, given = open_fake("tensorrt-rtx"), series(*SERIES["growing"])
    assert wrong(through(engine, given), given) == []
    engine.close()
    assert not cache_path(engine).exists()


# --- what a recurrent program keeps


def summing_program():
    """Its mask is the sum of the red channels of the frames so far, modulo 256; what it keeps is that sum."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["x", "two"], ["red"], axis=3),
        helper.make_node("Add", ["red", "state/sum"], ["more"]),
        helper.make_node("Mod", ["more", "limit"], ["next/sum"], fmod=1),
        helper.make_node("Cast", ["next/sum"], ["masks"], to=TensorProto.UINT8),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "summing",
        [value("frames", TensorProto.UINT8, [1, 20, 30, 3]), value("state/sum", TensorProto.FLOAT, [1, 20, 30])],
        [value("masks", TensorProto.UINT8, [1, 20, 30]), value("next/sum", TensorProto.FLOAT, [1, 20, 30])],
        initializer=[
            helper.make_tensor("two", TensorProto.INT64, [], [2]),
            helper.make_tensor("limit", TensorProto.FLOAT, [], [256.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


def summed(given):
    return [one[..., 2] for one in np.cumsum([one.astype(int) for one in given], axis=0).astype(np.uint8)]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_source_has_a_state_on_the_device(fake_machine, open_fake, runtime, schedule):
    fake_machine.gpu.schedule = schedule
    engine = open_fake(runtime, program=summing_program())
    assert (engine.keeps_state, engine.batch, engine.in_flight) == (True, 1, 3)
    videos = [[frames(1, 20, 30, seed=10 * source + time) for time in range(6)] for source in range(2)]
    states, masks, order = [engine.new_state(), engine.new_state()], ([], []), deque()
    for time in range(6):
        for source in (0, 1):  # three in flight, of two sources in turn
            if len(order) == engine.in_flight:
                masks[order.popleft()].append(engine.collect())
            engine.submit(videos[source][time], state=states[source])
            order.append(source)
    while order:
        masks[order.popleft()].append(engine.collect())
    for given, got in zip(videos, masks, strict=True):
        np.testing.assert_array_equal(np.stack(got), np.stack(summed(given)))
    assert "cuLaunch" not in fake_machine.gpu.calls
    # Without a state a frame is a first one; a state that nobody has any more is used again, and begins with zeros.
    held = fake_machine.gpu.alive.copy()
    for number in range(5):
        states.clear()
        one = frames(1, 20, 30, seed=100 + number)
        np.testing.assert_array_equal(engine(one), one[..., 2])
    assert fake_machine.gpu.alive == held


def test_a_state_without_its_output_is_no_program(open_fake):
    program = onnx.load_from_string(summing_program())
    del program.graph.output[1]
    with pytest.raises(PlanError, match="expected an input and an output in FP32 of one size for each state"):
        open_fake(program=program.SerializeToString())
