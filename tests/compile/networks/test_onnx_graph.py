# Graphs of one operator each, and what ONNX Runtime gives; files that lie; and whole networks as PyTorch exports them.

import operator
import os
import pickle
import shutil
import warnings
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from calibration.int8.equalise import ChannelGraph
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from compile.networks.ends import without_activation
from compile.networks.exported_program import exported_network, with_layers
from compile.networks.layered import LayeredNetwork
from compile.networks.onnx_file import read_onnx
from compile.networks.onnx_graph import convert, graph_of
from compile.networks.u2net import u2net_lite
from compile.networks.unet import UNet
from compile.program.fp16 import HalfEmulation
from compile.program.onnx_export import export_module
from pipeline.errors import CompileError, NotConvertibleError

SIZE_HW = (12, 16)
RANDOM = np.random.default_rng(0)


def weights(*shape):
    return RANDOM.normal(size=shape).astype(np.float32) / 2


def model_of(
    nodes, constants=None, *, opset=18, input_shape=("n", 3, "h", "w"), outputs=("y",), dtype=TensorProto.FLOAT
):
    """A network from "x" to ``outputs``; constants by name."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", dtype, input_shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        initializer=[numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    # ONNX Runtime reads old files by the newest version that they say.
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def network_of(path, imgsz, *, layout="nchw", output=None, **options):
    """A file in the one form, as a compilation reads it."""
    return graph_of(read_onnx(path, imgsz, layout=layout, output=output), path, layout, **options)


def scores_of(network):
    """A network without its last activation, as the searches see it."""
    return without_activation(network.module, network.activation)


def functions_of(made):
    """The steps that are no layers."""
    return [node.target for node in made.module.graph.nodes if node.op == "call_function"]


def one(op_type, inputs=("x",), **attributes):
    return helper.make_node(op_type, list(inputs), ["y"], name=op_type.lower(), **attributes)


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def untyped(model):
    """The model with the type of its output as its nodes say it."""
    for value in model.graph.output:
        value.type.Clear()
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.type.CopyFrom(found.type)
        if value.type.tensor_type.elem_type == 0:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        value.type.tensor_type.ClearField("shape")
    return model


def check(model, x_shape=(1, 3, *SIZE_HW), *, batch=True, layers=None):
    model = untyped(model)
    made = convert(model, x_shape, "nchw", "nchw", "network.onnx")
    session = session_of(model)
    x = np.random.default_rng(1).normal(size=x_shape).astype(np.float32)
    (expected,) = session.run(["y"], {"x": x})
    got = made.module(torch.from_numpy(x))
    assert tuple(got.shape) == expected.shape == made.output_shape
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=2e-5 * max(1.0, float(np.abs(expected).max())))
    if batch:
        three = np.random.default_rng(2).normal(size=(3, *x_shape[1:])).astype(np.float32)
        together = made.module(torch.from_numpy(three))
        alone = torch.cat([made.module(torch.from_numpy(three[n : n + 1])) for n in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if layers is not None:
        assert [type(module) for module in made.module.modules() if not list(module.children())] == layers
    return made


UNARY = [
    "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Celu", "Selu", "Mish", "Neg", "Relu",
    "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Identity", "ThresholdedRelu", "GlobalAveragePool",
    "GlobalMaxPool", "LpNormalization", "Dropout",
]  # fmt: skip


@pytest.mark.parametrize("op_type", UNARY)
def test_operators_of_one_input(op_type):
    check(model_of([one(op_type)]))


def first(op_type, **attributes):
    return helper.make_node(op_type, ["x"], ["a"], **attributes)


def last(op_type, inputs=("a",), **attributes):
    return one(op_type, inputs, **attributes)


I64, F32 = np.int64, np.float32
CASES = {
    "sqrt": ([first("Abs"), last("Sqrt")], {}),
    "log": ([first("Exp"), last("Log")], {}),
    "reciprocal": ([first("Exp"), last("Reciprocal")], {}),
    "leaky": ([one("LeakyRelu", alpha=0.2)], {}),
    "selu of its own": ([one("Selu", alpha=1.2, gamma=0.9)], {}),
    "hard sigmoid": ([one("HardSigmoid", alpha=0.3, beta=0.4)], {}),
    "clip": ([one("Clip", ["x", "low", "high"])], {"low": F32(-0.3), "high": F32(0.5)}),
    "clip above": ([one("Clip", ["x", "", "high"])], {"high": F32(0.5)}),
    "clip to nothing": ([one("Clip")], {}),
    "prelu": ([one("PRelu", ["x", "slope"])], {"slope": weights(3, 1, 1)}),
    "prelu one": ([one("PRelu", ["x", "slope"])], {"slope": weights(1)}),
    "prelu wide": ([one("PRelu", ["x", "slope"])], {"slope": weights(1, SIZE_HW[1])}),
    "add": ([one("Add", ["x", "c"])], {"c": weights(3, 1, 1)}),
    "sub from": ([one("Sub", ["c", "x"])], {"c": F32(2)}),
    "mul": ([one("Mul", ["x", "x"])], {}),
    "div": ([first("Exp"), last("Div", ["c", "a"])], {"c": weights(1)}),
    "pow": ([first("Abs"), last("Pow", ["a", "c"])], {"c": F32(1.5)}),
    "pow int": ([one("Pow", ["x", "c"])], {"c": I64(2)}),
    "min max": ([helper.make_node("Min", ["x", "c"], ["a"]), last("Max", ["a", "d"])], {"c": F32(1), "d": F32(-1)}),
    "sum mean": ([helper.make_node("Sum", ["x", "x", "c"], ["a"]), last("Mean", ["a", "x"])], {"c": weights(3, 1, 1)}),
    "where": (
        [helper.make_node("Greater", ["x", "c"], ["a"]), last("Where", ["a", "x", "d"])],
        {"c": F32(0), "d": weights(3, 1, 1)},
    ),
    "logic": (
        [
            helper.make_node("Less", ["x", "c"], ["p"]),
            helper.make_node("GreaterOrEqual", ["x", "d"], ["q"]),
            helper.make_node("And", ["p", "q"], ["r"]),
            helper.make_node("Not", ["r"], ["s"]),
            helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        ],
        {"c": F32(0.4), "d": F32(-0.4)},
    ),
    "mod": ([one("Mod", ["x", "c"], fmod=1)], {"c": F32(0.7)}),
    "concat": ([first("Neg"), last("Concat", ["a", "x", "c"], axis=1)], {"c": weights(1, 2, *SIZE_HW)}),
    "split": (
        [helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1), last("Concat", ["b", "a"], axis=1)],
        {"s": np.array([1, 2])},
    ),
    "split in three": (
        [
            helper.make_node("Split", ["x"], ["a", "b", "c"], axis=-1, num_outputs=3),
            last("Concat", ["b", "a", "c"], axis=-1),
        ],
        {},
    ),
    "slice": (
        [one("Slice", ["x", "s", "e", "a", "b"])],
        {"s": np.array([1, -9]), "e": np.array([2**62, -1]), "a": np.array([2, -1]), "b": np.array([2, 3])},
    ),
    "slice back": (
        [one("Slice", ["x", "s", "e", "a", "b"])],
        {"s": np.array([-1]), "e": np.array([-(2**62)]), "a": np.array([1]), "b": np.array([-1])},
    ),
    "gather one": ([one("Gather", ["x", "i"], axis=1)], {"i": I64(-1)}),
    "gather some": ([one("Gather", ["x", "i"], axis=2)], {"i": np.array([3, 0, -2])}),
    "gather table": ([one("Gather", ["x", "i"], axis=3)], {"i": np.array([[3, 0], [1, 1]])}),
    "reshape": ([one("Reshape", ["x", "s"])], {"s": np.array([0, 3, -1])}),
    "reshape fixed": ([one("Reshape", ["x", "s"])], {"s": np.array([1, -1, SIZE_HW[1]])}),
    "flatten": ([one("Flatten")], {}),
    "flatten behind": ([one("Flatten", axis=2)], {}),
    "transpose": ([one("Transpose", perm=[0, 2, 3, 1])], {}),
    "squeeze": ([first("GlobalAveragePool"), last("Squeeze", ["a", "s"])], {"s": np.array([2, 3])}),
    "unsqueeze": ([one("Unsqueeze", ["x", "s"])], {"s": np.array([1, -1])}),
    "unsqueeze batch": ([first("Identity"), last("Unsqueeze", ["a", "s"])], {"s": np.array([0])}),
    "stack and sum": (
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Unsqueeze", ["x", "s"], ["a"]),
            helper.make_node("Unsqueeze", ["r", "s"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
            last("ReduceSum", ["c", "s"], keepdims=0),
        ],
        {"s": np.array([0])},
    ),
    "batch taken away and put back": (
        [first("Squeeze"), helper.make_node("Relu", ["a"], ["b"]), last("Unsqueeze", ["b", "s"])],
        {"s": np.array([0])},
    ),
    "expand": ([first("GlobalAveragePool"), last("Expand", ["a", "s"])], {"s": np.array([1, 1, *SIZE_HW])}),
    "tile": ([one("Tile", ["x", "s"])], {"s": np.array([1, 2, 1, 3])}),
    "pad": ([one("Pad", ["x", "s", "v"])], {"s": np.array([0, 0, 1, 2, 0, 1, 0, 3]), "v": F32(0.5)}),
    "pad axes": ([one("Pad", ["x", "s", "", "a"])], {"s": np.array([1, 2]), "a": np.array([-1])}),
    "pad edge": ([one("Pad", ["x", "s"], mode="edge")], {"s": np.array([0, 0, 1, 2, 0, 0, 0, 3])}),
    "pad reflect": ([one("Pad", ["x", "s"], mode="reflect")], {"s": np.array([0, 0, 1, 2, 0, 0, 0, 3])}),
    "pad less": ([one("Pad", ["x", "s"])], {"s": np.array([0, 0, -1, 2, 0, 0, 0, -3])}),
    "depth to space": (
        [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("DepthToSpace", ["z"], ["y"], blocksize=2)],
        {"w": weights(8, 3, 1, 1)},
    ),
    "depth to space by rows": (
        [
            helper.make_node("Conv", ["x", "w"], ["z"]),
            helper.make_node("DepthToSpace", ["z"], ["y"], blocksize=2, mode="CRD"),
        ],
        {"w": weights(8, 3, 1, 1)},
    ),
    "space to depth": ([one("SpaceToDepth", blocksize=2)], {}),
    "softmax": ([one("Softmax", axis=1)], {}),
    "log softmax": ([one("LogSoftmax", axis=1)], {}),
    "argmax": ([one("ArgMax", axis=1, keepdims=0)], {}),
    "argmin": ([one("ArgMin", axis=-1)], {}),
    "reduce mean": ([one("ReduceMean", ["x", "s"], keepdims=0)], {"s": np.array([-1, 2])}),
    "reduce max": ([one("ReduceMax", ["x", "s"])], {"s": np.array([1])}),
    "reduce min": ([one("ReduceMin", ["x", "s"])], {"s": np.array([1])}),
    "reduce sum": ([one("ReduceSum", ["x", "s"])], {"s": np.array([1, 3])}),
    "reduce l1": ([one("ReduceL1", ["x", "s"])], {"s": np.array([1])}),
    "reduce l2": ([one("ReduceL2", ["x", "s"])], {"s": np.array([1, 2])}),
    "reduce squares": ([one("ReduceSumSquare", ["x", "s"])], {"s": np.array([1, 2])}),
    "reduce log sum": ([one("ReduceLogSumExp", ["x", "s"])], {"s": np.array([1])}),
    "reduce nothing": ([one("ReduceMean", noop_with_empty_axes=1)], {}),
    "running sum": ([one("CumSum", ["x", "s"])], {"s": I64(2)}),
    "triangle": ([one("Trilu", upper=0)], {}),
    "einsum": ([one("Einsum", ["x", "w"], equation="nchw,kc->nkhw")], {"w": weights(4, 3)}),
    "matmul": ([one("MatMul", ["x", "w"])], {"w": weights(SIZE_HW[1], 5)}),
    "matmul and bias": (
        [helper.make_node("MatMul", ["x", "w"], ["a"]), last("Add", ["b", "a"])],
        {"w": weights(SIZE_HW[1], 5), "b": weights(5)},
    ),
    "matmul from the left": ([one("MatMul", ["w", "x"])], {"w": weights(5, SIZE_HW[0])}),
    "matmul of two": ([first("Transpose", perm=[0, 1, 3, 2]), last("MatMul", ["x", "a"])], {}),
    "gemm": (
        [first("Flatten"), last("Gemm", ["a", "w", "b"], alpha=0.5, beta=2.0)],
        {"w": weights(3 * SIZE_HW[0] * SIZE_HW[1], 5), "b": weights(5)},
    ),
    "gemm across": (
        [first("Flatten"), last("Gemm", ["a", "w"], transB=1)],
        {"w": weights(5, 3 * SIZE_HW[0] * SIZE_HW[1])},
    ),
    "instance norm": (
        [one("InstanceNormalization", ["x", "s", "b"], epsilon=1e-3)],
        {"s": weights(3), "b": weights(3)},
    ),
    "layer norm": ([one("LayerNormalization", ["x", "s", "b"])], {"s": weights(SIZE_HW[1]), "b": weights(SIZE_HW[1])}),
    "layer norm of two": ([one("LayerNormalization", ["x", "s"], axis=2)], {"s": weights(*SIZE_HW)}),
    "local response": ([one("LRN", size=3, alpha=0.1)], {}),
    "batch norm": (
        [one("BatchNormalization", ["x", "s", "b", "m", "v"], epsilon=1e-3)],
        {"s": weights(3), "b": weights(3), "m": weights(3), "v": np.abs(weights(3)) + 1},
    ),
    "max pool": ([one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "max pool uneven": ([one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[0, 1, 2, 0])], {}),
    "max pool up": ([one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {}),
    "max pool apart": ([one("MaxPool", kernel_shape=[2, 2], dilations=[2, 3])], {}),
    "max pool same": ([one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")], {}),
    "max pool lower": ([one("MaxPool", kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")], {}),
    "mean pool": ([one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "mean pool with pads": ([one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    "mean pool uneven": ([one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], {}),
    "mean pool uneven with pads": (
        [one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)],
        {},
    ),
    "constant": (
        [helper.make_node("Constant", [], ["c"], value_float=1.5), one("Mul", ["x", "c"])],
        {},
    ),
    "shape arithmetic": (
        [
            helper.make_node("Shape", ["x"], ["s"], start=2, end=4),
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["f", "two"], ["h"]),
            helper.make_node("Cast", ["h"], ["i"], to=TensorProto.INT64),
            helper.make_node("Concat", ["nc", "i"], ["size"], axis=0),
            one("Resize", ["x", "", "", "size"], mode="linear"),
        ],
        {"two": F32(2), "nc": np.array([1, 3])},
    ),
    "constant of shape": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.array([2], np.float32))),
            one("Mul", ["x", "c"]),
        ],
        {},
    ),
    "range": (
        [
            helper.make_node("Range", ["zero", "end", "by"], ["r"]),
            helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
            one("Add", ["x", "f"]),
        ],
        {"zero": I64(0), "end": I64(SIZE_HW[1]), "by": I64(1)},
    ),
    "grid": (
        [one("GridSample", ["x", "g"], align_corners=1)],
        {"g": np.clip(weights(1, 5, 7, 2), -0.9, 0.9)},
    ),
}
ONE_PICTURE = {"grid", "unsqueeze batch"}


@pytest.mark.parametrize("case", CASES)
def test_operators(case):
    nodes, constants = CASES[case]
    check(model_of(nodes, constants), batch=case not in ONE_PICTURE)


CONVOLUTIONS = {
    "plain": {},
    "padded": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "uneven": {"pads": [0, 1, 2, 0]},
    "apart": {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "same": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same below": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID"},
    "depthwise": {"group": 3, "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_convolutions(case, bias):
    options = CONVOLUTIONS[case]
    constants = {"net.conv.weight": weights(6, 3 // options.get("group", 1), 3, 3), "b": weights(6)}
    made = check(
        model_of([one("Conv", ["x", "net.conv.weight", *["b"] * bias], **options)], constants), layers=[nn.Conv2d]
    )
    (layer,) = made.layers
    assert layer.macs == constants["net.conv.weight"].size * np.prod(made.output_shape[2:])


TRANSPOSED = {
    "plain": {"strides": [2, 2]},
    "padded": {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    "uneven": {"strides": [2, 2], "pads": [0, 1, 1, 0]},
    "groups": {"strides": [2, 2], "group": 3},
    "same": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "size": {"strides": [2, 2], "output_shape": [24, 32]},
    "apart": {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions(case):
    constants = {"w": weights(3, 4, 3, 3), "b": weights(4 * TRANSPOSED[case].get("group", 1))}
    check(model_of([one("ConvTranspose", ["x", "w", "b"], **TRANSPOSED[case])], constants), layers=[nn.ConvTranspose2d])


def test_a_convolution_over_a_line():
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        helper.make_node("Squeeze", ["a", "last"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["c", "w"], ["y"], pads=[1, 1]),
    ]
    check(model_of(nodes, {"last": np.array([3]), "w": weights(2, 1, 3)}), layers=[nn.Conv2d])


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 3])
def test_normalizations_are_taken_into_the_layer_before_them(op_type, group):
    channels = 6
    shape = (channels, 3 // group, 3, 3) if op_type == "Conv" else (3, channels // group, 3, 3)
    nodes = [
        helper.make_node(op_type, ["x", "w", "c"], ["a"], group=group),
        one("BatchNormalization", ["a", "s", "b", "m", "v"]),
    ]
    some = {name: weights(channels) for name in "csbm"} | {"v": np.abs(weights(channels)) + 1, "w": weights(*shape)}
    made = check(model_of(nodes, some), layers=[getattr(nn, f"{op_type}2d")])
    assert functions_of(made) == []


def test_what_two_steps_read_is_not_changed():
    norm = helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], name="norm")
    nodes = [helper.make_node("Conv", ["x", "first.weight"], ["a"]), norm, one("Add", ["a", "n"])]
    some = {name: weights(4) for name in "sbm"} | {"v": np.abs(weights(4)) + 1, "first.weight": weights(4, 3, 1, 1)}
    made = check(model_of(nodes, some))
    (layer,) = [module for module in made.module.modules() if isinstance(module, nn.Conv2d)]
    assert torch.equal(layer.weight, torch.from_numpy(some["first.weight"]))
    assert operator.mul in functions_of(made)


RESIZES = [
    *(
        ("nearest", coordinates, nearest)
        for coordinates in ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners")
        for nearest in ("floor", "round_prefer_floor", "round_prefer_ceil", "ceil")
    ),
    *(
        (mode, coordinates, None)
        for mode in ("linear", "cubic")
        for coordinates in ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric")
    ),
]


# Up by whole numbers and by others, down, and both at once.
@pytest.mark.parametrize(
    ("by", "scale"),
    [("scales", (2.0, 3.0)), ("scales", (0.75, 1.375)), ("sizes", (1.5, 2.25)), ("sizes", (0.5, 0.4))],
    ids=str,
)
def test_resizes(by, scale):
    failed = []
    for mode, coordinates, nearest in RESIZES:
        options = {"nearest_mode": nearest} if nearest else {}
        sizes = [1, 3, *(int(side * one) for side, one in zip(SIZE_HW, scale, strict=True))]
        inputs = ["x", "", "c"] if by == "scales" else ["x", "", "", "c"]
        constant = np.array([1, 1, *scale], np.float32) if by == "scales" else np.array(sizes)
        node = one("Resize", inputs, mode=mode, coordinate_transformation_mode=coordinates, **options)
        try:
            check(model_of([node], {"c": constant}, opset=19), batch=coordinates == "asymmetric")
        except AssertionError as error:
            failed.append((mode, coordinates, nearest, str(error).strip().splitlines()[:3]))
    assert failed == []


RESIZE_VARIANTS = {
    "antialias linear": {"mode": "linear", "antialias": 1, "scale": (0.5, 0.4)},
    "antialias cubic": {"mode": "cubic", "antialias": 1, "scale": (0.5, 0.4)},
    "cubic of its own": {"mode": "cubic", "cubic_coeff_a": -0.5, "scale": (2, 1.5)},
    "cubic inside": {"mode": "cubic", "exclude_outside": 1, "scale": (2, 1.5)},
}


@pytest.mark.parametrize("case", RESIZE_VARIANTS)
def test_variants_of_resizes(case):
    options = dict(RESIZE_VARIANTS[case])
    scale = options.pop("scale")
    check(model_of([one("Resize", ["x", "", "c"], **options)], {"c": np.array([1, 1, *scale], np.float32)}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [(2, 3), (1.5, 2.25)], ids=str)
@pytest.mark.parametrize("opset", [7, 9, 10])
def test_old_resizes_mean_what_they_meant(mode, scale, opset):
    scales = np.array([1, 1, *scale], np.float32)
    if opset == 7:
        node, constants = one("Upsample", mode=mode, scales=scales.tolist()), {}
    else:
        node, constants = one("Upsample" if opset == 9 else "Resize", ["x", "c"], mode=mode), {"c": scales}
    check(model_of([node], constants, opset=opset))


def test_a_resize_of_two_axes_alone():
    node = one("Resize", ["x", "", "", "c"], axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_larger")
    check(model_of([node], {"c": np.array([30, 24])}))


OLD = {
    "clip": (7, [one("Clip", min=-0.3, max=0.5)], {}),
    "dropout": (7, [one("Dropout")], {}),
    "pad": (7, [one("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)], {}),
    "slice": (9, [one("Slice", starts=[1], ends=[-1], axes=[2])], {}),
    "squeeze": (11, [one("Unsqueeze", axes=[2])], {}),
    "softmax of all": (11, [one("Softmax", axis=1)], {}),
    "softmax of the last": (11, [one("Softmax", axis=3)], {}),
    "split": (11, [helper.make_node("Split", ["x"], ["a", "y"], axis=1, split=[1, 2])], {}),
    "reduce": (11, [one("ReduceMean", axes=[2, 3])], {}),
    "mean pool": (7, [one("AveragePool", kernel_shape=[2, 2], strides=[2, 2])], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_operators_of_old_opsets(case):
    opset, nodes, constants = OLD[case]
    check(model_of(nodes, constants, opset=opset))


NEW = {
    "gelu": (20, [one("Gelu")], {}),
    "gelu by tanh": (20, [one("Gelu", approximate="tanh")], {}),
    "group norm": (21, [one("GroupNormalization", ["x", "s", "b"], num_groups=3)], {"s": weights(3), "b": weights(3)}),
    "rms norm": (23, [one("RMSNormalization", ["x", "s"])], {"s": weights(SIZE_HW[1])}),
    "attention": (23, [one("Attention", ["x", "x", "x"])], {}),
}


@pytest.mark.parametrize("case", NEW)
def test_operators_of_new_opsets(case):
    opset, nodes, constants = NEW[case]
    check(model_of(nodes, constants, opset=opset))


@pytest.mark.parametrize("op_type", ["Det", "GRU", "Loop"])
def test_what_is_missing_is_named(op_type):
    with pytest.raises(NotConvertibleError, match=rf"'scores'.*{op_type}"):
        convert(
            model_of([helper.make_node(op_type, ["x"], ["y"], name="scores")]),
            (1, 3, *SIZE_HW),
            "nchw",
            "nchw",
            "n.onnx",
        )


def test_a_variant_that_is_missing_is_named():
    node = one("Resize", ["x", "roi", "c"], coordinate_transformation_mode="tf_crop_and_resize")
    model = model_of([node], {"roi": np.zeros(8, np.float32), "c": np.array([1, 1, 2, 2], np.float32)})
    with pytest.raises(NotConvertibleError, match=r"Resize 'resize'.*tf_crop_and_resize"):
        convert(model, (1, 3, *SIZE_HW), "nchw", "nchw", "n.onnx")


# What follows goes the whole way: read, folded by ONNX Runtime in its own process, converted, proven.


def saved(path, model, **options):
    onnx.save(untyped(model), path, **options)
    return path


def small(**options):
    """A convolution, a rectified sum and another convolution with a sigmoid."""
    nodes = [
        helper.make_node("Conv", ["x", "body.0.weight"], ["a"], pads=[1, 1, 1, 1], name="/body/Conv"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "head.weight"], ["logits"], name="/head/Conv"),
        helper.make_node("Sigmoid", ["logits"], ["y"]),
    ]
    some = {"body.0.weight": weights(8, 3, 3, 3), "head.weight": weights(2, 8, 1, 1)}
    return model_of(nodes, some, **options)


@pytest.mark.parametrize("opset", [7, 13, 21, 23])
def test_what_is_known_of_a_network(tmp_path, opset):
    network = network_of(saved(tmp_path / "n.onnx", small(opset=opset)), SIZE_HW)
    assert [layer.name for layer in network.layers] == ["body.0", "head"]
    assert [layer.macs for layer in network.layers] == [SIZE_HW[0] * SIZE_HW[1] * n for n in (8 * 27, 16)]
    ends = ChannelGraph(network.module, (1, 3, *SIZE_HW))
    assert (ends.first_layers, ends.last_layers) == (("body.0",), ("head",))
    assert (network.activation.kind, network.activation.axis) == ("sigmoid", None)
    assert network.takes_batch
    assert network.difference < 1e-5
    assert network.macs == sum(layer.macs for layer in network.layers)
    x = torch.randn(2, 3, *SIZE_HW)
    torch.testing.assert_close(scores_of(network)(x).sigmoid(), network.module(x))
    # One set of layers: what is changed in one is changed in the other.
    assert scores_of(network).get_submodule("head") is network.module.get_submodule("head")


def test_nodes_in_any_order(tmp_path):
    model = small()
    nodes = list(model.graph.node)
    model = untyped(model)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, tmp_path / "n.onnx")
    assert network_of(tmp_path / "n.onnx", SIZE_HW).difference < 1e-5


def test_nodes_in_a_circle(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), one("Neg", ["a"])]
    with pytest.raises(CompileError, match="circle"):
        network_of(saved(tmp_path / "n.onnx", model_of(nodes)), SIZE_HW)


def test_one_of_two_outputs_and_channels_last(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["s"], pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["s"], ["p"], axis=1),
        helper.make_node("Transpose", ["p"], ["y"], perm=[0, 2, 3, 1]),
        helper.make_node("Det", ["x"], ["unknown"]),
    ]
    model = model_of(nodes, {"w": weights(4, 3, 3, 3)}, input_shape=("n", "h", "w", 3), outputs=("unknown", "y"))
    network = network_of(saved(tmp_path / "n.onnx", model), SIZE_HW, layout="nhwc", output="y")
    assert network.output == "y"
    assert (network.input_shape, network.output_shape) == ((1, 3, *SIZE_HW), (1, 4, *SIZE_HW))
    # The transpositions at both ends undo what was there.
    assert [node.target for node in network.module.graph.nodes if node.target is torch.permute] == []
    assert (network.activation.kind, network.activation.axis) == ("softmax", 1)
    with pytest.raises(CompileError, match="unknown, y"):
        network_of(tmp_path / "n.onnx", SIZE_HW, output="z")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_an_argmax_can_be_cut_off(tmp_path, layout):
    weight = weights(4, 3, 1, 1)
    nodes = [helper.make_node("Conv", ["x", "w"], ["s"]), one("ArgMax", ["s"], axis=1, keepdims=0)]
    if layout == "nhwc":
        nodes = [
            nodes[0],
            helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 3, 1]),
            one("ArgMax", ["t"], axis=-1, keepdims=1),
        ]
    model = model_of(nodes, {"w": weight})
    model = untyped(model)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.INT64
    onnx.save(model, tmp_path / "n.onnx")
    decision = read_onnx(tmp_path / "n.onnx", SIZE_HW).decision
    assert (decision.kind, decision.axis) == ("argmax", 1 if layout == "nchw" else -1)
    network = network_of(tmp_path / "n.onnx", SIZE_HW, output_layout=layout)
    assert network.activation is None
    x = torch.randn(1, 3, *SIZE_HW)
    expected = torch.nn.functional.conv2d(x, torch.from_numpy(weight))
    torch.testing.assert_close(network.module(x), expected)


def test_files_of_half_precision(tmp_path):
    model = small(dtype=TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    network = network_of(saved(tmp_path / "n.onnx", model), SIZE_HW)
    assert network.difference < 1e-5
    assert {parameter.dtype for parameter in network.module.parameters()} == {torch.float32}


def test_pictures_of_bytes(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        one("Conv", ["t", "w"]),
    ]
    model = model_of(nodes, {"w": weights(1, 3, 3, 3)}, input_shape=(1, "h", "w", 3), dtype=TensorProto.UINT8)
    network = network_of(saved(tmp_path / "n.onnx", model), SIZE_HW, layout="nhwc", output_layout="nchw")
    assert network.takes_batch  # the file says 1; nothing in it asks for that


def test_a_network_for_one_picture_alone(tmp_path):
    nodes = [helper.make_node("Gather", ["x", "i"], ["a"], axis=0), one("Unsqueeze", ["a", "z"])]
    model = model_of(nodes, {"i": I64(0), "z": np.array([0])}, input_shape=(1, 3, *SIZE_HW))
    assert not network_of(saved(tmp_path / "n.onnx", model), SIZE_HW).takes_batch


def external(folder):
    onnx.save(untyped(small()), folder / "n.onnx", save_as_external_data=True, location="n.onnx.data", size_threshold=0)
    return folder / "n.onnx"


def relocated(path, **entries):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    onnx.save(model, path)
    return path


def test_weights_in_a_file_beside_it(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    path = external(folder)
    assert network_of(path, SIZE_HW).difference < 1e-5
    shutil.copy(folder / "n.onnx.data", tmp_path / "outside.data")
    for location in ("../outside.data", str(tmp_path / "outside.data"), "", "sub/../../outside.data", "missing.data"):
        with pytest.raises(CompileError, match="beside it"):
            read_onnx(relocated(path, location=location), SIZE_HW)
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(CompileError, match="another folder"):
        read_onnx(relocated(path, location="link.data"), SIZE_HW)
    (folder / "inner.data").symlink_to(folder / "n.onnx.data")
    read_onnx(relocated(path, location="inner.data"), SIZE_HW)
    os.mkfifo(folder / "pipe.data")
    with pytest.raises(CompileError, match=r"pipe\.data"):
        read_onnx(relocated(path, location="pipe.data"), SIZE_HW)
    for entries in ({"offset": "99999"}, {"length": "8"}, {"offset": "-4"}, {"length": "many"}):
        shutil.rmtree(folder)
        folder.mkdir()
        with pytest.raises(CompileError, match="expected"):
            read_onnx(relocated(external(folder), location="n.onnx.data", **entries), SIZE_HW)


def test_shapes_that_lie(tmp_path):
    model = small()
    model.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(CompileError, match=r"body\.0\.weight"):
        read_onnx(saved(tmp_path / "n.onnx", model), SIZE_HW)
    model.graph.initializer[0].dims[0] = -8
    with pytest.raises(CompileError, match=r"body\.0\.weight"):
        read_onnx(saved(tmp_path / "n.onnx", model), SIZE_HW)


@pytest.mark.parametrize("op_type", ["ConstantOfShape", "Expand", "Tile", "Resize", "Pad"])
def test_what_asks_for_all_of_the_memory(tmp_path, op_type):
    huge = np.array([1, 3, 2**20, 2**20])
    node = {
        "ConstantOfShape": lambda: helper.make_node("ConstantOfShape", ["s"], ["a"]),
        "Expand": lambda: helper.make_node("Expand", ["one", "s"], ["a"]),
        "Tile": lambda: helper.make_node("Tile", ["one", "s"], ["a"]),
        "Resize": lambda: helper.make_node("Resize", ["one", "", "", "s"], ["a"]),
        "Pad": lambda: helper.make_node("Pad", ["one", "p"], ["a"]),
    }[op_type]()
    some = {"s": huge, "one": np.ones((1, 1, 1, 1), np.float32), "p": np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20])}
    model = model_of([node, one("Mul", ["x", "a"])], some)
    if op_type in ("ConstantOfShape", "Expand"):
        with pytest.raises(CompileError, match=f"{op_type}.*elements"):
            read_onnx(saved(tmp_path / "n.onnx", model), SIZE_HW)
    else:
        with pytest.raises(CompileError):
            network_of(saved(tmp_path / "n.onnx", model), SIZE_HW)
    with pytest.raises(NotConvertibleError, match=f"{op_type}.*elements"):
        convert(model, (1, 3, *SIZE_HW), "nchw", "nchw", "n.onnx")


def test_a_loop_without_end(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["", "yes", "one"], ["a"], body=body)
    model = model_of([node, one("Mul", ["x", "a"])], {"yes": np.array(True), "one": F32(1)})
    with pytest.raises(CompileError, match="endless loop"):
        network_of(saved(tmp_path / "n.onnx", model), SIZE_HW, seconds=3)


@pytest.mark.parametrize("content", [b"", b"\x08", b"no network" * 50], ids=["empty", "cut", "text"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "n.onnx").write_bytes(content)
    with pytest.raises(CompileError):
        network_of(tmp_path / "n.onnx", SIZE_HW)


@pytest.mark.parametrize("change", ["rank", "type", "batch", "opset", "two"])
def test_networks_of_other_kinds(tmp_path, change):
    model = small()
    entry = model.graph.input[0].type.tensor_type
    if change == "rank":
        entry.shape.dim.add().dim_value = 3
    elif change == "type":
        entry.elem_type = TensorProto.STRING
    elif change == "batch":
        entry.shape.dim[0].dim_value = 4
    elif change == "opset":
        model.opset_import[0].version = 6
    else:
        model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]))
    if change == "two":
        model.graph.node[1].input[0] = "b"
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(CompileError, match="expected"):
        read_onnx(tmp_path / "n.onnx", SIZE_HW)


def test_what_differs_is_refused(tmp_path, monkeypatch):
    from compile.networks import onnx_operators

    monkeypatch.setitem(onnx_operators.OPERATORS, "Relu", lambda graph, step: graph.call(F.leaky_relu, step.x, 0.1))
    with pytest.raises(NotConvertibleError, match=r"within 0\.001.*difference of 0\."):
        network_of(saved(tmp_path / "n.onnx", small()), SIZE_HW)


# Whole networks, as PyTorch's two exporters write them.


class DenseBlock(nn.Module):
    """Normalization before each convolution, and all that came before as its input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * n) for n in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * n, 4, 3, padding=1, bias=False) for n in range(3))
        self.head = nn.Conv2d(20, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(x).sigmoid()


class Mobile(nn.Module):
    """Depthwise convolutions with squeeze-and-excitation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        z = self.depthwise(y)
        z = z * self.squeeze(z) + y
        return F.interpolate(self.head(z), x.shape[2:], mode="bilinear", align_corners=False)


class Attending(nn.Module):
    """Patches, efficient attention and a mix of linear layers, as SegFormer has them."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 7, 4, 3)
        self.norm, self.norm2, self.norm_small = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.reduce = nn.Conv2d(16, 16, 2, 2)
        self.q, self.kv, self.proj = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 16)
        self.fc1, self.dw, self.fc2 = nn.Linear(16, 32), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Linear(32, 16)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = self.patches(x)
        n, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        y = self.norm(t)
        small = self.reduce(y.transpose(1, 2).reshape(n, c, h, w)).flatten(2).transpose(1, 2)
        k, v = self.kv(self.norm_small(small)).reshape(n, -1, 2, 2, 8).permute(2, 0, 3, 1, 4)
        q = self.q(y).reshape(n, -1, 2, 8).transpose(1, 2)
        a = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        t = t + self.proj((a @ v).transpose(1, 2).reshape(n, h * w, c))
        y = self.fc1(self.norm2(t)).transpose(1, 2).reshape(n, 32, h, w)
        t = t + self.fc2(F.gelu(self.dw(y).flatten(2).transpose(1, 2)))
        return self.head(t.transpose(1, 2).reshape(n, c, h, w)).softmax(1)


class Medical(nn.Module):
    """Instance and group norms, PReLU, pooling and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.PReLU())
        self.middle = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.ELU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.InstanceNorm2d(8), nn.LeakyReLU())
        self.head = nn.ConvTranspose2d(16, 2, 2, 2)

    def forward(self, x):
        y = self.down(x)
        return self.head(torch.cat([y, self.up(self.middle(y))], 1))


def unet():
    return UNet(3, 2, False, base_width=4)


NETWORKS = {
    "unet": unet,
    "unet bilinear": lambda: UNet(3, 1, True, base_width=4),
    "u2netp": u2net_lite,
    "dense": DenseBlock,
    "mobile": Mobile,
    "attending": Attending,
    "medical": Medical,
}


def built(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return network


def exported(network, path, dynamo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.randn(1, 3, SIDE, SIDE)
        options = {"dynamo": True, "verbose": False} if dynamo else {"dynamo": False, "opset_version": 17}
        torch.onnx.export(network, (x,), str(path), **options)
    return path


SIDE = 32
BY_DYNAMO = "attending"  # with layers of all kinds but one; the others are traced


@pytest.fixture(scope="session")
def file_of(tmp_path_factory):
    """The network of a name, and its file; it is exported once."""
    made = {}

    def get(name, dynamo=False):
        if (name, dynamo) not in made:
            network = built(name)
            path = tmp_path_factory.mktemp("networks") / "n.onnx"
            made[name, dynamo] = network, exported(network, path, dynamo)
        return made[name, dynamo]

    return get


@pytest.mark.parametrize(("name", "dynamo"), [*((name, False) for name in NETWORKS), (BY_DYNAMO, True)])
def test_whole_networks(file_of, capfd, name, dynamo):
    network, path = file_of(name, dynamo)
    found = network_of(path, (SIDE, SIDE))
    assert found.difference < 1e-4
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = network(x)
        expected = expected if isinstance(expected, torch.Tensor) else expected[0]
        torch.testing.assert_close(found.module(x), expected, rtol=1e-3, atol=1e-3)
    modules = {type(module) for module in network.modules()} & {nn.Conv2d, nn.ConvTranspose2d, nn.Linear}
    for kind in modules:
        count = sum(isinstance(module, kind) for module in network.modules())
        assert sum(isinstance(module, kind) for module in found.module.modules()) == count, kind
    if name == "dense":  # normalizations in front of their convolutions stay steps of their own
        assert functions_of(found).count(operator.mul) == 3
    if name in ("dense", "attending"):
        assert found.activation.kind == ("sigmoid" if name == "dense" else "softmax")
    assert (
        ChannelGraph(found.module, x.shape)
        .last_layers[-1]
        .startswith("out_conv" if name == "u2netp" else "outc" if "unet" in name else "head")
    )


@pytest.mark.parametrize("name", ["unet", "mobile", "attending"])
def test_what_is_written_for_layers_runs_on_it(file_of, capfd, name):
    network = network_of(file_of(name)[1], (SIDE, SIDE))
    network = network.module if network.activation is None else scores_of(network)
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        exact = network.logits(x)
        emulation = HalfEmulation(network)
        with emulation.keeping(()):
            half = emulation.network(x)
        assert 0 < (half - exact).abs().max() < 0.02 * exact.abs().max()
        search = Int8Search(network, (SIDE, SIDE))
        search.observe(lambda: search.network.logits(x))
    recipe = search.find([Example(x[:1], exact[:1].clone())], "max", goal_iou=0.5)
    assert recipe.layers
    assert recipe.apply(network)(x).shape == exact.shape
    batch = torch.export.Dim("N", min=1, max=64)
    model = export_module(network, (x,), ({0: batch},), ("x",), ("y",))
    (again,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x[:1].numpy()})
    np.testing.assert_allclose(again, exact[:1].numpy(), rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


# What torch.export.save writes.


def exported_file(path, name="unet"):
    network = built(name)
    program = torch.export.export(
        network, (torch.randn(2, 3, SIDE, SIDE),), dynamic_shapes=({0: torch.export.Dim("N", max=64)},)
    )
    torch.export.save(program, path)
    return network


@pytest.mark.parametrize("name", ["unet", "mobile", "attending", "medical", "dense"])
def test_exported_programs(tmp_path, name):
    network = exported_file(tmp_path / "n.pt2", name)
    found = exported_network(tmp_path / "n.pt2")
    x = torch.randn(3, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(found.logits(x), network(x), rtol=1e-4, atol=1e-5)
    names = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    assert {name for name, module in found.named_modules() if hasattr(module, "weight")} == names
    assert isinstance(found, LayeredNetwork)
    if name == "unet":
        with HalfEmulation(found).keeping(()):
            pass


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="session")
def unet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "n.pt2"
    return exported_file(path), path


def rewritten(source, target, change):
    """A copy of an archive; ``change(name, data)`` gives what is written, and may give more files."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            for name, data in change(entry.filename, old.read(entry)).items():
                new.writestr(name, data)
    return target


def evil_samples(name, data, bad):
    return {name: pickle.dumps(bad) if name.endswith("sample_inputs/model.pt") else data}


def evil_pickle(name, data, bad):
    if name.endswith("weights_config.json"):
        return {name: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)}
    return {name: pickle.dumps(bad) if name.endswith("weight_0") else data}


def evil_constant(name, data, bad):
    if name.endswith("constants_config.json"):
        entry = b'{"config": {"c": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": true, "tensor_meta": null}}}'
        return {name: entry, name.replace("model_constants_config.json", "opaque_obj_0"): pickle.dumps(bad)}
    return {name: data}


def evil_target(name, data, bad):
    return {name: data.replace(b"torch.ops.aten.max_pool2d.default", b"torch.os.system")}


def evil_expression(name, data, bad):
    text = f"__import__('os').mkdir('{bad.path}')".encode()
    return {name: data.replace(b'"expr_str": "', b'"expr_str": "' + text + b"+", 1)}


def evil_code(name, data, bad):
    return {
        name: data,
        **({name.replace("models/model.json", "data/aotinductor/m/m.so"): b"\x7fELF"} if "model.json" in name else {}),
    }


@pytest.mark.parametrize("attack", [evil_pickle, evil_constant, evil_target, evil_expression, evil_code])
def test_programs_that_would_run_code(tmp_path, unet_file, attack):
    bad = Evil(tmp_path / "done")
    path = rewritten(unet_file[1], tmp_path / "bad.pt2", lambda name, data: attack(name, data, bad))
    with pytest.raises(CompileError):
        exported_network(path)
    assert not (tmp_path / "done").exists()


def test_pickled_examples_are_not_opened(tmp_path, unet_file):
    network, source = unet_file
    bad = Evil(tmp_path / "done")
    path = rewritten(source, tmp_path / "bad.pt2", lambda name, data: evil_samples(name, data, bad))
    x = torch.randn(1, 3, SIDE, SIDE)
    torch.testing.assert_close(exported_network(path)(x), network(x), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "done").exists()


def test_a_program_that_is_none(tmp_path):
    (tmp_path / "n.pt2").write_bytes(b"no archive")
    with pytest.raises(CompileError, match=r"torch\.export\.save"):
        exported_network(tmp_path / "n.pt2")
    with pytest.raises(CompileError, match=r"missing\.pt2"):
        exported_network(tmp_path / "missing.pt2")


def test_a_program_of_two_pictures():
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output(graph.call_function(torch.add, (x, y)))
    with pytest.raises(NotConvertibleError, match="one input, got 2"):
        with_layers(fx.GraphModule({}, graph), "n.pt2")
