"""INT8 for a CPU: another graph than TensorRT's, with values that have no sign and convolutions that also give INT8.

Linear layers take INT8 and give FP32: what is added to them and the normalization behind them are FP32 anyway.

ONNX Runtime is fast where eight bits without a sign meet weights with one, and where a convolution's output is rounded too, so that
no FP32 stands between. After a ReLU the sign would be wasted: the range has 255 steps, not 127. The recipe of the search gives the
weights; ranges are taken anew, for every tensor between the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import nn

from calibration.inference_form import fold_norms
from calibration.int8.equalise import equalise
from calibration.int8.ranges import LEVELS, Histograms, Method
from calibration.int8.recipe import Int8Recipe
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame

# Sums stay FP32: rounding both sides and the result of a residual sum costs more of the mask than all convolutions (U²-NetP, mean IoU
# 0.982 with sums in INT8 and 0.992 without), and saves little time.
_LAYERS = ("Conv", "MatMul", "Gemm")
_LINEAR = ("MatMul", "Gemm")
_QUANTISED = (*_LAYERS, "Relu", "MaxPool", "Concat", "Resize")
_UNSIGNED_LEVELS = 255
# One value in so many is counted; odd, so that they do not run along a column.
_EVERY = 7


def rounded_network(network: nn.Module, recipe: Int8Recipe) -> nn.Module:
    """A copy in FP32 whose weights are those that INT8 can hold, with channels at one reach.

    Layers with channels that stay out of INT8 are left as they are: in halves their sums would be rounded apart, and what they
    cancel would not cancel.

    Args:
        network: the trained one; not changed.
        recipe: of the search.
    """
    copied = fold_norms(copy.deepcopy(network))
    equalise(copied, recipe.factors)
    for name, layer in recipe.layers.items():
        if not layer.exact:
            weight: Any = copied.get_submodule(name).weight
            weight.data = (layer.levels.float() * layer.scales.view(-1, 1)).view(weight.shape)
    return copied


def exact_layers(recipe: Int8Recipe) -> set[str]:
    """Layers that stay FP32: the first and last ones, and those with channels that stay out of INT8."""
    ends = ("the first layer", "a last layer")
    return {name for name, why in recipe.left.items() if why in ends} | {
        name for name, layer in recipe.layers.items() if layer.exact
    }


def quantise(
    program: onnx.ModelProto, network: nn.Module, exact: Collection[str], frames: Iterable[Frame], method: Method
) -> tuple[onnx.ModelProto, float]:
    """Bring a frame program's network to INT8 as ONNX Runtime's CPU kernels want it.

    Args:
        program: of ``network``, in FP32.
        network: as ``rounded_network`` gives it.
        exact: names of the layers that stay FP32, as the network calls them.
        frames: to take ranges from; read once, one at a time.
        method: how a histogram becomes a range.

    Returns:
        The program, and the share of the layers' weights that are INT8.

    Raises:
        CompileError: there is nothing that could be.
    """
    program = onnx.shape_inference.infer_shapes(program)
    layers = _layers(program, network)
    nodes = _quantised_nodes(program, {name for name, layer in layers.items() if layer not in exact}, set(layers))
    if not nodes:
        raise CompileError(
            "--precision: expected fp32 for a network with no layer between its first and last ones, got int8: take fp32"
        )
    ranges = _ranges(program, _tensors(program, nodes), frames, method)
    sizes = {item.name: int(np.prod(item.dims)) for item in program.graph.initializer}
    size = {node.name: sizes[node.input[1]] for node in program.graph.node if node.name in layers}
    share = sum(of_one for name, of_one in size.items() if name in nodes) / max(1, sum(size.values()))
    quantiser = QDQQuantizer(
        program,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=sorted(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(_QUANTISED),
        extra_options={"OpTypesToExcludeOutputQuantization": list(_LINEAR)},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    _spare_sums(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised, share


def _layers(program: onnx.ModelProto, network: nn.Module) -> dict[str, str]:
    """Names of the nodes that are layers -> the layers'. The exporter turns a linear layer's weights round and names them anew."""
    linear = {
        (*(one := _turned(layer.weight)).shape, one.tobytes()): name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    }
    weights = {item.name: item for item in program.graph.initializer}
    found: dict[str, str] = {}
    for node in program.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in weights:
            continue
        name: str | None = node.input[1].removeprefix("network.").removesuffix(".weight")
        if node.op_type == "MatMul":
            weight = numpy_helper.to_array(weights[node.input[1]])
            name = linear.get((*weight.shape, weight.tobytes()))
        if name is not None:
            found[node.name] = name
    return found


def _turned(weight: torch.Tensor) -> NDArray[np.float32]:
    turned: NDArray[np.float32] = np.ascontiguousarray(weight.detach().numpy().T)
    return turned


def _quantised_nodes(program: onnx.ModelProto, int8: Collection[str], layers: Collection[str]) -> set[str]:
    """Names of the nodes in INT8: those layers, and what stands between them."""
    nodes = list(program.graph.node)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    # From the layers on: what is before the network, and what comes of its scores, is not looked at.
    reached = {name for node in nodes if node.name in layers for name in node.output}
    chosen = set(int8)
    convolved = {node.output[0] for node in nodes if node.name in int8 and node.op_type == "Conv"}
    for node in nodes:
        follows = any(name in reached for name in node.input)
        if node.name not in layers and follows and node.op_type in (*_QUANTISED, "Add", "AveragePool"):
            reached.update(node.output)
            users = [user for user in readers.get(node.output[0], []) if user.op_type != "Shape"]
            if node.op_type not in _QUANTISED or node.op_type in _LAYERS:
                continue
            # A ReLU goes with its convolution, whose output would else be rounded with a sign.
            with_it = node.op_type == "Relu" and node.input[0] in convolved
            if with_it or any(_leads_to(user, readers, int8) for user in users):
                chosen.add(node.name)
    return chosen


def _leads_to(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], int8: Collection[str]) -> bool:
    """Whether a node, or what passes its values on, is a layer in INT8."""
    if node.op_type in _LAYERS:
        return node.name in int8
    if node.op_type not in _QUANTISED:
        return False
    return any(_leads_to(user, readers, int8) for user in readers.get(node.output[0], []))


def _spare_sums(program: onnx.ModelProto) -> None:
    """Let sums read what a layer in FP32 gives before it is rounded: that costs nothing, for nothing was fused there."""
    made_by = {name: node for node in program.graph.node for name in node.output}
    for node in program.graph.node:
        if node.op_type != "Add":
            continue
        for position, name in enumerate(node.input):
            exact = _before_rounding(name, made_by)
            layer = made_by.get(exact or "")
            if layer is not None and layer.op_type == "Relu":
                layer = made_by.get(layer.input[0])
            # A convolution in INT8 has its weights from a DequantizeLinear.
            if exact is not None and layer is not None and layer.op_type == "Conv" and layer.input[1] not in made_by:
                node.input[position] = exact


def _before_rounding(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str | None:
    back = made_by.get(name)
    forth = made_by.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
    return forth.input[0] if forth is not None and forth.op_type == "QuantizeLinear" else None


def _tensors(program: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """Names of the tensors that are rounded."""
    weights = {item.name for item in program.graph.initializer}
    names: dict[str, None] = {}
    for node in program.graph.node:
        if node.name in nodes:
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            outputs = () if node.op_type in _LINEAR else node.output
            names |= dict.fromkeys(name for name in (*inputs, *outputs) if name and name not in weights)
    return list(names)


def _ranges(
    program: onnx.ModelProto, tensors: list[str], frames: Iterable[Frame], method: Method
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The smallest and largest value of each tensor that INT8 keeps."""
    session = _sampling_session(program, tensors)
    histograms = {name: Histograms() for name in tensors}
    least = dict.fromkeys(tensors, 0.0)
    for frame in frames:
        samples = session.run([_sample(name) for name in tensors], {"frames": frame.input_hwc[None]})
        for name, sample in zip(tensors, samples, strict=True):
            smallest, largest, some = float(sample[0]), float(sample[1]), torch.from_numpy(sample[2:])
            histograms[name].add(some.view(1, 1, 1, -1), torch.tensor([max(-smallest, largest)]))
            least[name] = min(least[name], smallest)
    ranges = {}
    for name in tensors:
        signed = least[name] < 0
        limit = histograms[name].range(method, levels=LEVELS if signed else _UNSIGNED_LEVELS)
        ranges[name] = np.asarray(-limit if signed else 0.0, np.float32), np.asarray(limit, np.float32)
    return ranges


def _sampling_session(program: onnx.ModelProto, tensors: Iterable[str]) -> onnxruntime.InferenceSession:
    """The program with some values of every tensor at its output, so that memory does not hold all of them at once."""
    sampling = onnx.ModelProto()
    sampling.CopyFrom(program)
    graph = sampling.graph
    constants = {"flat": [-1], "start": [0], "end": [np.iinfo(np.int64).max], "axis": [0], "every": [_EVERY]}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.int64), f"sampling.{key}") for key, value in constants.items()
    )
    for name in tensors:
        part = f"{_sample(name)}."
        graph.node.extend(
            (
                helper.make_node("Reshape", [name, "sampling.flat"], [f"{part}flat"]),
                helper.make_node("ReduceMin", [f"{part}flat"], [f"{part}min"]),
                helper.make_node("ReduceMax", [f"{part}flat"], [f"{part}max"]),
                helper.make_node(
                    "Slice",
                    [f"{part}flat", *(f"sampling.{key}" for key in ("start", "end", "axis", "every"))],
                    [f"{part}some"],
                ),
                helper.make_node("Concat", [f"{part}min", f"{part}max", f"{part}some"], [_sample(name)], axis=0),
            )
        )
        graph.output.append(helper.make_tensor_value_info(_sample(name), TensorProto.FLOAT, [None]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As they are: fused, some tensors would not exist.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(sampling.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _sample(name: str) -> str:
    return f"sampling.{name}"
