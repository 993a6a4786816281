import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compile.__main__ import main
from compile.networks.contract import Contract
from compile.plans.tensorrt_build import PlanOptions, build_plan
from compile.program.compose import with_views
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from compile.proof.verify import program_masks
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.errors import CompileError
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette

LOOKS = [Look(), Look(alpha=0.8, threshold=0.3, palette=load_palette("#ff8000"))]


@pytest.fixture(scope="module")
def plain(tiny_unet):
    return export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32)))).SerializeToString()


@pytest.fixture(scope="module")
def composing(plain):
    return with_views(plain, None)


def run(program, frames, look):
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return session.run(["masks", "views"], {"frames": frames, "look": look_values(look)})


def assert_drawn(frames, masks, views, look):
    renderer = Renderer(look, "binary")
    for image, mask, view in zip(frames, masks, views, strict=True):
        assert view.dtype == np.uint8
        assert np.abs(view.astype(int) - renderer(image, mask)).max() <= 1


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size_hw", [(33, 47), (90, 61), (1, 1)])
def test_views_are_what_the_host_draws_and_masks_what_they_were(plain, composing, pictures, size_hw, look):
    frames = pictures(2, *size_hw)
    masks, views = run(composing, frames, look)
    np.testing.assert_array_equal(masks, program_masks(plain)[0](frames))
    assert_drawn(frames, masks, views, look)
    if size_hw != (1, 1):
        assert masks.min() < 64
        assert masks.max() > 192
        assert (views != frames).any()


def test_the_gate_looks_at_masks_alone(plain, composing, pictures):
    frames = pictures(1, 40, 50)
    masks, _ = program_masks(composing)
    np.testing.assert_array_equal(masks(frames), program_masks(plain)[0](frames))


def test_no_name_meets_another_and_none_is_a_path(composing):
    model = onnx.load_from_string(composing)
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert [value.name for value in model.graph.input] == ["frames", "look"]
    assert [value.name for value in model.graph.output] == ["masks", "not_finite", "views"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_a_program_of_another_opset(pictures):
    # INT8 needs a newer one than the overlay is exported at.
    model = onnx.version_converter.convert_version(onnx.load_from_string(red(cast=True)), 21)
    frames = pictures(1, 8, 9)
    masks, views = run(with_views(model.SerializeToString(), None), frames, LOOKS[0])
    np.testing.assert_array_equal(masks, frames[..., 2])
    assert_drawn(frames, masks, views, LOOKS[0])


def test_a_program_that_ends_otherwise_is_refused():
    with pytest.raises(
        CompileError, match=r"^--compose device: expected a program that ends in a cast to 8 bits, got G"
    ):
        with_views(red(cast=False), None)


def red(cast):
    axes = ["N", "H", "W"]
    nodes = [helper.make_node("Gather", ["frames", "red"], ["masks"], axis=3)]
    if cast:
        nodes = [
            helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["numbers", "red"], ["reds"], axis=3),
            helper.make_node("Cast", ["reds"], ["masks"], to=TensorProto.UINT8),
        ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [*axes, 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, axes)],
        initializer=[helper.make_tensor("red", TensorProto.INT64, [], [2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


# --- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_unet):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(tiny_unet(1).state_dict(), folder / "unet.pth")
    torch.save(tiny_unet(3).state_dict(), folder / "roads.pth")
    return folder


def compiled(weights, folder, *options, name="unet.pth"):
    arguments = ["-w", weights / name, "-o", folder, "--imgsz", "32", "--min-iou", "0.9", "-q", *options]
    return main([str(argument) for argument in arguments])


def test_a_bundle_that_composes(weights, tmp_path, pictures):
    assert compiled(weights, tmp_path / "bundle", "--compose", "device", "--precision", "fp16") == 0
    bundle = Bundle.read(tmp_path / "bundle")
    assert bundle.manifest.composes
    assert json.loads((bundle.folder / "manifest.json").read_text())["composes"] is True
    frames = pictures(1, 48, 64)
    with open_engine(bundle, "onnxruntime") as engine:
        engine.submit(frames, look_values(LOOKS[1]))
        masks, views, _ = engine.collect_all()
    assert_drawn(frames, masks, views, LOOKS[1])


@pytest.fixture
def foreign(tmp_path):
    """A network of another family: a convolution, of one size."""
    weight = np.float32([3, -2, 1]).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["scores"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 32, 32])],
        initializer=[onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "contract.yaml").write_text(
        "imgsz: [32, 32]\nmean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\nactivation: sigmoid\n"
    )
    return tmp_path


def compile_foreign(folder, *options):
    arguments = ["-w", folder / "net.onnx", "-o", folder / "bundle", "--contract", folder / "contract.yaml", "-q"]
    return main([str(argument) for argument in [*arguments, *options]])


def test_a_network_of_another_family_and_one_size_of_frames(foreign, pictures):
    assert compile_foreign(foreign, "--compose", "device", "--frame", "40x56") == 0
    bundle = Bundle.read(foreign / "bundle")
    assert (bundle.manifest.weights["family"], bundle.manifest.composes) == ("foreign", True)
    frames = pictures(1, 40, 56)
    masks, views = run(bundle.program_path.read_bytes(), frames, LOOKS[0])
    assert_drawn(frames, masks, views, LOOKS[0])
    assert (views != frames).any()


def test_without_it_nothing_is_changed(foreign, monkeypatch):
    monkeypatch.setattr("compile.steps.with_views", lambda *_: pytest.fail("composed"))
    assert compile_foreign(foreign) == 0
    assert not Bundle.read(foreign / "bundle").manifest.composes
    assert "compose" not in (foreign / "bundle" / "manifest.json").read_text()
    model = onnx.load(foreign / "bundle" / PROGRAM_NAME)
    assert (len(model.graph.input), len(model.graph.output)) == (1, 2)


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (["--compose", "device"], "roads.pth", "--compose device: expected a network of one class, got 3: leave"),
        (
            ["--compose", "device", "--target", "torch-tensorrt"],
            "unet.pth",
            "--compose device: expected another --target, got torch-tensorrt",
        ),
        (["--compose", "gpu"], "unet.pth", "--compose: invalid choice: 'gpu'"),
    ],
)
def test_what_cannot_compose_is_refused(weights, tmp_path, capsys, options, name, message):
    assert compiled(weights, tmp_path / "bundle", *options, name=name) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", said)
    assert message in said
    assert not (tmp_path / "bundle").exists()


# --- TensorRT


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plan_that_composes(foreign, composing, capsys):
    plan = build_plan(composing, PlanOptions("tensorrt-rtx", (89,)))
    assert len(plan.content) > 10_000
    # And through the command, for a bundle that is there: it stays one that composes.
    assert compile_foreign(foreign, "--compose", "device") == 0
    extend = ["--bundle", str(foreign / "bundle"), "--target", "tensorrt-rtx", "--sm", "89", "-q"]
    assert main([*extend, "--compose", "device"]) == 2
    assert "--bundle: expected no --compose beside it" in capsys.readouterr().err
    assert main(extend) == 0
    manifest = Bundle.read(foreign / "bundle").manifest
    assert manifest.composes
    assert [entry.sms for entry in manifest.engines] == [(89,)]
