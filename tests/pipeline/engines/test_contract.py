"""What every backend has to pass."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import re
import threading
from importlib import metadata

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compile.plans import tensorrt_build
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines import ENGINES, open_engine
from pipeline.engines.gpu import find_gpu
from pipeline.engines.server_options import ServerOptions
from pipeline.errors import BackendUnavailableError, BundleError, CompileError, OptionError, PlanError, ShapeError

# What TensorRT-RTX 1.7 says on a GPU that it is not made for.
UNSUPPORTED = re.compile(
    r"cannot run on this GPU|does not support this compute capability|[Cc]ompute capability is invalid or not supported"
    r"|Target GPU SM ?\d+ is not supported"
)
ON_SERVERS = {"triton": "raw", "triton with shared memory": "shared"}
ON_OPENVINO = {"openvino": False, "openvino, compiled for each size": True}  # as for its GPUs and NPUs
FAKES = {"tensorrt on a fake GPU": "tensorrt", "tensorrt-rtx on a fake GPU": "tensorrt-rtx"}


def opener(request):
    """``open_here(bundle)`` for the backend of a fixture's parameter; skips what this machine has not."""
    fake, name = request.param in FAKES, FAKES.get(request.param, request.param)
    if request.param in ON_OPENVINO:
        request.getfixturevalue("openvino")
        from pipeline.engines.openvino import OpenVinoEngine

        request.getfixturevalue("monkeypatch").setattr(OpenVinoEngine, "one_size", ON_OPENVINO[request.param])
        name = "openvino"
    elif request.param in ON_SERVERS:
        triton = request.getfixturevalue("triton")
    elif fake:
        request.getfixturevalue("fake_machine").install(name)
        add_plan = request.getfixturevalue("add_plan")
    else:
        tmp_path, monkeypatch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
        monkeypatch.setattr(tensorrt_build, "FRAME_RANGE", ((1, 1), (64, 64), (512, 512)))
    engines = []

    def open_it(bundle):
        try:
            if request.param in ON_SERVERS:
                servers = ServerOptions(f"grpc://{triton.server.address}", ON_SERVERS[request.param])
                engine = open_engine(triton.serve(bundle), "triton", servers=servers)
                engines.append(engine)
                return engine
            if fake:
                bundle = add_plan(bundle, name)
            elif name in BUILT_FROM_PROGRAM:
                bundle = with_real_plan(bundle, name, tmp_path / f"planned-{len(engines)}")
            engine = open_engine(bundle, name)
        except BackendUnavailableError as error:
            if fake or os.environ.get(f"FAIL_WITHOUT_{name.upper().replace('-', '_')}"):
                raise
            pytest.skip(str(error))
        except (CompileError, PlanError) as error:
            if fake or not (UNSUPPORTED.search(str(error)) or name == "torch-tensorrt"):
                raise
            pytest.skip(str(error))  # Torch-TensorRT: its programs are made of networks, which these bundles have not
        engines.append(engine)
        return engine

    yield open_it
    for engine in engines:
        engine.close()


def with_real_plan(bundle, runtime, folder):
    """A copy of a bundle with a plan for this machine's GPU, for the few and small frames of these tests."""
    gpu, manifest = find_gpu(), bundle.manifest
    sms = (gpu.sm,) if runtime == "tensorrt-rtx" else ()
    options = tensorrt_build.PlanOptions(
        runtime, sms, gpu=gpu, frame_size_hw=manifest.frame_size_hw, batch=4, pixels=manifest.pixels
    )
    program = bundle.program_path.read_bytes()
    plan = tensorrt_build.build_plan(program, options)
    entry = plan.entry(manifest.precision)
    files = {PROGRAM_NAME: program, entry.file: plan.content}
    return Bundle.write(folder, dataclasses.replace(manifest, engines=(entry,)), files)


ON_A_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name, kind in ENGINES.items() if kind.gpu]


@pytest.fixture(params=[*ON_A_GPU, "onnxruntime", *ON_OPENVINO, *FAKES, *ON_SERVERS])
def open_here(request):
    """``open_here(bundle)``: an engine of each backend that this machine has, and of fake ones; closed at the end."""
    yield from opener(request)


@pytest.fixture(params=["onnxruntime", *ON_OPENVINO])
def open_program(request):
    """The same for backends that load the bundle's program itself, and so say what is wrong with it."""
    yield from opener(request)


@pytest.fixture
def engine(open_here, red_bundle):
    return open_here(red_bundle)


def frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def program(node, output, *, names=("frames", "masks"), inputs=None, initializer=()):
    """An ONNX program of one node, with (N, H, W, 3) uint8 frames unless ``inputs`` says otherwise."""
    inputs = inputs or [helper.make_tensor_value_info(names[0], TensorProto.UINT8, ["N", "H", "W", 3])]
    graph = helper.make_graph([node], "g", inputs, [output], initializer=list(initializer))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(("count", "height", "width"), [(1, 90, 160), (3, 5, 7), (1, 1, 1), (2, 31, 17)])
def test_masks_have_the_frames_sizes_and_their_values(engine, count, height, width):
    given = frames(count, height, width)
    masks = engine(given)
    assert masks.shape == (count, height, width)
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, given[..., 2])


def test_sizes_may_change_from_call_to_call(engine):
    for height, width in ((4, 6), (6, 4), (1, 9)):
        assert engine(frames(1, height, width)).shape == (1, height, width)


def test_class_numbers_come_unchanged(open_here, class_bundle):
    given = np.zeros((1, 2, 3, 3), np.uint8)
    given[0, :, :, 2] = [[0, 1, 2], [2, 1, 0]]
    np.testing.assert_array_equal(open_here(class_bundle)(given)[0], [[0, 1, 2], [2, 1, 0]])


@pytest.mark.parametrize(("count", "height", "width"), [(1, 90, 160), (3, 6, 8), (1, 2, 2)])
def test_frames_may_be_nv12_where_the_program_takes_it(open_here, nv12_masks_bundle, count, height, width):
    luma = np.random.default_rng(0).integers(16, 236, (count, height, width), np.uint8)
    grey = np.full((count, height // 2, width), 128, np.uint8)
    masks = open_here(nv12_masks_bundle)(np.concatenate((luma, grey), 1))
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, (luma.astype(int) - 16) * 255 // 219)  # rounded down, as FFmpeg does


def with_whole_red(count, height, width, seed):
    """Frames of which ``counting_bundle`` counts others each."""
    given = frames(count, height, width, seed)
    given[..., 2][np.random.default_rng(seed).random((count, height, width)) < 0.4] = 255
    return given


# The second pair is as many bytes, and more counts.
@pytest.mark.parametrize("shapes", [[(1, 90, 160), (3, 5, 7), (1, 1, 1)], [(1, 8, 8), (4, 4, 4)]])
def test_scores_that_are_not_finite_are_counted_frame_by_frame(open_here, counting_bundle, shapes):
    engine, kept = open_here(counting_bundle), []
    assert engine.counts
    for number, shape in enumerate(shapes * 2):
        given = with_whole_red(*shape, number)
        engine.submit(given)
        computed = engine.collect_all()
        np.testing.assert_array_equal(computed.masks_nhw, given[..., 2])
        assert computed.not_finite.dtype == np.int32
        assert computed.views is None
        kept.append((computed.not_finite, (given[..., 2] == 255).sum((1, 2)).tolist()))
    for counted, expected in kept:  # what came belongs to the caller
        assert counted.tolist() == expected
    np.testing.assert_array_equal(engine(given), given[..., 2])


def test_each_submission_has_its_own_counts(open_here, counting_bundle):
    engine = open_here(counting_bundle)
    given = [with_whole_red(1, 6, 9, seed) for seed in range(engine.in_flight)]
    for one in given:
        engine.submit(one)
    for one in given:
        assert engine.collect_all().not_finite.tolist() == [(one[..., 2] == 255).sum()]


def test_what_was_compiled_before_there_were_counts_runs(engine):
    engine.submit(frames(1, 4, 6))
    computed = engine.collect_all()
    assert computed.not_finite is None
    assert not engine.counts
    np.testing.assert_array_equal(computed.masks_nhw, frames(1, 4, 6)[..., 2])


def test_masks_belong_to_the_caller(engine):
    given = frames(1, 8, 8, seed=1)
    masks = engine(given)
    kept = masks.copy()
    assert masks.flags.writeable
    assert not np.shares_memory(masks, given)
    other = engine(frames(1, 8, 8, seed=2))
    np.testing.assert_array_equal(masks, kept)
    masks[:] = 7
    np.testing.assert_array_equal(other, frames(1, 8, 8, seed=2)[..., 2])


def test_frames_are_not_changed_and_may_be_read_only(engine):
    given = frames(2, 8, 8)
    kept = given.copy()
    given.flags.writeable = False
    engine(given)
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("view", [np.s_[:, ::2, ::3], np.s_[:, ::-1], np.s_[..., ::-1], np.s_[:, 1:, 1:]])
def test_frames_need_not_be_contiguous(engine, view):
    given = frames(1, 8, 12)[view]
    np.testing.assert_array_equal(engine(given), given[..., 2])


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (np.zeros((4, 6, 3), np.uint8), r"\(4, 6, 3\) uint8"),
        (np.zeros((1, 4, 6, 1), np.uint8), r"\(1, 4, 6, 1\) uint8"),
        (np.zeros((1, 4, 6, 4), np.uint8), r"\(1, 4, 6, 4\) uint8"),
        (np.zeros((1, 3, 4, 6), np.uint8), r"\(1, 3, 4, 6\) uint8"),
        (np.zeros((1, 4, 6, 3), np.float32), r"\(1, 4, 6, 3\) float32"),
        (np.zeros((1, 4, 6, 3), np.int8), r"\(1, 4, 6, 3\) int8"),
        (np.zeros((0, 4, 6, 3), np.uint8), r"\(0, 4, 6, 3\) uint8"),
        (np.zeros((1, 0, 6, 3), np.uint8), r"\(1, 0, 6, 3\) uint8"),
    ],
)
def test_other_shapes_and_dtypes_are_refused_and_the_engine_goes_on(engine, given, got):
    with pytest.raises(ShapeError, match=rf"^frames: expected \(N, H, W, 3\) uint8, got {got}$"):
        engine(given)
    assert engine(frames(1, 4, 6)).shape == (1, 4, 6)


def test_a_fixed_frame_size_is_refused_with_both_sizes_and_the_option(open_here, make_bundle):
    engine = open_here(make_bundle(frame_size_hw=(4, 6)))
    assert engine(frames(1, 4, 6)).shape == (1, 4, 6)
    message = (
        r"^frames: expected 4×6 \(height × width\), got 6×4: compile with --frame 6x4, or without --frame for any size$"
    )
    with pytest.raises(ShapeError, match=message):
        engine(frames(1, 6, 4))


def test_as_many_submissions_as_in_flight_come_back_in_order(engine):
    given = [frames(1, 4, 6, seed) for seed in range(engine.in_flight)]
    for number in range(engine.in_flight):
        engine.submit(given[number])
    with pytest.raises(RuntimeError, match=f"{engine.in_flight} submissions are in flight already: collect one first"):
        engine.submit(given[0])
    for number in range(engine.in_flight):
        np.testing.assert_array_equal(engine.collect(), given[number][..., 2])


def test_collect_without_submit(engine):
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        engine.collect()
    engine(frames(1, 4, 6))
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        engine.collect()


def test_a_call_does_not_take_the_masks_of_a_submission(engine):
    engine.submit(frames(1, 4, 6))
    with pytest.raises(RuntimeError, match="in flight: collect them before a call"):
        engine(frames(1, 6, 4))
    assert engine.collect().shape == (1, 4, 6)


def test_close_twice_and_no_use_after(open_here, red_bundle):
    with open_here(red_bundle) as engine:
        engine.submit(frames(1, 4, 6))
    engine.close()
    engine.close()
    for use in (lambda: engine.submit(frames(1, 4, 6)), engine.collect):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use()


def test_an_engine_may_be_made_on_one_thread_and_used_on_another(engine):
    given, masks = frames(1, 4, 6), []
    thread = threading.Thread(target=lambda: masks.append(engine(given)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(masks[0], given[..., 2])


def test_description_names_the_backend(engine):
    assert engine.description
    assert "\n" not in engine.description


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40])
def test_a_program_that_is_none_has_a_right_sum_but_is_refused(open_program, make_bundle, content):
    bundle = make_bundle(program=content)
    assert bundle.manifest.files["program.onnx"] == hashlib.sha256(content).hexdigest()
    with pytest.raises(BundleError, match=r"program.onnx: .*compile the bundle again$") as caught:
        open_program(bundle)
    assert "\n" not in str(caught.value)


def test_a_program_that_reads_another_file_is_refused(open_program, make_bundle, tmp_path):
    with contextlib.suppress(metadata.PackageNotFoundError):
        if tuple(map(int, metadata.version("onnxruntime").split(".")[:2])) < (1, 24):
            pytest.skip("ONNX Runtime before 1.24 reads whatever file a program names")
    (tmp_path / "secret").write_bytes(bytes(8))
    outside = helper.make_tensor("red", TensorProto.INT64, [], [2])
    outside.ClearField("int64_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    node = helper.make_node("Gather", ["frames", "red"], ["masks"], axis=3)
    output = helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])
    with pytest.raises(BundleError, match=r"program.onnx"):
        open_program(make_bundle(program=program(node, output, initializer=[outside])))


def test_a_program_with_another_input_is_no_frame_program(open_program, make_bundle):
    values = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["N", 3, "H", "W"])
    output = helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["N", 3, "H", "W"])
    node = helper.make_node("Relu", ["frames"], ["masks"])
    with pytest.raises(BundleError, match=r"program.onnx: expected one uint8 input and one output"):
        open_program(make_bundle(program=program(node, output, inputs=[values])))


def test_a_program_with_other_masks_is_refused_when_they_come(open_program, make_bundle):
    output = helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["N", "H", "W", 3])
    node = helper.make_node("Cast", ["frames"], ["masks"], to=TensorProto.FLOAT)
    engine = open_program(make_bundle(program=program(node, output)))
    with pytest.raises(ShapeError, match=r"^masks of .*: expected \(1, 4, 6\) uint8, got \(1, 4, 6, 3\) float32$"):
        engine(frames(1, 4, 6))


def test_a_program_that_cannot_run_on_the_frames_is_the_bundles_fault(open_program, make_bundle):
    values = helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 2, 2, 3])
    output = helper.make_tensor_value_info("masks", TensorProto.UINT8, [1, 2, 2])
    red = helper.make_tensor("red", TensorProto.INT64, [], [2])
    node = helper.make_node("Gather", ["frames", "red"], ["masks"], axis=3)
    engine = open_program(make_bundle(program=program(node, output, inputs=[values], initializer=[red])))
    assert engine(frames(1, 2, 2)).shape == (1, 2, 2)
    with pytest.raises(
        BundleError, match=r"program.onnx: .*\(1, 4, 6, 3\) uint8.*: compile the bundle again"
    ) as caught:
        engine(frames(1, 4, 6))
    assert "\n" not in str(caught.value)
    assert engine(frames(1, 2, 2)).shape == (1, 2, 2)


def test_a_missing_program_is_the_bundles_fault(open_program, make_bundle):
    bundle = make_bundle()
    bundle.program_path.unlink()
    with pytest.raises(BundleError, match=r"program.onnx"):
        open_program(bundle)


@pytest.mark.parametrize("name", ["gpu", "", "ONNXRUNTIME", "../evil", "pipeline.flow.run"])
def test_an_unknown_backend_names_those_there_are(red_bundle, name):
    with pytest.raises(OptionError, match=rf"^--backend: expected auto or one of {', '.join(ENGINES)}, got '{name}'$"):
        open_engine(red_bundle, name)


def test_auto_takes_one(red_bundle):
    with open_engine(red_bundle) as engine:
        assert engine(frames(1, 4, 6)).shape == (1, 4, 6)


@pytest.mark.parametrize("error", [ImportError("No module named 'onnxruntime'"), OSError("libcudart.so: cannot open")])
def test_a_backend_whose_packages_are_missing_says_what_installs_them(red_bundle, monkeypatch, error):
    def missing(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        BackendUnavailableError, match=rf"^backend 'onnxruntime' cannot be loaded here \({error}\)"
    ) as caught:
        open_engine(red_bundle, "onnxruntime")
    assert str(caught.value).endswith("pip install 'edgemask[cpu]'")
    assert caught.value.__cause__ is error


def test_the_test_program_is_valid_onnx(red_bundle):
    onnx.checker.check_model(onnx.load(red_bundle.program_path))
