"""Frame programs of NV12: the conversion beside FFmpeg's, and every kind of program with it."""

import json
import platform
import re

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compile.__main__ import main
from compile.draft import Draft
from compile.networks.contract import Contract
from compile.plans.tensorrt_build import FRAME_RANGE, PlanOptions, build_plan
from compile.program.compose import with_views
from compile.program.nv12 import Nv12ToBgr, with_nv12
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from compile.proof.verify import Expected, Sample, Sampling, as_taken, open_session, program_masks, take_samples
from compile.timing import fastest
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from tests.area_nv12 import area_nv12


def nv12_of(frames_nhwc):
    return np.stack([to_nv12(image) for image in frames_nhwc])


def bgr_of(frames):
    return np.stack([to_bgr(one) for one in frames])


# --- the conversion


# FFmpeg's converters for other processors round in other ways.
_FFMPEG_DIFFERS = 0 if platform.machine() in ("x86_64", "AMD64") else 3


@pytest.mark.parametrize("size_hw", [(64, 96), (90, 50), (2, 2), (2, 30)])
def test_bgr_is_what_ffmpeg_makes_of_it(pictures, size_hw):
    frames = nv12_of(pictures(3, *size_hw))
    got, expected = Nv12ToBgr()(torch.from_numpy(frames)).numpy(), bgr_of(frames)
    assert (got.shape, got.dtype) == (expected.shape, np.float32)
    assert np.abs(got - expected).max() <= _FFMPEG_DIFFERS


def test_all_values_are_what_ffmpeg_makes_of_them():
    frames = np.random.default_rng(0).integers(0, 256, (3, 768, 512), np.uint8)
    got = Nv12ToBgr()(torch.from_numpy(frames)).numpy()
    assert np.abs(got - bgr_of(frames)).max() <= _FFMPEG_DIFFERS


def test_no_colour_is_far_from_what_was_meant():
    # Luma and chroma of all values, by the formula of ITU-R BT.709 in limited range; up to three products are rounded down.
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (2, 96, 128), np.uint8)
    luma = (frames[:, :64].astype(float) - 16) / 219
    u, v = (((frames[:, 64:, start::2].astype(float) - 128) / 224).repeat(2, 1).repeat(2, 2) for start in (0, 1))
    red, blue = luma + 1.5748 * v, luma + 1.8556 * u
    green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
    expected = np.clip(255 * np.stack((blue, green, red), 3), 0, 255)
    got = Nv12ToBgr()(torch.from_numpy(frames)).numpy()
    assert (got - expected).max() <= 0.05
    assert (got - expected).min() >= -3.05


# --- programs with it


@pytest.fixture(scope="module")
def plain(tiny_unet):
    return export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32)))).SerializeToString()


@pytest.fixture(scope="module")
def converting(plain):
    return with_nv12(plain, None)


def masks_of(program, frames):
    session = open_session(program, "the program")
    (masks,) = session.run(["masks"], {"frames": frames})
    return masks


def assert_near(got, expected):
    assert (got.shape, got.dtype) == (expected.shape, np.uint8)
    assert np.abs(got.astype(int) - expected).mean() < 2
    assert np.ptp(expected) > 100


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size_hw", [(32, 48), (90, 62), (66, 32)])
def test_masks_are_those_of_the_same_frames_as_bgr(plain, converting, pictures, size_hw, count):
    frames = nv12_of(pictures(count, *size_hw))
    assert_near(masks_of(converting, frames), masks_of(plain, bgr_of(frames)))


def test_the_smallest_frames(converting):
    assert masks_of(converting, np.full((2, 3, 2), 90, np.uint8)).shape == (2, 2, 2)


def test_a_fixed_size(tiny_unet, pictures):
    plain = export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32))), (40, 56)).SerializeToString()
    program = with_nv12(plain, (40, 56))
    frames = nv12_of(pictures(2, 40, 56))
    assert_near(masks_of(program, frames), masks_of(plain, bgr_of(frames)))
    (value,) = onnx.load_from_string(program).graph.input
    assert [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim] == ["N", 60, 56]


def test_classes_and_half_precision(tiny_unet, pictures):
    network = tiny_unet(3, bilinear=True)
    plain = export_program(FrameProgram(network, Contract("x", (32, 32)), half=True)).SerializeToString()
    frames = nv12_of(pictures(2, 64, 64))
    got, expected = masks_of(with_nv12(plain, None), frames), masks_of(plain, bgr_of(frames))
    assert (got == expected).mean() > 0.95
    assert len(np.unique(expected)) == 3


def test_views_are_drawn_on_the_same_bgr_which_is_computed_once(plain, pictures):
    program, look = with_nv12(with_views(plain, None), None), Look(alpha=0.8)
    frames = nv12_of(pictures(2, 40, 62))
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    masks, views = session.run(["masks", "views"], {"frames": frames, "look": look_values(look)})
    assert_near(masks, masks_of(plain, bgr_of(frames)))
    renderer = Renderer(look, "binary")
    for image, mask, view in zip(bgr_of(frames), masks, views, strict=True):
        assert np.abs(view.astype(int) - renderer(image, mask)).max() <= 4
    nodes = onnx.load_from_string(program).graph.node
    assert [node.op_type for node in nodes if "frames" in node.input].count("Cast") == 1


def test_names_do_not_meet_and_none_is_a_path(plain):
    model = onnx.load_from_string(with_nv12(with_views(plain, None), None))
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert [value.name for value in model.graph.input] == ["frames", "look"]
    assert [value.name for value in model.graph.output] == ["masks", "not_finite", "views"]
    axes = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["N", "H*3/2", "W"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_a_program_of_another_opset(plain, pictures):
    newer = onnx.version_converter.convert_version(onnx.load_from_string(plain), 21).SerializeToString()
    frames = nv12_of(pictures(1, 32, 48))
    assert_near(masks_of(with_nv12(newer, None), frames), masks_of(newer, bgr_of(frames)))


def test_a_program_that_begins_otherwise_is_refused():
    node = helper.make_node("Gather", ["frames", "red"], ["masks"], axis=3)
    graph = helper.make_graph(
        [node],
        "red",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        initializer=[helper.make_tensor("red", TensorProto.INT64, [], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    message = r"^--pixels nv12: expected a program that begins with a cast from 8 bits, got Gather: leave --pixels out$"
    with pytest.raises(CompileError, match=message):
        with_nv12(model.SerializeToString(), None)


# --- the gate


def test_the_gate_makes_nv12_of_its_frames(plain, converting, pictures):
    frames = pictures(2, 48, 64)
    np.testing.assert_array_equal(as_taken(frames, "bgr"), frames)
    masks, _ = program_masks(converting, "nv12")
    np.testing.assert_array_equal(masks(frames), masks_of(converting, nv12_of(frames)))
    assert_near(masks(frames), program_masks(plain)[0](bgr_of(nv12_of(frames))))


def test_odd_sides_lose_their_last_row_and_column(pictures):
    image = pictures(1, 33, 47)[0]
    truth = np.arange(33 * 47, dtype=np.uint8).reshape(33, 47)

    def samples(image, pixels):
        frames = [Frame(image, 0, 0.0, "test", "a")]
        return take_samples(
            frames, lambda given: Expected(given[..., 2]), "x", Sampling(truths=lambda *_: truth, pixels=pixels)
        )

    (sample,) = samples(image, "nv12")
    np.testing.assert_array_equal(sample.frames_nhwc[0], image[:32, :46])
    # The reference sees what NV12 leaves of the picture.
    np.testing.assert_array_equal(sample.expected_nhw[0], to_bgr(to_nv12(image[:32, :46]))[..., 2])
    np.testing.assert_array_equal(sample.truth_hw, truth[:32, :46])
    (sample,) = samples(image, "bgr")
    assert sample.frames_nhwc.shape == (1, 33, 47, 3)
    message = r"^--verify x: expected frames of 2×2 or more for NV12, got \(33, 1, 3\) uint8$"
    with pytest.raises(CompileError, match=message):
        samples(image[:, :1], "nv12")


# --- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_unet):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(tiny_unet(1).state_dict(), folder / "unet.pth")
    return folder / "unet.pth"


@pytest.fixture
def compiled(weights, tmp_path, pictures, monkeypatch):
    """``compiled(*options)``: exit status, with pictures to verify on that have odd sides and the colours of a video."""
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(bgr_of(nv12_of(pictures(16, 64, 96)))):
        picture = cv2.copyMakeBorder(picture, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
        cv2.imwrite(str(tmp_path / "pictures" / f"{index:02d}.png"), picture)

    def run(*options):
        arguments = ["-w", weights, "-o", tmp_path / "bundle", "--imgsz", "64", "--min-iou", "0.9", "-q"]
        arguments += ["--verify", tmp_path / "pictures", "--verify-count", "4", "--pixels", "nv12", *options]
        return main([str(argument) for argument in arguments])

    return run


def test_a_bundle_of_nv12_that_composes(compiled, tmp_path, pictures):
    assert compiled("--compose", "device", "--precision", "fp16") == 0
    bundle = Bundle.read(tmp_path / "bundle")
    entries = json.loads((bundle.folder / "manifest.json").read_text())
    assert (entries["pixels"], entries["views"]) == ("nv12", "nv12")
    assert bundle.manifest.verification["frames"] == 4
    frames = nv12_of(pictures(2, 48, 64))
    with open_engine(bundle, "onnxruntime") as engine:
        engine.submit(frames, look_values(Look()))
        masks, views, _ = engine.collect_all()
    assert (masks.shape, views.shape) == ((2, 48, 64), frames.shape)
    drawn = [Renderer(Look(), "binary")(image, mask) for image, mask in zip(bgr_of(frames), masks, strict=True)]
    assert np.abs(views.astype(int) - area_nv12(drawn)).max() <= 4


def test_int8_for_cpus(compiled, tmp_path, pictures):
    options = ["--target", "onnxruntime", "--precision", "int8", "--strict", "--calib", tmp_path / "pictures"]
    assert compiled(*options, "--min-iou", "0.8") == 0
    bundle = Bundle.read(tmp_path / "bundle")
    assert (bundle.manifest.pixels, bundle.manifest.precision, bundle.manifest.for_cpu) == ("nv12", "int8", True)
    with open_engine(bundle, "onnxruntime") as engine:
        assert np.ptp(engine(nv12_of(pictures(1, 64, 96)))) > 100


def test_what_is_timed_gets_its_frames_as_it_takes_them(compiled, tmp_path, pictures):
    assert compiled() == 0
    bundle = Bundle.read(tmp_path / "bundle")
    made = Draft(bundle.manifest, {PROGRAM_NAME: bundle.program_path.read_bytes()})
    sample = Sample("a", pictures(1, 48, 64), np.zeros((1, 48, 64), np.uint8))
    assert fastest([made], "onnxruntime", [sample]) == made


def test_bundles_of_bgr_do_not_speak_of_it(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("compile.steps.with_nv12", lambda *_: pytest.fail("converted"))
    assert compiled("--pixels", "bgr") == 0
    assert "pixels" not in json.loads((tmp_path / "bundle" / "manifest.json").read_text())


@pytest.mark.parametrize("frame", [(), ("--frame", "40x56")], ids=["any size", "one size"])
def test_a_network_of_another_family(tmp_path, pictures, frame):
    weight = np.float32([3, -2, 1]).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["scores"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 32, 32])],
        initializer=[onnx.numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "net.onnx"
    )
    (tmp_path / "contract.yaml").write_text(
        "imgsz: [32, 32]\nmean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\nactivation: sigmoid\n"
    )
    arguments = ["-w", tmp_path / "net.onnx", "-o", tmp_path / "bundle", "--contract", tmp_path / "contract.yaml"]
    assert main([str(item) for item in [*arguments, *frame, "--pixels", "nv12", "--min-iou", "0.9", "-q"]]) == 0
    bundle = Bundle.read(tmp_path / "bundle")
    assert (bundle.manifest.weights["family"], bundle.manifest.pixels) == ("foreign", "nv12")
    frames = nv12_of(pictures(1, 40, 56))
    with open_engine(bundle, "onnxruntime") as engine:
        masks = engine(frames)
    bgr = bgr_of(frames)[0].astype(np.float32) / 255
    # The network is one weight per channel of the normalised RGB.
    scores = cv2.resize(bgr, (32, 32), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    expected = 1 / (1 + np.exp(-((scores - 0.5) / 0.2 @ weight.reshape(3))))
    shrunk = cv2.resize(masks[0].astype(np.float32) / 255, (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(shrunk - expected).mean() < 0.1


# --- TensorRT


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("frame_size_hw", [None, (40, 56)], ids=["any size", "one size"])
def test_one_that_composes_becomes_a_plan(tiny_unet, frame_size_hw):
    network = FrameProgram(tiny_unet(1), Contract("x", (32, 32)), half=True)
    program = export_program(network, frame_size_hw).SerializeToString()
    program = with_nv12(with_views(program, frame_size_hw), frame_size_hw)
    plan = build_plan(program, PlanOptions("tensorrt-rtx", (89,), frame_size_hw=frame_size_hw, batch=2, pixels="nv12"))
    assert len(plan.content) > 10_000
    sizes = [frame_size_hw] * 3 if frame_size_hw else [(2, 2), *FRAME_RANGE[1:]]
    assert plan.entry("fp16").profile == tuple(
        (count, height * 3 // 2, width) for count, (height, width) in zip((1, 2, 2), sizes, strict=True)
    )


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bundle_that_is_there_stays_one_of_nv12(compiled, tmp_path, capsys):
    assert compiled() == 0
    extend = ["--bundle", str(tmp_path / "bundle"), "--target", "tensorrt-rtx", "--sm", "89", "-q"]
    assert main([*extend, "--frame", "721x1280"]) == 2
    assert "--frame: expected even sides for frames of NV12, got 721x1280" in capsys.readouterr().err
    assert main(extend) == 0
    manifest = Bundle.read(tmp_path / "bundle").manifest
    assert manifest.pixels == "nv12"
    assert [entry.profile[1] for entry in manifest.engines] == [(1, 1080, 1280)]
    assert re.fullmatch(r"[0-9a-f]{64}", manifest.files[PROGRAM_NAME])
