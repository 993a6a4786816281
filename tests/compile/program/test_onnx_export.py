# Each network is exported once for all tests of it: an export takes seconds.

import copy
import logging
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from skimage import data
from torch import nn

from compile.networks.checkpoint import load_network
from compile.networks.contract import Contract
from compile.program.onnx_export import export_module, export_program, lower_pooling, without_traces
from compile.program.open_network import open_network
from compile.program.program import FrameProgram
from pipeline.errors import CompileError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FRAMES = [(1, 37, 53), (3, 100, 130), (1, 1, 1), (3, 48, 64), (1, 360, 640)]


class Exported:
    def __init__(self, network, contract, binary=True, **options):
        self.binary = binary
        self.reference = FrameProgram(copy.deepcopy(network), contract).eval()
        self.program = FrameProgram(network, contract, **options)
        self.model = export_program(self.program)
        self.content = self.model.SerializeToString()
        self.session = onnxruntime.InferenceSession(self.content, providers=["CPUExecutionProvider"])

    def masks(self, frames):
        return self.session.run(["masks"], {"frames": frames})[0]

    def expected(self, frames):
        with torch.inference_mode():
            return self.reference(torch.from_numpy(frames))[0].numpy()


KINDS = {
    "unet, transposed": lambda unet, _: Exported(unet(1), Contract("x", (48, 64), **IMAGENET)),
    "unet, bilinear, 19 classes": lambda unet, _: Exported(
        unet(19, bilinear=True), Contract("x", (40, 72)), binary=False
    ),
    "u2net, 2 classes": lambda _, u2net: Exported(
        u2net(2), Contract("x", (64, 32), divide_by="max", **IMAGENET), binary=False
    ),
    "unet, fp16": lambda unet, _: Exported(unet(1), Contract("x", (48, 64), **IMAGENET), half=True),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def exported(request, tiny_unet, tiny_u2net):
    return request.param(tiny_unet, tiny_u2net)


def is_half(exported):
    return exported.program.half_network


def names_of(exported, operation):
    return [node for node in exported.model.graph.node if node.op_type == operation]


@pytest.mark.parametrize("shape", FRAMES, ids=str)
def test_onnx_runtime_gives_what_pytorch_gives(exported, pictures, shape):
    frames = pictures(*shape)
    masks, expected = exported.masks(frames), exported.expected(frames)
    assert (masks.shape, masks.dtype) == (shape, np.uint8)
    if exported.binary:
        assert np.abs(masks.astype(int) - expected).max() <= (6 if is_half(exported) else 1)
    else:
        # Where a pixel lies exactly on the border of two, either is its nearest.
        before = [np.roll(expected, shift, (1, 2)) for shift in ((1, 0), (0, 1), (1, 1))]
        assert np.mean(masks == expected) >= 0.95
        assert np.mean(np.any([masks == either for either in (expected, *before)], axis=0)) >= 0.999


def test_the_masks_show_something(exported, pictures):
    mask = exported.expected(pictures(1, 100, 130))
    values, counts = np.unique(mask, return_counts=True)
    assert len(values) > 1
    assert counts.max() < 0.9 * mask.size


def test_batches_are_as_single_frames(exported, pictures):
    frames = pictures(3, 50, 70)
    together, alone = exported.masks(frames), np.concatenate([exported.masks(frame[None]) for frame in frames])
    assert np.mean(together == alone) >= 0.999


def test_input_and_output(exported):
    graph = exported.model.graph
    (frames,), (masks, not_finite) = graph.input, graph.output
    assert (frames.name, masks.name) == ("frames", "masks")
    assert frames.type.tensor_type.elem_type == masks.type.tensor_type.elem_type == TensorProto.UINT8
    assert [axis.dim_param or axis.dim_value for axis in frames.type.tensor_type.shape.dim] == ["N", "H", "W", 3]
    assert [axis.dim_param or axis.dim_value for axis in masks.type.tensor_type.shape.dim] == ["N", "H", "W"]
    assert (not_finite.name, not_finite.type.tensor_type.elem_type) == ("not_finite", TensorProto.INT32)
    assert [axis.dim_param for axis in not_finite.type.tensor_type.shape.dim] == ["N"]


def test_uint8_stands_at_the_border_alone(exported):
    # TensorRT takes it nowhere else.
    graph = exported.model.graph
    readers = [node for node in graph.node if "frames" in node.input]
    assert {node.op_type for node in readers} <= {"Cast", "Shape"}
    (writer,) = [node for node in graph.node if "masks" in node.output]
    assert writer.op_type == "Cast"
    to_uint8 = [node for node in names_of(exported, "Cast") if node.attribute[0].i == TensorProto.UINT8]
    assert to_uint8 == [writer]


def test_one_file_of_an_opset_that_every_runtime_has(exported):
    assert [(opset.domain, opset.version <= 20) for opset in exported.model.opset_import] == [("", True)]
    assert exported.model.ir_version <= 10
    assert not exported.model.functions
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in exported.model.graph.initializer)


def test_nothing_tells_of_the_machine(exported):
    paths = [str(Path(__file__).parents[3]), str(Path.home()), "site-packages", "dist-packages", ".py", "forward("]
    assert [path for path in paths if path.encode() in exported.content] == []
    assert not exported.model.metadata_props


def test_pooling_rounds_down_and_normalisations_are_folded(exported):
    pools = names_of(exported, "MaxPool")
    assert len(pools) >= 4
    assert all(attribute.i == 0 for pool in pools for attribute in pool.attribute if attribute.name == "ceil_mode")
    assert not names_of(exported, "BatchNormalization")


def test_convolutions_run_in_the_precision_asked_for(exported):
    model = onnx.shape_inference.infer_shapes(exported.model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inside = TensorProto.FLOAT16 if is_half(exported) else TensorProto.FLOAT
    convolutions = names_of(exported, "Conv") + names_of(exported, "ConvTranspose")
    assert {types[node.output[0]] for node in convolutions} == {inside}
    assert {weights[name] for node in convolutions for name in node.input[1:]} == {inside}
    # Resizing frames and masks, scaling and rounding stay in FP32.
    nodes = list(model.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    last = max(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    outside = [
        node for node in (*nodes[:first], *nodes[last + 1 :]) if node.op_type in ("Resize", "Sub", "Div", "Round")
    ]
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert {types[node.output[0]] for node in outside if types.get(node.output[0]) in floats} == {TensorProto.FLOAT}
    if is_half(exported):
        casts = [node.attribute[0].i for node in names_of(exported, "Cast")]
        assert casts.count(TensorProto.FLOAT16) == 1


def test_half_is_half_the_size(exported):
    weights = [tensor for tensor in exported.model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1]
    elements = sum(np.prod(tensor.dims) for tensor in weights)
    assert len(exported.content) < elements * (2 if is_half(exported) else 4) + 150_000


# --- once more: the same bytes, a fixed size


def test_the_same_bytes_again_and_not_a_word(tiny_unet, capfd):
    contents = []
    for _ in range(2):
        program = FrameProgram(tiny_unet(1), Contract("x", (32, 32), **IMAGENET))
        contents.append(export_program(program, (45, 60)).SerializeToString())
    assert contents[0] == contents[1]
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
    # And this one takes frames of one size alone.
    session = onnxruntime.InferenceSession(contents[0], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", 45, 60, 3]
    assert session.get_outputs()[0].shape == ["N", 45, 60]
    (masks,) = session.run(["masks"], {"frames": np.zeros((3, 45, 60, 3), np.uint8)})
    assert masks.shape == (3, 45, 60)


# --- refused


@pytest.mark.parametrize(
    ("size_hw", "fitting"), [((48, 64), "take 64×64"), ((64, 33), "take 64×32"), ((8, 320), "take 32×320")]
)
def test_sizes_that_u2net_would_round_differently_are_refused(tiny_u2net, size_hw, fitting):
    program = FrameProgram(tiny_u2net(), Contract("x", size_hw))
    message = rf"--imgsz: expected multiples of 32 for this network, got {size_hw[0]}×{size_hw[1]}: {fitting}"
    with pytest.raises(CompileError, match=message):
        export_program(program)


def test_sizes_that_unet_cannot_halve_four_times_are_refused(tiny_unet):
    with pytest.raises(CompileError, match="--imgsz: expected at least 16×16 for this network, got 15×64"):
        export_program(FrameProgram(tiny_unet(), Contract("x", (15, 64))))


def test_lowering_the_pooling_changes_nothing_at_multiples_of_32(tiny_u2net):
    network, x = tiny_u2net(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network.logits(x)
        lower_pooling(network, (64, 96))
        assert not any(module.ceil_mode for module in network.modules() if isinstance(module, nn.MaxPool2d))
        assert torch.equal(before, network.logits(x))


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no such thing as a seventh stage\nand more")


def test_a_network_that_cannot_be_exported_says_why_in_one_line(capfd):
    with pytest.raises(
        CompileError, match=r"cannot be exported to ONNX with torch 2.*: no such thing as a sev"
    ) as caught:
        export_module(Broken(), (torch.zeros(2, 3),), (None,), ("x",), ("y",))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_traces_are_removed_from_branches_too():
    def remember(item):
        item.doc_string = "/home/somebody/net.py"
        if hasattr(item, "metadata_props"):
            item.metadata_props.add(key="trace", value="/home/somebody/net.py")
        return item

    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", "y", "inner")]
    inner_node = remember(helper.make_node("Neg", ["x"], ["inner"]))
    branch = remember(helper.make_graph([inner_node], "branch", [], [remember(scalar[2])]))
    node = remember(helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch))
    remember(node.attribute[0])
    yes = remember(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    graph = remember(helper.make_graph([node], "graph", [remember(scalar[0])], [remember(scalar[1])], [yes]))
    model = remember(helper.make_model(graph))
    assert b"somebody" in model.SerializeToString()
    assert b"somebody" not in without_traces(model).SerializeToString()
    onnx.checker.check_model(model)


# --- the published network


@pytest.fixture(scope="module")
def published(published_u2netp):
    return onnxruntime.InferenceSession(published_u2netp, providers=["CPUExecutionProvider"])


@pytest.mark.network
def test_published_u2netp_in_pytorch(published_u2netp, published):
    network = load_network(published_u2netp).model
    x = np.random.default_rng(0).normal(size=(1, 3, 320, 320)).astype(np.float32)
    theirs = published.run(None, {published.get_inputs()[0].name: x})[0]
    with torch.inference_mode():
        ours = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.ptp(theirs) > 0.05


@pytest.mark.network
@pytest.mark.parametrize("name", ["stream", "official"])
def test_published_u2netp_on_photographs(published_u2netp, published, name):
    candidate = open_network(published_u2netp, name)
    program = candidate.export("fp32", None, ()).SerializeToString()
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    for photograph_rgb in (data.astronaut(), data.chelsea()):
        height, width = photograph_rgb.shape[:2]
        (masks,) = session.run(["masks"], {"frames": photograph_rgb[None, :, :, ::-1].copy()})
        # By hand: for "stream" a photograph of more than 480 pixels is brought to 640 first, and four pixels each are averaged.
        x = photograph_rgb.astype(np.float32)
        fine = [640 if side > 480 and name == "stream" else 320 for side in (width, height)]
        x = cv2.resize(cv2.resize(x, fine, interpolation=cv2.INTER_LINEAR), (320, 320), interpolation=cv2.INTER_AREA)
        x = x / (x.max() if name == "official" else 255)
        x = ((x - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)[None].astype(np.float32)
        d = published.run(None, {published.get_inputs()[0].name: x})[0][0, 0]
        if name == "official":
            d = np.floor((d - d.min()) / (d.max() - d.min()) * 255) / 255
        expected = cv2.resize(d, (width, height), interpolation=cv2.INTER_LINEAR) * 255
        assert np.ptp(expected) > 200
        assert np.abs(masks[0] - expected).max() <= 2
