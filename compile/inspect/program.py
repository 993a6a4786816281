"""The layers of a frame program as ONNX has them: precision, shape, weights and work, without a GPU and without running it.

Nothing but the program's own file is read: weights that it keeps in other files are counted by their shape and left where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from compile.inspect.graph import Scope, Shape, Weight, drop_data, inner_graphs, is_number, precision_name, shape_of
from pipeline.errors import CompileError

# Inputs that hold what was trained, by operation: from the first of these on.
_WEIGHTS_FROM = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "LayerNormalization": 1,
    "GroupNormalization": 1,
    "PRelu": 1,
    "MatMul": 0,
    "Add": 0,
    "Mul": 0,
}
_MULTIPLY = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_ONNX = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Layer:
    """A node of the program.

    Attributes:
        name: of the module that it was in the trained network, if it has weights; else the node's.
        node: the node's own name.
        operation: such as "Conv".
        precision: what it computes in: "int8" where its input and its weights come out of INT8, else the type of its output.
        output_shape: of its first output; None if even the number of axes is unknown.
        parameters: how many numbers it was trained with, biases too.
        weight_bytes: what they take in the file.
        multiply_accumulates: for one frame; None if a length that they depend on is unknown.
    """

    name: str
    node: str
    operation: str
    precision: str
    output_shape: Shape | None
    parameters: int
    weight_bytes: int
    multiply_accumulates: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """Layers that have something in common; weights that several layers use are counted once.

    Attributes:
        name: what they have in common.
        layers: how many.
        parameters: as in ``Layer``.
        weight_bytes: as in ``Layer``.
        multiply_accumulates: of those that are known.
        unknown: layers whose multiply-accumulates are not.
    """

    name: str
    layers: int
    parameters: int
    weight_bytes: int
    multiply_accumulates: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Program:
    """What a frame program consists of.

    Attributes:
        opset: of ONNX.
        producer: what wrote it.
        batch: the name of the axis that counts frames, which the multiply-accumulates take for 1; None if it is fixed.
        layers: in the order in which they run; those of a loop or a branch behind it.
        total: all layers.
        operations: layers by operation, most work first.
        precisions: layers by precision, most work first.
        external: how many of its tensors are kept in other files, which no sha256 covers.
    """

    opset: int
    producer: str
    batch: str | None
    layers: tuple[Layer, ...]
    total: Share
    operations: tuple[Share, ...]
    precisions: tuple[Share, ...]
    external: int


def read_program(content: bytes) -> Program:
    """Look at a program.

    Args:
        content: of the file.

    Raises:
        CompileError: it is no ONNX program.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf has an error type of its own in each of its versions
        raise CompileError("expected an ONNX program, got other bytes: the file was changed or damaged") from error
    if not model.graph.node:
        raise CompileError("expected an ONNX program, got one without a layer: the file was changed or damaged")
    # Without weights the program is small: what infers shapes may copy it as it likes. Functions are not followed.
    external = drop_data(model.graph)
    del model.functions[:]
    first = [shape_of(value.type)[:1] for value in model.graph.input[:1]]
    batch = next((axis for axes in first for axis in axes if isinstance(axis, str)), None)
    found = list(_walk(_with_shapes(model).graph, Scope(), batch))
    return Program(
        opset=max((entry.version for entry in model.opset_import if entry.domain in _ONNX), default=0),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        batch=batch,
        layers=tuple(layer for layer, _ in found),
        total=_share("all", found),
        operations=_shares(found, [layer.operation for layer, _ in found]),
        precisions=_shares(found, [layer.precision for layer, _ in found]),
        external=external,
    )


def _walk(graph: Any, scope: Scope, batch: str | None) -> Iterator[tuple[Layer, list[Weight]]]:
    """The layers of a graph with their weights, and those of the graphs inside it."""
    scope.enter(graph)
    for node in graph.node:
        if node.op_type != "Constant":
            yield _layer(node, scope, batch)
        for inner in inner_graphs(node):
            yield from _walk(inner, scope.inside(), batch)


def _layer(node: Any, scope: Scope, batch: str | None) -> tuple[Layer, list[Weight]]:
    weights = _weights(node, scope)
    output = node.output[0] if node.output else ""
    dtype = scope.dtype(output)
    if node.op_type in _MULTIPLY and len(node.input) > 1:
        quantized = [scope.quantized(name) for name in node.input[:2]]
        if all(quantized):
            dtype = quantized[0]
    node_name = node.name or output
    layer = Layer(
        name=_module(weights[0].name) if weights and node.op_type not in ("Add", "Mul") else node_name,
        node=node_name,
        operation=node.op_type if node.domain in _ONNX else f"{node.domain}::{node.op_type}",
        precision=precision_name(dtype),
        output_shape=scope.shape(output),
        parameters=sum(tensor.size for tensor in weights),
        weight_bytes=sum(tensor.size_bytes for tensor in weights),
        multiply_accumulates=_multiply_accumulates(node, scope, batch),
    )
    return layer, weights


def _weights(node: Any, scope: Scope) -> list[Weight]:
    first = _WEIGHTS_FROM.get(node.op_type)
    if first is None or node.domain not in _ONNX:
        return []
    found = [scope.weight(name) for name in node.input[first:] if name]
    tensors = [tensor for tensor in found if tensor is not None and is_number(tensor.dtype)]
    # A number alone is a scale of the program's own.
    return [tensor for tensor in tensors if first or tensor.size > 1]


def _multiply_accumulates(node: Any, scope: Scope, batch: str | None) -> int | None:
    """For one frame; 0 for an operation that has none to speak of."""
    if node.op_type not in _MULTIPLY or len(node.input) < 2 or not node.output:
        return 0
    left, right = scope.shape(node.input[0]), scope.shape(node.input[1])
    output = scope.shape(node.output[0])
    if node.op_type == "ConvTranspose":  # weights (in, out / groups, kernel…): each input meets all of its own
        return _product((*(left or (None,)), *(right or (None,))[1:]), batch)
    if node.op_type == "Conv":  # weights (out, in / groups, kernel…)
        return _product((*(output or (None,)), *(right or (None,))[1:]), batch)
    if not left or not right:
        return None
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = left[0] if node.op_type == "Gemm" and transposed else left[-1]
    return _product((*(output if output is not None else (None,)), inner), batch)


def _product(lengths: Sequence[int | str | None], batch: str | None) -> int | None:
    result = 1
    for length in lengths:
        if isinstance(length, int):
            result *= length
        elif length is None or length != batch:
            return None
    return result


def _with_shapes(model: Any) -> Any:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):  # what the program says of itself is all there is then
        return model


def _shares(found: Sequence[tuple[Layer, list[Weight]]], names: Sequence[str]) -> tuple[Share, ...]:
    groups: dict[str, list[tuple[Layer, list[Weight]]]] = {}
    for entry, name in zip(found, names, strict=True):
        groups.setdefault(name, []).append(entry)
    shares = [_share(name, entries) for name, entries in groups.items()]
    return tuple(sorted(shares, key=lambda share: (-share.multiply_accumulates, -share.parameters, -share.layers)))


def _share(name: str, found: Sequence[tuple[Layer, list[Weight]]]) -> Share:
    tensors = {tensor.name: tensor for _, weights in found for tensor in weights}.values()
    work = [layer.multiply_accumulates for layer, _ in found]
    return Share(
        name=name,
        layers=len(found),
        parameters=sum(tensor.size for tensor in tensors),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors),
        multiply_accumulates=sum(count for count in work if count is not None),
        unknown=sum(count is None for count in work),
    )


def _module(weight: str) -> str:
    """``network.outc.conv.layer.weight`` → ``outc.conv``, as the trained network calls it."""
    name = weight.removeprefix("network.").removeprefix("network/")
    return name.removesuffix(".weight").removesuffix(".layer")
