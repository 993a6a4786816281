"""Resizes by a number that is known, where the exporter writes a size that is computed from the batch at run time.

Inside the network only the batch is free, so each enlargement is by the same factor always. Said so, a runtime knows the shape: ONNX
Runtime then keeps its blocked layout through them, where it reordered all channels before and after each one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def with_constant_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give resizes of a known size, to a whole multiple of it, constant scales; changes and returns ``model``.

    Whole multiples alone, for a runtime computes the size from the scales again and rounds it down.

    Args:
        model: with the shapes of its values, as the exporter leaves them. Other resizes stay as they are.
    """
    graph = model.graph
    shapes_nchw = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    made: dict[tuple[int, int], str] = {}
    for node in graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
            continue
        factors_hw = _factors(shapes_nchw.get(node.input[0]), shapes_nchw.get(node.output[0]))
        if factors_hw is None or any(attribute.name == "axes" for attribute in node.attribute):
            continue
        if factors_hw not in made:
            name = made[factors_hw] = f"scales_{factors_hw[0]}x{factors_hw[1]}"
            scales = np.array([1, 1, *factors_hw], np.float32)
            graph.initializer.append(numpy_helper.from_array(scales, name))
        node.input[2] = made[factors_hw]
        del node.input[3:]
    if made:
        _remove_unused(graph)
    return model


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Sides of a value, 0 where one is free."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def _factors(before_nchw: list[int] | None, after_nchw: list[int] | None) -> tuple[int, int] | None:
    if before_nchw is None or after_nchw is None or not len(before_nchw) == len(after_nchw) == 4:
        return None
    sides = list(zip(before_nchw[2:], after_nchw[2:], strict=True))
    if before_nchw[1] != after_nchw[1] or not all(was and now and now % was == 0 for was, now in sides):
        return None
    return sides[0][1] // sides[0][0], sides[1][1] // sides[1][0]


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove what computed the sizes; from the end, so that what fed only removed nodes goes too."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed.update(node.input)
        for attribute in node.attribute:
            needed.update(name for inner in (attribute.g, *attribute.graphs) for name in _reads(inner))
    made = {name for node in kept for name in node.output}
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    values = [value for value in graph.value_info if value.name in made]
    for held, left in ((graph.node, kept[::-1]), (graph.initializer, constants), (graph.value_info, values)):
        del held[:]
        held.extend(left)


def _reads(graph: onnx.GraphProto) -> set[str]:
    """Names that a branch or a loop reads, its own among them."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _reads(inner)
    return names
