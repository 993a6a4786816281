"""The weights of a U²-Net out of an ONNX file in which batch normalization is folded, as it is published."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx, nn

from calibration.inference_form import convolutions_before_norms
from compile.networks.families import narrowest_u2net
from compile.networks.onnx_bounds import check_bounds, check_parses
from compile.networks.u2net import U2Net
from compile.networks.weights_file import read_first_bytes
from pipeline.errors import CheckpointError, CompileError, NotOurNetworkError

# A place in the graph: the name of the tensor there, or several that are joined on channels.
_Place = tuple[str, ...]
_NORM_EPS = 1e-5


class _OtherStructureError(Exception):
    """The graph is not U²-Net's; the message says where they part."""


def read_u2net_onnx(path: Path) -> tuple[dict[str, torch.Tensor], Literal["u2net-official", "u2net"]]:
    """Read the weights of a U²-Net exported to ONNX.

    The file's graph is compared with our own network's, operation by operation from the input on. So each convolution
    is found by what it reads, in whatever order the file has them, and a network that only looks similar is told apart.

    Args:
        path: A ``.onnx`` file with its weights inside.

    Returns:
        The weights by our names, float32, as U²-Net has them in training: a folded convolution's bias becomes the bias
        of a normalization that does nothing else. And the family: the authors' network and its re-implementation are
        the same graph, but the last layer keeps its name.

    Raises:
        NotOurNetworkError: The file is whole, but its graph is not a U²-Net with folded normalisation, or its weights are in
            other files.
        CheckpointError: The file is not there or is damaged.
        CompileError: It holds what no network has.
    """
    read_first_bytes(path)
    try:
        check_parses(path)
        model = onnx.load(path, load_external_data=False)
        check_bounds(model, path)
        graph = model.graph
    except CompileError:
        raise
    except Exception as error:  # protobuf's own error type, and onnx's checks
        raise CheckpointError(
            f"{path}: expected an ONNX file, got one that is cut short or damaged ({error}): copy or download it again"
        ) from error
    if not graph.node:
        raise CheckpointError(f"{path}: expected an ONNX file, got one without a graph: copy or download it again")
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute)]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise NotOurNetworkError(
            f"{path}: expected the weights of a U²-Net inside the file, got some in other files: take it as a foreign network"
        )
    ours = narrowest_u2net()
    try:
        convolutions = _match(ours, graph)
        weights = _weights(path, convolutions, graph, convolutions_before_norms(ours))
    except _OtherStructureError as error:
        raise NotOurNetworkError(
            f"{path}: expected the graph of a U²-Net with folded batch normalization, got another ({error}): "
            "take it as a foreign network"
        ) from error
    return weights, "u2net" if "out_conv" in convolutions["out_conv"].input[1] else "u2net-official"


def _match(ours: U2Net, graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Walk through our network and the file's graph side by side; names of our convolutions -> the file's nodes."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise _OtherStructureError(f"{len(inputs)} inputs")
    theirs = _by_operation(graph)
    modules: Mapping[str, nn.Module] = dict(ours.named_modules())
    convolutions: dict[str, onnx.NodeProto] = {}
    place: dict[fx.Node, _Place] = {}

    def step(operation: str, sources: _Place, name: str) -> onnx.NodeProto:
        node = theirs.pop((operation, tuple(sorted(sources)) if operation == "Add" else sources), None)
        if node is None:
            raise _OtherStructureError(f"no {operation} where {name} is")
        return node

    for node in fx.symbolic_trace(ours).graph.nodes:
        sources = [place[source] for source in node.all_input_nodes if source in place]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder":
            place[node] = (inputs[0],)
        elif isinstance(module, nn.Conv2d):
            name = str(node.target)
            convolutions[name] = step("Conv", sources[0], name)
            _check_convolution(name, module, convolutions[name])
            place[node] = (convolutions[name].output[0],)
        elif isinstance(module, nn.BatchNorm2d):
            place[node] = sources[0]
        elif isinstance(module, nn.ReLU):
            place[node] = (step("Relu", sources[0], str(node.target)).output[0],)
        elif isinstance(module, nn.MaxPool2d):
            place[node] = (step("MaxPool", sources[0], str(node.target)).output[0],)
        elif node.target is torch.cat:
            place[node] = tuple(name for source in sources for name in source)
        elif node.target is nn.functional.interpolate:
            place[node] = sources[0]
        elif node.target is operator.add:
            place[node] = (step("Add", sources[0] + sources[1], node.name).output[0],)
    left = sorted(node.name or node.output[0] for (operation, _), node in theirs.items() if operation == "Conv")
    if left:
        raise _OtherStructureError(f"{len(left)} more convolutions, the first is {left[0]}")
    return convolutions


def _by_operation(graph: onnx.GraphProto) -> dict[tuple[str, _Place], onnx.NodeProto]:
    """Key every operation on feature maps by its type and by what it reads, looking through resizing and joining."""
    place: dict[str, _Place] = {}
    operations: dict[tuple[str, _Place], onnx.NodeProto] = {}

    def at(tensor: str) -> _Place:
        return place.get(tensor, (tensor,))

    for node in graph.node:
        if not node.input or not node.output:
            continue
        if node.op_type == "Identity" or (node.op_type == "Resize" and _is_bilinear(node)):
            place[node.output[0]] = at(node.input[0])
        elif node.op_type == "Concat" and _attributes(node).get("axis") in (1, -3):
            place[node.output[0]] = tuple(name for tensor in node.input for name in at(tensor))
        elif node.op_type == "Add" and len(node.input) == 2:
            operations["Add", tuple(sorted(at(node.input[0]) + at(node.input[1])))] = node
        elif node.op_type in ("Conv", "Relu") or (node.op_type == "MaxPool" and _is_halving(node)):
            operations[node.op_type, at(node.input[0])] = node
    return operations


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_bilinear(node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    # The two are one rule, except where the output is one pixel wide.
    rule = attributes.get("coordinate_transformation_mode", b"half_pixel")
    return attributes.get("mode") == b"linear" and rule in (b"half_pixel", b"pytorch_half_pixel")


def _is_halving(node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    return (
        attributes.get("kernel_shape") == [2, 2]
        and attributes.get("strides") == [2, 2]
        and not any(attributes.get("pads", []))
    )


def _check_convolution(name: str, ours: nn.Conv2d, theirs: onnx.NodeProto) -> None:
    attributes = _attributes(theirs)
    padding, dilation = ours.padding, ours.dilation
    got = (
        attributes.get("pads", [0] * 4),
        attributes.get("dilations", [1, 1]),
        attributes.get("strides", [1, 1]),
        attributes.get("group", 1),
    )
    if got != ([*padding, *padding], [*dilation], [1, 1], 1):
        raise _OtherStructureError(f"other padding, dilation, stride or groups where {name} is")


def _weights(
    path: Path, convolutions: Mapping[str, onnx.NodeProto], graph: onnx.GraphProto, norms: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in (attributes := _attributes(node)):
            constants[node.output[0]] = attributes["value"]
    weights: dict[str, torch.Tensor] = {}
    for name, node in convolutions.items():
        if len(node.input) < 2 or not all(tensor in constants for tensor in node.input[1:]):
            raise _OtherStructureError(f"computed weights where {name} is")
        weight, *biases = (_float32(path, constants[tensor]) for tensor in node.input[1:])
        bias = biases[0] if biases else torch.zeros(weight.shape[:1])
        weights[f"{name}.weight"] = weight
        if name in norms:
            norm = norms[name]
            weights[f"{norm}.weight"], weights[f"{norm}.bias"] = torch.ones_like(bias), bias
            weights[f"{norm}.running_mean"] = torch.zeros_like(bias)
            # The normalization adds eps before it divides by the root: by 1 then.
            weights[f"{norm}.running_var"] = torch.full_like(bias, 1 - _NORM_EPS)
        else:
            weights[f"{name}.bias"] = bias
    return weights


def _float32(path: Path, tensor: onnx.TensorProto) -> torch.Tensor:
    try:
        values: NDArray[np.float32] = numpy_helper.to_array(tensor).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {tensor.name}: expected {list(tensor.dims)} numbers, got others ({error}): "
            "copy or download it again"
        ) from error
    return torch.from_numpy(values)
