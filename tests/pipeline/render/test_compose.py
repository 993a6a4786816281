import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.engines.base import Computed, Engine
from pipeline.errors import BundleError, OptionError, PlanError, ShapeError
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.compose import composed_looks, look_values
from pipeline.render.look import Look, soft_edge
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source

_spec = importlib.util.spec_from_file_location(
    "engines_conftest", Path(__file__).parents[1] / "engines" / "conftest.py"
)
_engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_engines)
fake_machine, add_plan, openvino = _engines.fake_machine, _engines.add_plan, _engines.openvino

ORANGE, BLACK, WHITE = (load_palette(colour) for colour in ("#ff8000", "#000000", "#ffffff"))


def composing_program(order=("frames", "look", "masks", "views")):
    """masks = frames[..., 2], views as ``compile.program.program.Overlay`` draws them, and the sum of each frame's red."""

    def slice_of(first, end, name):
        return helper.make_node("Slice", ["look", f"at{first}", f"at{end}"], [name])

    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["x", "red"], ["reds"], axis=3),
        helper.make_node("Cast", ["reds"], ["masks"], to=TensorProto.UINT8),
        slice_of(0, 1, "slope"),
        slice_of(1, 2, "intercept"),
        slice_of(2, 3, "alpha"),
        slice_of(3, 6, "colour"),
        helper.make_node("Mul", ["reds", "slope"], ["steep"]),
        helper.make_node("Add", ["steep", "intercept"], ["line"]),
        helper.make_node("Clip", ["line", "zero", "one"], ["edge"]),
        helper.make_node("Mul", ["edge", "alpha"], ["flat_weights"]),
        helper.make_node("Unsqueeze", ["flat_weights", "last"], ["weights"]),
        helper.make_node("Sub", ["colour", "x"], ["towards"]),
        helper.make_node("Mul", ["towards", "weights"], ["step"]),
        helper.make_node("Add", ["x", "step"], ["drawn"]),
        helper.make_node("Round", ["drawn"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["views"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["reds"], ["counted"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["counted", "sides"], ["not_finite"], keepdims=0),
    ]
    numbers = [helper.make_tensor(f"at{at}", TensorProto.INT64, [1], [at]) for at in (0, 1, 2, 3, 6)]
    numbers += [
        helper.make_tensor("red", TensorProto.INT64, [], [2]),
        helper.make_tensor("last", TensorProto.INT64, [1], [3]),
        helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
    ]
    values = {
        "frames": (TensorProto.UINT8, ["N", "H", "W", 3]),
        "look": (TensorProto.FLOAT, [6]),
        "masks": (TensorProto.UINT8, ["N", "H", "W"]),
        "not_finite": (TensorProto.INT32, ["N"]),
        "views": (TensorProto.UINT8, ["N", "H", "W", 3]),
    }
    inputs, outputs = (
        [helper.make_tensor_value_info(name, *values[name]) for name in names] for names in (order[:2], order[2:])
    )
    graph = helper.make_graph(nodes, "composing", inputs, outputs, initializer=numbers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("composing", composing_program(), composes=True)


def host(frames, look):
    renderer = Renderer(look, "binary")
    return np.stack([renderer(image, np.ascontiguousarray(image[..., 2])) for image in frames])


def noise(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def every_pair():
    """Each value of a mask with each of a pixel."""
    frames = np.empty((1, 256, 256, 3), np.uint8)
    frames[..., 2] = np.arange(256)
    frames[0, ..., 0] = frames[0, ..., 1] = np.arange(256)[:, np.newaxis]
    return frames


# --- what an engine is told of a look


@pytest.mark.parametrize("threshold", [0, 1e-9, 0.002, 0.01, 0.05, 0.1, 0.3, 0.5, 0.77, 0.9, 0.95, 0.998, 1 - 1e-9, 1])
def test_the_line_goes_through_all_of_the_soft_edge(threshold):
    slope, intercept, *_ = look_values(Look(threshold=threshold))
    line = np.clip(np.arange(256, dtype=np.float32) * slope + intercept, 0, 1)
    np.testing.assert_allclose(line, soft_edge(threshold), atol=1e-4)


def test_any_threshold():
    for threshold in np.random.default_rng(0).random(200):
        slope, intercept, *_ = look_values(Look(threshold=float(threshold)))
        line = np.clip(np.arange(256, dtype=np.float32) * slope + intercept, 0, 1)
        np.testing.assert_allclose(line, soft_edge(threshold), atol=1e-4)


def test_alpha_and_colour():
    values = look_values(Look(alpha=0.25, palette=ORANGE))
    assert values.dtype == np.float32
    assert values[2:].tolist() == [0.25, 0, 128, 255]


# --- ONNX Runtime


@pytest.fixture
def engine(bundle):
    with open_engine(bundle, "onnxruntime") as engine:
        yield engine


@pytest.mark.parametrize("palette", [ORANGE, BLACK, WHITE])
@pytest.mark.parametrize("threshold", [0, 0.03, 0.5, 0.9, 1])
@pytest.mark.parametrize("alpha", [0, 0.35, 0.5, 1])
def test_every_pixel_is_within_one_of_the_hosts(engine, alpha, threshold, palette):
    look, frames = Look(alpha=alpha, threshold=threshold, palette=palette), every_pair()
    engine.submit(frames, look_values(look))
    masks, views, _ = engine.collect_all()
    np.testing.assert_array_equal(masks, frames[..., 2])
    assert np.abs(views.astype(int) - host(frames, look)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 31, 17), (3, 5, 7), (1, 120, 161)])
def test_any_size_and_number(engine, shape):
    frames = noise(*shape)
    engine.submit(frames, look_values(Look()))
    _, views, _ = engine.collect_all()
    assert views.shape == frames.shape
    assert views.flags.writeable
    assert np.abs(views.astype(int) - host(frames, Look())).max() <= 1


def test_an_empty_mask_leaves_the_frame(engine):
    frames = noise(1, 9, 9)
    frames[..., 2] = 0
    engine.submit(frames, look_values(Look(alpha=1)))
    np.testing.assert_array_equal(engine.collect_all().views, frames)


def test_a_program_that_does_not_compose_though_its_manifest_says_so(make_bundle):
    bundle = make_bundle(composes=True)
    with pytest.raises(
        BundleError, match=r"expected frames, look, masks and views of a program that composes, got f.*, m"
    ):
        open_engine(bundle, "onnxruntime")


def test_a_program_that_composes_though_its_manifest_does_not(make_bundle):
    with pytest.raises(BundleError, match=r"expected one uint8 input and one output, got 2"):
        open_engine(make_bundle(program=composing_program()), "onnxruntime")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])
def test_counts_come_with_and_without_views(request, fake_machine, add_plan, make_bundle, backend):
    if backend == "openvino":
        request.getfixturevalue("openvino")
    program = composing_program(("frames", "look", "masks", "not_finite", "views"))
    bundle = make_bundle("counting", program, composes=True)
    if backend.startswith("tensorrt"):
        fake_machine.install(backend)
        bundle = add_plan(bundle, backend)
    with open_engine(bundle, backend) as engine:
        for number, look in enumerate((look_values(Look()), None) * 2):
            frames = noise(2, 5, 7, number)
            engine.submit(frames, look)
            masks, views, not_finite = engine.collect_all()
            np.testing.assert_array_equal(masks, frames[..., 2])
            assert not_finite.tolist() == frames[..., 2].sum((1, 2)).tolist()
            assert (views is None) is (look is None)
            if look is not None:
                assert np.abs(views.astype(int) - host(frames, Look())).max() <= 1


# --- TensorRT, on a fake GPU


@pytest.fixture
def open_fake(fake_machine, add_plan, bundle):
    """``open_fake("tensorrt")``: an engine for a plan that composes; closed at the end."""
    engines = []

    def open_it(runtime):
        fake_machine.install(runtime)
        engines.append(open_engine(add_plan(bundle, runtime), runtime))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


GIVEN = [
    *[((1, 5, 7), Look(alpha=alpha, threshold=0.3, palette=ORANGE)) for alpha in (0.1, 0.9, 0.5, 1, 0.3)],
    ((1, 5, 7), None),
    ((1, 5, 7), Look()),
    ((1, 5, 7), None),
    ((2, 9, 4), Look(threshold=0)),
    ((2, 9, 4), Look(threshold=1, palette=WHITE)),
    ((1, 2, 2), None),
    ((1, 2, 2), Look(palette=BLACK)),
]


@pytest.mark.parametrize("integrated", [False, True], ids=["desktop", "jetson"])
@pytest.mark.parametrize("schedule", ["late", "others first", "eager"])
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_each_frame_in_flight_has_its_own_look(fake_machine, open_fake, runtime, schedule, integrated):
    fake_machine.gpu.schedule, fake_machine.gpu.integrated = schedule, integrated
    engine, results = open_fake(runtime), []
    assert engine.composes
    assert engine.on_gpu
    for number, (shape, look) in enumerate(GIVEN):
        if number >= engine.in_flight:
            results.append(engine.collect_all())
        engine.submit(noise(*shape, number), None if look is None else look_values(look))
    results += [engine.collect_all() for _ in range(engine.in_flight)]
    for number, ((shape, look), (masks, views, _)) in enumerate(zip(GIVEN, results, strict=True)):
        frames = noise(*shape, number)
        np.testing.assert_array_equal(masks, frames[..., 2])
        assert (views is None) is (look is None)
        if look is not None:
            assert np.abs(views.astype(int) - host(frames, look)).max() <= 1
    engine.close()
    assert fake_machine.held() == {}


def test_a_view_comes_down_only_if_it_was_asked_for(fake_machine, open_fake):
    engine, frames = open_fake("tensorrt"), noise(1, 4, 4)
    np.testing.assert_array_equal(engine(frames), frames[..., 2])
    assert fake_machine.gpu.done.count("download") == 1
    engine.submit(frames, look_values(Look()))
    masks, views, _ = engine.collect_all()
    assert fake_machine.gpu.done.count("download") == 3
    kept = views.copy()
    views[:] = 0
    engine.submit(frames, look_values(Look()))
    np.testing.assert_array_equal(engine.collect_all().views, kept)
    assert not np.shares_memory(masks, views)


def test_layers_are_timed_of_a_plan_that_composes(monkeypatch, open_fake):
    monkeypatch.setattr("pipeline.engines.tensorrt_layers.layer_times", lambda _, context, run, runs: {"red": [0.5]})
    assert open_fake("tensorrt").profile_layers(1) == {"red": [0.5]}


@pytest.mark.parametrize("composes", [True, False])
def test_a_plan_that_is_not_what_its_manifest_says(fake_machine, add_plan, bundle, red_bundle, make_bundle, composes):
    other = (red_bundle if composes else bundle).program_path.read_bytes()
    told = make_bundle("told", other if not composes else composing_program(), composes=composes)
    message = "expected frames, look, masks and views" if composes else "expected one uint8 input and one uint8 output"
    with pytest.raises(PlanError, match=message):
        open_engine(add_plan(told, "tensorrt", program=other), "tensorrt")


# --- the contract of engines


def test_a_look_is_refused_by_an_engine_that_does_not_compose(red_bundle):
    with open_engine(red_bundle, "onnxruntime") as engine:
        assert not engine.composes
        with pytest.raises(RuntimeError, match="does not compose"):
            engine.submit(noise(1, 4, 4), look_values(Look()))
        assert engine(noise(1, 4, 4)).shape == (1, 4, 4)


@pytest.mark.parametrize("look", [np.zeros(5, np.float32), np.zeros(6), np.zeros((1, 6), np.float32)])
def test_a_look_of_another_shape_or_dtype_is_refused(engine, look):
    with pytest.raises(ShapeError, match=r"^look: expected \(6,\) float32, got "):
        engine.submit(noise(1, 4, 4), look)
    assert engine(noise(1, 4, 4)).shape == (1, 4, 4)


def test_without_a_look_there_are_masks_alone(engine):
    engine.submit(noise(1, 4, 4))
    masks, views, _ = engine.collect_all()
    assert views is None
    np.testing.assert_array_equal(masks, noise(1, 4, 4)[..., 2])
    np.testing.assert_array_equal(engine(noise(2, 4, 5)), noise(2, 4, 5)[..., 2])


def test_collect_gives_the_masks_of_a_submission_with_a_look(engine):
    engine.submit(noise(1, 4, 4), look_values(Look()))
    np.testing.assert_array_equal(engine.collect(), noise(1, 4, 4)[..., 2])


# --- manifests


def test_the_manifest_says_whether_it_composes(bundle, red_bundle):
    assert Bundle.read(bundle.folder).manifest.composes
    assert not Bundle.read(red_bundle.folder).manifest.composes
    assert "composes" not in (red_bundle.folder / "manifest.json").read_text()


def test_another_type_is_refused(bundle):
    path = bundle.folder / "manifest.json"
    path.write_text(path.read_text().replace('"composes": true', '"composes": 1'))
    with pytest.raises(BundleError, match="expected true or false for composes"):
        Bundle.read(bundle.folder)


# --- who draws


def stand_in(composes, on_gpu):
    return SimpleNamespace(composes=composes, on_gpu=on_gpu, bundle=SimpleNamespace(folder="nets/u2netp"))


@pytest.mark.parametrize(
    ("choice", "composes", "on_gpu", "steady", "asks"),
    [
        ("auto", True, True, False, True),
        ("auto", True, False, False, False),
        ("auto", False, True, False, False),
        ("auto", True, True, True, False),
        ("host", True, True, False, False),
        ("device", True, True, False, True),
        ("device", True, False, False, True),
        ("device", True, False, True, False),
    ],
)
def test_who_draws(renderer, choice, composes, on_gpu, steady, asks):
    looks = composed_looks(choice, stand_in(composes, on_gpu), renderer, steady=steady)
    assert (looks is not None) == asks


def test_device_with_a_bundle_that_does_not_compose_says_how_to_get_one(renderer):
    message = r"^--compose device: .*, got nets/u2netp: compile one, .*, with python -m compile --compose device$"
    with pytest.raises(OptionError, match=message):
        composed_looks("device", stand_in(False, True), renderer, steady=False)


def test_the_look_is_that_of_the_moment_and_other_modes_are_the_hosts(renderer):
    looks = composed_looks("device", stand_in(True, True), renderer, steady=False)
    renderer.look = Look(alpha=0.25, palette=ORANGE)
    np.testing.assert_array_equal(looks(), look_values(renderer.look))
    for mode in ("side", "mask", "heatmap", "cutout"):
        renderer.look = Look(mode=mode)
        assert looks() is None


# --- the data path


class Pictures(Source):
    def __init__(self, images):
        self.info = SourceInfo("pictures", "pictures", frame_count=len(images))
        self.images = images

    def __iter__(self):
        for index, image in enumerate(self.images):
            yield Frame(image, index, index / 25, "pictures", str(index))

    def close(self):
        pass


class Kept(Sink):
    def __init__(self):
        self.frames = []

    def write(self, frame):
        self.frames.append(frame)

    def close(self):
        pass

    def discard(self):
        pass


class Labelled(Engine):
    """Composes views that tell the look's alpha, in hundredths, in every pixel."""

    takes_looks = True
    on_gpu = True

    def __init__(self, bundle, in_flight, batch):
        super().__init__(bundle)
        self.in_flight, self.batch, self.pending = in_flight, batch, []

    def _submit(self, frames_nhwc):
        self.pending.append((frames_nhwc[..., 2].copy(), None))

    def _submit_with_look(self, frames_nhwc, look):
        self.pending.append((frames_nhwc[..., 2].copy(), np.full_like(frames_nhwc, round(100 * float(look[2])))))

    def _collect(self):
        return Computed(*self.pending.pop(0))

    def _close(self):
        pass


@pytest.mark.parametrize(("in_flight", "batch"), [(1, 1), (3, 1), (2, 2)])
def test_a_frame_is_drawn_once_by_whom_it_was_given_to(bundle, renderer, in_flight, batch):
    sink, drawn = Kept(), []

    def render(image, mask):
        drawn.append(int(image[0, 0, 0]))
        return np.full_like(image, 200)

    given = iter([0.1, 0.2, None, 0.4, 0.5, 0.6, None, 0.8])

    def looks():
        alpha = next(given)
        return None if alpha is None else look_values(Look(alpha=alpha))

    images = [np.full((4, 6, 3), number, np.uint8) for number in range(8 * batch)]
    run(Pictures(images), Labelled(bundle, in_flight, batch), Views(render, looks), [sink])
    expected = [value for value in (10, 20, 200, 40, 50, 60, 200, 80) for _ in range(batch)]
    assert [int(frame.view[0, 0, 0]) for frame in sink.frames] == expected
    assert drawn == [number for number, value in enumerate(expected) if value == 200]
    for number, frame in enumerate(sink.frames):
        assert (frame.mask == number).all()


def test_a_mask_that_was_changed_is_drawn_by_the_host(bundle, renderer):
    def refine(frame):
        if frame.index == 1:
            frame.mask = np.full_like(frame.mask, 255)

    sink, images = Kept(), [np.full((4, 6, 3), number, np.uint8) for number in range(3)]
    engine = Labelled(bundle, 1, 1)
    views = Views(renderer, lambda: look_values(Look(alpha=0.5)), refine=refine)
    run(Pictures(images), engine, views, [sink])
    drawn = [frame.view for frame in sink.frames]
    assert (drawn[0] == 50).all()
    np.testing.assert_array_equal(drawn[1], renderer(images[1], np.full((4, 6), 255, np.uint8)))
    assert (drawn[2] == 50).all()


def test_views_are_drawn_onto_as_the_hosts_are(bundle, renderer, red_images):
    def annotate(frame, _):
        frame.view[0, 0] = 255

    sink, kept = Kept(), [image.copy() for image in red_images]
    with open_engine(bundle, "onnxruntime") as engine:
        looks = composed_looks("device", engine, renderer, steady=False)
        views = Views(lambda *_: pytest.fail("drawn"), looks, annotate=annotate)
        run(Pictures(red_images), engine, views, [sink])
    assert len(sink.frames) == 12
    for frame, image in zip(sink.frames, kept, strict=True):
        np.testing.assert_array_equal(frame.image, image)
        assert (frame.view[0, 0] == 255).all()
        drawn = renderer(image, np.ascontiguousarray(image[..., 2]))
        assert np.abs(frame.view.astype(int) - drawn)[1:].max() <= 1
