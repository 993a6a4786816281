"""The end of an ONNX graph: a decision that is left out, axes of one that are put back, and an activation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compile.networks.decision import Decision, threshold
from pipeline.errors import CompileError

# What changes neither the numbers nor their order behind a decision.
_PASSING = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
_GREATER, _LESS = ("Greater", "GreaterOrEqual"), ("Less", "LessOrEqual")
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax"}


def keep_output(model: onnx.ModelProto, output: str | None, path: Path) -> Decision | None:
    """Leave one output and what it is made from, in place, without a decision at its end and what takes the batch's axis away.

    Args:
        model: its nodes in order.
        output: name of the output; None for the first.
        path: the file, for a message.

    Returns:
        The decision that was left out; None where the output is none, or one that has to stay.

    Raises:
        CompileError: there is no such output.
    """
    graph = model.graph
    names = [value.name for value in graph.output]
    if not names:
        raise CompileError(f"{path}: expected a network with an output, got none")
    if output is not None and output not in names:
        raise CompileError(f"{path}: output: expected one of {', '.join(names)}, got {output!r}")
    kept = next(value for value in graph.output if value.name == (output or names[0]))
    # What the file says of shapes may be wrong, and ONNX Runtime would only warn.
    if kept.type.WhichOneof("value") == "tensor_type":
        kept.type.tensor_type.ClearField("shape")
    del graph.output[:]
    del graph.value_info[:]
    graph.output.append(kept)
    decision, name = _decision(graph, kept.name, _makers(graph))
    if decision is not None and decision.offset:
        graph.initializer.append(numpy_helper.from_array(_offset(model, name, decision.offset), f"{name}/offset"))
        graph.node.append(helper.make_node("Sub", [name, f"{name}/offset"], [f"{name}/decided"], name=f"{name}/decide"))
        name = f"{name}/decided"
    name = _with_batch(model, name)
    if name != kept.name:
        scores = onnx.ValueInfoProto(name=name)
        if kind := _element_type(model, name):
            scores.type.tensor_type.elem_type = kind
        del graph.output[:]
        graph.output.append(scores)
    _drop_unread(graph)
    return decision


def final_activation_of(model: onnx.ModelProto, output: str) -> str | None:
    """The activation that gives an output, "sigmoid", "softmax" or "log_softmax", whatever is done with its axes behind it."""
    makers = _makers(model.graph)
    node = makers.get(output)
    while node is not None and node.op_type in (*_PASSING, "Transpose", "Gather", "Slice"):
        node = makers.get(node.input[0])
    return None if node is None else _ACTIVATIONS.get(node.op_type)


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _decision(graph: onnx.GraphProto, name: str, makers: Mapping[str, onnx.NodeProto]) -> tuple[Decision | None, str]:
    """A decision that gives a value, and the value that it is made of."""
    node, start = makers.get(name), name
    while node is not None and node.op_type in _PASSING:
        name = node.input[0]
        node = makers.get(name)
    if node is None:
        return None, start
    if node.op_type == "ArgMax":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return Decision("argmax", axis=int(axis)), node.input[0]
    if node.op_type in ("Where", "Mul"):  # the numbers that stand for yes and no
        yes = _scaled(graph, node, makers)
        return (None, start) if yes is None else _if_found(_decision(graph, yes, makers), start)
    if node.op_type not in (*_GREATER, *_LESS):
        return None, start
    low, high = node.input if node.op_type in _LESS else reversed(node.input)
    number = _number(graph, low, makers)
    if number is None:
        return None, start
    before = makers.get(high)
    while before is not None and before.op_type in ("Identity", "Cast"):
        before = makers.get(before.input[0])
    is_behind = before is not None and before.op_type == "Sigmoid"
    decision = threshold(number, behind_sigmoid=is_behind)
    if decision is None:
        return None, start
    return decision, before.input[0] if is_behind and before is not None else high


def _if_found(found: tuple[Decision | None, str], start: str) -> tuple[Decision | None, str]:
    # Numbers made of an index are no decision that is known.
    return found if found[0] is not None and found[0].kind == "threshold" else (None, start)


def _scaled(graph: onnx.GraphProto, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The yes or no of which a node makes a larger and a smaller number; None if it does something else."""
    if node.op_type == "Where":
        yes, no = (_number(graph, name, makers) for name in node.input[1:])
        return str(node.input[0]) if yes is not None and no is not None and yes > no else None
    for value, factor in (node.input, reversed(node.input)):
        number = _number(graph, factor, makers)
        if number is not None and number > 0:
            return str(value)
    return None


def _number(graph: onnx.GraphProto, name: str, makers: Mapping[str, onnx.NodeProto]) -> float | None:
    """A constant of one element."""
    found = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    node = makers.get(name)
    if found is None and node is not None and node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name == "value":
                found = attribute.t
            elif attribute.name == "value_float":
                return float(attribute.f)
    if found is None or int(np.prod(found.dims)) != 1:
        return None
    return float(numpy_helper.to_array(found).reshape(-1)[0])


def _offset(model: onnx.ModelProto, name: str, offset: float) -> NDArray[np.generic]:
    kind = _element_type(model, name) or TensorProto.FLOAT
    return np.asarray(offset, helper.tensor_dtype_to_np_dtype(kind))


def _with_batch(model: onnx.ModelProto, name: str) -> str:
    """The value of 4 axes of which a node only takes axes of one element away; the name itself where there is none."""
    makers = _makers(model.graph)
    node = makers.get(name)
    if node is None or node.op_type not in ("Squeeze", "Gather", "Identity"):
        return name
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if axis != 0 or _number(model.graph, node.input[1], makers) != 0:
            return name
    if node.op_type == "Identity":
        return _with_batch(model, node.input[0])
    shape = _inferred(model, node.input[0])
    if shape is None or len(shape.dim) != 4 or (node.op_type == "Gather" and shape.dim[0].dim_value > 1):
        return name
    return str(node.input[0])


def _inferred(model: onnx.ModelProto, name: str) -> onnx.TensorShapeProto | None:
    value = _value(model, name)
    return value.type.tensor_type.shape if value is not None and value.type.tensor_type.HasField("shape") else None


def _element_type(model: onnx.ModelProto, name: str) -> int:
    """0 where it is not known."""
    value = _value(model, name)
    return 0 if value is None else int(value.type.tensor_type.elem_type)


def _value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto | None:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return next((value for value in (*graph.value_info, *graph.output, *graph.input) if value.name == name), None)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Leave one output, and what it is made from; nodes are in order."""
    needed = {graph.output[0].name}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            nodes.append(node)
    for field, items in (
        (graph.node, nodes[::-1]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
    ):
        del field[:]
        field.extend(items)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, from inside its branches too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in attribute_graphs(attribute):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            inner_reads = (name for inner in graph.node for name in reads(inner))
            yield from (name for name in (*inner_reads, *(value.name for value in graph.output)) if name not in own)


def attribute_graphs(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    """The graphs that an attribute holds."""
    return [attribute.g, *attribute.graphs] if attribute.HasField("g") else list(attribute.graphs)
