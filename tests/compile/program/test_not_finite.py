"""Scores that are NaN or infinite are counted, one by one, in every kind of program."""

import copy
import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from calibration.int8.ranges import METHODS
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from compile.networks.contract import Contract
from compile.plans.scales import with_float_scales
from compile.plans.tensorrt_build import PlanOptions, build_plan
from compile.program.compose import with_views
from compile.program.cpu_int8 import quantise
from compile.program.foreign import wrap
from compile.program.nv12 import with_nv12
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram, FrameToInput, ScoresToMask
from compile.proof.verify import program_masks
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.engines.tensorrt_library import load_tensorrt_rtx, log_of
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame
from pipeline.render.compose import look_values
from pipeline.render.look import Look

SIZE_HW = (32, 48)
CONTRACT = Contract("x", SIZE_HW, channels="bgr")


class Breaks(nn.Module):
    """One class: NaN where red is below a half, infinite where blue is 0. More classes: NaN in the first, infinite in the second."""

    def __init__(self, classes=1):
        super().__init__()
        self.classes = classes

    def logits(self, x):
        red, blue = torch.log(x[:, 2:] - 0.5), 1 / x[:, :1]
        if self.classes == 1:
            return red + blue
        return torch.cat([red, blue, *[x[:, 1:2]] * (self.classes - 2)], 1)


def counts(pixels, classes=1):
    """What ``Breaks`` gives, from pixels as large as its input."""
    nan, infinite = pixels[..., 2] < 128, pixels[..., 0] == 0
    return ((nan | infinite) if classes == 1 else nan + infinite.astype(int)).sum((1, 2))


def pixels(count=3):
    """(N, 32, 48, 3): the first frame breaks nothing, the last one each score that it can."""
    made = np.random.default_rng(0).integers(0, 256, (count, *SIZE_HW, 3), np.uint8)
    made[0] = np.maximum(made[0], 128)
    made[1, ::3, ::2, 0] = 0
    made[-1] = 0
    return made


def enlarged(made, times):
    """Larger frames that are averaged to the same pixels."""
    return made.repeat(times, 1).repeat(times, 2)


def run(program, frames, **more):
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    given = dict(zip(names, session.run(None, {"frames": frames, **more}), strict=True))
    assert names[0] == "masks"
    assert given["not_finite"].dtype == np.int32
    return given


def exported(network, contract=CONTRACT, frame_size_hw=None, **options):
    return export_program(FrameProgram(network, contract, **options), frame_size_hw).SerializeToString()


KINDS = {
    "binary": (1, {}, {}),
    "official": (1, {"stretch": True}, {}),
    "classes": (4, {}, {}),
    "scores": (4, {"upsample": "scores"}, {}),
    "fp16": (1, {}, {"half": True}),
    "classes in fp16": (3, {}, {"half": True}),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def kind(request):
    classes, changed, options = request.param
    return classes, exported(Breaks(classes), Contract("x", SIZE_HW, channels="bgr", **changed), **options)


@pytest.mark.parametrize("times", [1, 3])
def test_each_frames_scores_are_counted(kind, times):
    classes, program = kind
    made = pixels()
    given = run(program, enlarged(made, times))
    assert given["not_finite"].tolist() == counts(made, classes).tolist()
    assert given["not_finite"][0] == 0
    assert given["not_finite"][-1] == made[0, ..., 0].size * min(classes, 2)
    assert (given["masks"].shape, given["masks"].dtype) == (enlarged(made, times).shape[:3], np.uint8)


def test_a_frame_that_breaks_does_not_change_another_ones_mask(kind):
    _, program = kind
    made = pixels()
    together, alone = run(program, made)["masks"][0], run(program, made[:1])["masks"][0]
    np.testing.assert_array_equal(together, alone)


def test_frames_of_one_size():
    program = exported(Breaks(), frame_size_hw=(64, 96))
    made = pixels(5)
    assert run(program, enlarged(made, 2))["not_finite"].tolist() == counts(made).tolist()


@pytest.mark.parametrize("classes", [1, 3])
def test_the_program_in_pytorch_counts_too(classes):
    made = pixels()
    with torch.inference_mode():
        masks, not_finite = FrameProgram(Breaks(classes), CONTRACT)(torch.from_numpy(made))
    assert not_finite.tolist() == counts(made, classes).tolist()
    assert (masks.dtype, not_finite.dtype) == (torch.uint8, torch.int32)


def test_one_weight_is_enough(tiny_unet):
    network = tiny_unet(3)
    with torch.no_grad():
        network.outc.conv.bias[1] = -torch.inf
    given = run(exported(network), np.zeros((2, 5, 7, 3), np.uint8))
    assert given["not_finite"].tolist() == [SIZE_HW[0] * SIZE_HW[1]] * 2


def test_the_largest_numbers_are_finite():
    largest = torch.finfo(torch.float32).max
    scores = torch.tensor([largest, -largest, 1e-45, 0.0, torch.inf, -torch.inf, torch.nan]).view(1, 1, 1, 7)
    assert ScoresToMask(CONTRACT)(scores, torch.zeros((1, 2, 2, 3)))[1].tolist() == [3]
    assert ScoresToMask(CONTRACT)(torch.full((1, 1, 1, 2), 65504.0).half(), torch.zeros((1, 2, 2, 3)))[1].tolist() == [
        0
    ]


def test_more_scores_than_fp32_can_count():
    scores = torch.full((1, 1, 4097, 4097), torch.nan)
    assert ScoresToMask(CONTRACT)(scores, torch.zeros((1, 2, 2, 3)))[1].tolist() == [4097 * 4097]


# --- programs that are joined of parts


@pytest.fixture(scope="module")
def plain():
    return exported(Breaks())


def grey(frames_hw):
    """NV12 without colour, of luma 16 (black), 60, 200 and 235, and the BGR that it is."""
    luma = np.random.default_rng(1).choice(np.array([16, 60, 200, 235], np.uint8), (2, *frames_hw))
    luma[0] = np.maximum(luma[0], 200)
    bgr = np.round((luma.astype(float) - 16) * 255 / 219).astype(np.uint8)[..., None].repeat(3, -1)
    return np.concatenate([luma, np.full((2, frames_hw[0] // 2, frames_hw[1]), 128, np.uint8)], 1), bgr


@pytest.mark.parametrize("frame_size_hw", [None, SIZE_HW])
def test_programs_of_nv12(frame_size_hw):
    program = with_nv12(exported(Breaks(), frame_size_hw=frame_size_hw), frame_size_hw)
    nv12, bgr = grey(SIZE_HW)
    assert counts(bgr)[1] > counts(bgr)[0] == 0
    assert run(program, nv12)["not_finite"].tolist() == counts(bgr).tolist()


def test_programs_that_compose(plain):
    made, look = pixels(), look_values(Look())
    given = run(with_views(plain, None), made, look=look)
    assert list(given) == ["masks", "not_finite", "views"]
    assert given["not_finite"].tolist() == counts(made).tolist()
    nv12, bgr = grey(SIZE_HW)
    given = run(with_nv12(with_views(plain, None), None), nv12, look=look)
    assert given["not_finite"].tolist() == counts(bgr).tolist()


def foreign_network(classes, *, dtype=TensorProto.FLOAT, layout="nchw", stride=1):
    """Scores log(a - 0.5), for which each class takes another channel a of the picture."""
    weight = np.zeros((classes, 3, 1, 1), helper.tensor_dtype_to_np_dtype(dtype))
    weight[np.arange(classes), (2 - np.arange(classes)) % 3] = 1
    nodes = [
        helper.make_node("Conv", ["nchw", "weight"], ["seen"], strides=[stride, stride]),
        helper.make_node("Sub", ["seen", "half"], ["above"]),
        helper.make_node("Log", ["above"], ["scores"]),
    ]
    shapes = [["n", 3, "h", "w"], ["n", classes, "p", "q"]]
    if layout == "nhwc":
        nodes[2].output[0] = "logs"
        nodes.insert(0, helper.make_node("Transpose", ["picture"], ["nchw"], perm=[0, 3, 1, 2]))
        nodes.append(helper.make_node("Transpose", ["logs"], ["scores"], perm=[0, 2, 3, 1]))
        shapes = [["n", "h", "w", 3], ["n", "p", "q", classes]]
    else:
        nodes[0].input[0] = "picture"
    values = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in zip(("picture", "scores"), shapes, strict=True)
    ]
    half = np.array(0.5, weight.dtype)
    weights = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(half, "half")]
    graph = helper.make_graph(nodes, "foreign", values[:1], values[1:], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


FOREIGN = {
    "binary": (1, {}, None),
    "half": (1, {"dtype": TensorProto.FLOAT16}, None),
    "channels last": (3, {"layout": "nhwc"}, 2),
    "fewer scores than pixels": (2, {"stride": 2}, None),
    "fewer scores, frames of one size": (2, {"stride": 2}, 2),
}


@pytest.mark.parametrize(("classes", "options", "times"), FOREIGN.values(), ids=FOREIGN)
def test_networks_of_another_family(classes, options, times):
    contract = Contract("x", SIZE_HW, channels="bgr", layout=options.get("layout", "nchw"))
    fixed = None if times is None else (SIZE_HW[0] * times, SIZE_HW[1] * times)
    program = wrap(foreign_network(classes, **options), contract, fixed).SerializeToString()
    made, stride = pixels(), options.get("stride", 1)
    channels = made[:, ::stride, ::stride, [2, 1, 0][:classes]]
    given = run(program, enlarged(made, times or 1))
    assert given["not_finite"].tolist() == (channels < 128).sum((1, 2, 3)).tolist()
    assert given["masks"].shape == enlarged(made, times or 1).shape[:3]


@pytest.fixture(scope="module")
def broken_int8(tiny_unet, pictures):
    """A network, how its layers are INT8 but for the first and the last one, and what makes that last one give NaN."""
    network = tiny_unet(1)
    search = Int8Search(network, SIZE_HW)
    before, examples = FrameToInput(CONTRACT).eval(), []
    for frame in pictures(4, *SIZE_HW):
        x = before(torch.from_numpy(frame[None]))
        search.observe(lambda x=x: examples.append(Example(x, search.network.logits(x))))
    recipe = search.find(examples, "mse", goal_iou=0.0)

    def broken(of):
        with torch.no_grad():
            of.outc.conv.bias[:] = torch.nan
        return of

    return network, recipe, broken


def test_int8(broken_int8):
    network, recipe, broken = broken_int8
    for half in (False, True):
        whole = recipe.apply(network, torch.float16 if half else torch.float32)
        program = exported(copy.deepcopy(whole), half=half)
        made = pixels()
        assert b"QuantizeLinear" in program
        assert run(program, made)["not_finite"].tolist() == [0, 0, 0]
        assert run(exported(broken(whole), half=half), made)["not_finite"].tolist() == [SIZE_HW[0] * SIZE_HW[1]] * 3


def test_int8_for_cpus(tiny_unet, pictures):
    network = tiny_unet(1)
    frames = [Frame(image, index, 0.0, "x", str(index)) for index, image in enumerate(pictures(3, *SIZE_HW))]
    for bias, expected in ((0.0, 0), (torch.inf, SIZE_HW[0] * SIZE_HW[1])):
        with torch.no_grad():
            network.outc.conv.bias[:] = bias
        plain = export_program(FrameProgram(copy.deepcopy(network), CONTRACT))
        program, share = quantise(plain, network, {"inc.double_conv.0", "outc.conv"}, frames, METHODS[0])
        assert share > 0.5
        assert run(program.SerializeToString(), pixels())["not_finite"].tolist() == [expected] * 3


# --- what runs them


def test_the_gate_refuses_scores_that_are_not_finite(plain):
    made = pixels()
    assert counts(made).tolist()[0] == 0
    for program in (plain, with_views(plain, None)):
        masks, _ = program_masks(program)
        np.testing.assert_array_equal(masks(made[:1]), run(plain, made[:1])["masks"])
        with pytest.raises(CompileError, match=str(counts(made).sum())):
            masks(made)


def test_a_bundles_engine_hands_the_counts_on(plain, red_bundle, tmp_path):
    bundle = Bundle.write(tmp_path / "bundle", dataclasses.replace(red_bundle.manifest), {PROGRAM_NAME: plain})
    made = pixels()
    with open_engine(bundle, "onnxruntime") as engine:
        assert engine.counts
        engine.submit(made)
        assert engine.collect_all().not_finite.tolist() == counts(made).tolist()


# --- TensorRT


BUILT = {
    "fp32": lambda unet, _: exported(unet(1)),
    "fp16, classes": lambda unet, _: exported(unet(3), half=True),
    "fp16, composing nv12": lambda unet, _: with_nv12(with_views(exported(unet(1), half=True), None), None),
    "int8": lambda _, int8: exported(int8[1].apply(int8[0], torch.float16), half=True),
    "int8, fp32 scales": lambda _, int8: with_float_scales(exported(int8[1].apply(int8[0], torch.float16), half=True)),
    "foreign": lambda *_: wrap(foreign_network(2, stride=2), CONTRACT, None).SerializeToString(),
}


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize("make", BUILT.values(), ids=BUILT)
def test_tensorrt_builds_plans_that_count(make, tiny_unet, broken_int8):
    program = make(tiny_unet, broken_int8)
    pixels = "nv12" if b"H*3/2" in program else "bgr"
    assert build_plan(program, PlanOptions("tensorrt-rtx", (86,), batch=2, pixels=pixels)).content
    trt = load_tensorrt_rtx()
    network = trt.Builder(log_of(trt).logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log_of(trt).logger).parse(program)
    outputs = {network.get_output(index).name: network.get_output(index) for index in range(network.num_outputs)}
    assert outputs["not_finite"].dtype == trt.DataType.INT32
    assert len(outputs["not_finite"].shape) == 1
    # One comparison that is false for NaN, of FP32, and no negation that could be taken into it.
    assert [layer.get_input(0).dtype for layer in layers_of(trt, network, "ELEMENTWISE", "LESS")] == [
        trt.DataType.FLOAT
    ]
    assert layers_of(trt, network, "ELEMENTWISE", "EQUAL") == layers_of(trt, network, "UNARY", "NOT") == []


def layers_of(trt, network, kind, operation):
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    layers = [layer for layer in layers if layer.type == getattr(trt.LayerType, kind)]
    for layer in layers:
        layer.__class__ = trt.IElementWiseLayer if kind == "ELEMENTWISE" else trt.IUnaryLayer
    return [layer for layer in layers if layer.op.name == operation]


def test_the_count_reads_what_the_mask_is_made_of(plain):
    """One tensor: an optimiser cannot keep one of the two in another precision."""
    graph = onnx.load_from_string(plain).graph
    (seen,) = [node.input[0] for node in graph.node if node.op_type == "Abs"]
    assert {node.op_type for node in graph.node if seen in node.input} == {"Abs", "Sigmoid"}
