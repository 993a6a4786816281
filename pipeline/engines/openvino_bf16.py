"""A program of FP32 or FP16 in BF16 but for what that would spoil, as OpenVINO computes it on CPUs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from pipeline.engines.openvino_library import load_openvino

operators = load_openvino().opset13

# What has weights: most of the work, and most of the rounding.
_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
# What passes values on between layers, and loses nothing that the layers around it keep. Norms, softmax and sums stay FP32.
_BETWEEN = (
    *("Add", "Multiply", "Subtract", "Relu", "PRelu", "Clamp", "HSwish", "Swish", "Gelu", "Sigmoid"),
    *("MaxPool", "AvgPool", "Interpolate", "Concat", "Split", "VariadicSplit", "Slice", "StridedSlice", "Pad"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze"),
)
# Inputs beyond the first one that are no values but say what is to be done with them.
_PARAMETERS_BEHIND = ("Interpolate", "Pad")


def in_bf16(program: Any, keep: Collection[str]) -> None:
    """Make a program compute in BF16 between the layers that read the picture and those that give the scores, which stay FP32.

    OpenVINO's own hint rounds everything, the picture and the masks too. With a hint for FP32 it leaves types as the program has them.

    Args:
        program: an ``openvino.Model`` in FP32 or FP16, changed in place.
        keep: layers that stay FP32 too, with what stands before them, by the names of their weights without ``.weight``.
    """
    _widen(program)
    nodes = program.get_ordered_ops()
    inner = _behind_layers(nodes) & _before_layers(nodes)
    layers = {node.get_friendly_name(): node for node in nodes if node.get_type_name() in _LAYERS}
    half = {name for name, node in layers.items() if name in inner and not _names(node) & set(keep)}
    exact = _kept_beside(nodes, layers.keys() - half)
    half |= {
        node.get_friendly_name()
        for node in nodes
        if node.get_friendly_name() in inner - exact and node.get_type_name() in _BETWEEN and _is_single(node.output(0))
    }
    _convert([node for node in nodes if node.get_friendly_name() in half], half)
    program.validate_nodes_and_infer_types()


def _widen(program: Any) -> None:
    """Make what is FP16 in a program FP32, which changes no weight."""
    for node in program.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Constant", "Convert") or node.get_output_element_type(0).get_type_name() != "f16":
            continue
        if kind == "Convert":
            node.set_attribute("destination_type", "f32")
            continue
        wide = operators.constant(node.data.astype(np.float32), name=node.get_friendly_name())
        node.output(0).replace(wide.output(0))
    program.validate_nodes_and_infer_types()


def _convert(nodes: list[Any], half: Collection[str]) -> None:
    """Convert what comes into a set of nodes to BF16, once each, and what leaves it to FP32."""
    converted: dict[tuple[str, int], Any] = {}
    for node in nodes:
        for index, source in enumerate(node.input_values()):
            giver = source.get_node().get_friendly_name()
            if giver in half or source not in _values(node):
                continue
            key = giver, source.get_index()
            if key not in converted:
                converted[key] = operators.convert(source, "bf16").output(0)
            node.input(index).replace_source_output(converted[key])
    for node in nodes:
        for output in node.outputs():
            outside = [one for one in output.get_target_inputs() if one.get_node().get_friendly_name() not in half]
            if outside:
                back = operators.convert(output, "f32").output(0)
                for one in outside:
                    one.replace_source_output(back)


def _values(node: Any) -> list[Any]:
    """The outputs that a node takes values of FP32 from."""
    sources = node.input_values()
    if node.get_type_name() in _PARAMETERS_BEHIND:
        sources = sources[:1]
    return [source for source in sources if _is_single(source)]


def _behind_layers(nodes: list[Any]) -> set[str]:
    """What takes something that a layer has given."""
    behind: set[str] = set()
    for node in nodes:
        givers = [source.get_node() for source in _values(node)]
        if any(one.get_type_name() in _LAYERS or one.get_friendly_name() in behind for one in givers):
            behind.add(node.get_friendly_name())
    return behind


def _before_layers(nodes: list[Any]) -> set[str]:
    """What gives something that a layer takes."""
    before: set[str] = set()
    for node in reversed(nodes):
        if node.get_type_name() in _LAYERS or node.get_friendly_name() in before:
            before |= {source.get_node().get_friendly_name() for source in _values(node)}
    return before


def _kept_beside(nodes: list[Any], layers: Collection[str]) -> set[str]:
    """Some layers with their biases, and all that stands between them and the layers before them."""
    kept = set(layers)
    for node in nodes:
        if _is_layer(node) and any(one.get_node().get_friendly_name() in layers for one in _values(node)):
            kept.add(node.get_friendly_name())
    for node in reversed(nodes):
        if node.get_friendly_name() in kept:
            givers = [one.get_node() for one in _values(node)]
            kept |= {one.get_friendly_name() for one in givers if not _is_layer(one)}
    return kept


def _is_layer(node: Any) -> bool:
    """Whether it is a layer, or adds its bias: rounded before that, what they give would be off by more."""
    if node.get_type_name() != "Add":
        return node.get_type_name() in _LAYERS
    givers = [one.get_node() for one in _values(node)]
    return any(one.get_type_name() in _LAYERS for one in givers) and any(map(_is_weight, givers))


def _is_weight(node: Any) -> bool:
    return bool(_origin(node).get_type_name() == "Constant")


def _origin(node: Any) -> Any:
    """What a value was before its form or type was changed."""
    while node.get_type_name() in ("Reshape", "Convert", "Transpose", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node


def _names(node: Any) -> set[str]:
    """What a layer may be called in the network that was compiled: in FP16 one stands in a module ``layer`` that converts for it."""
    weights = _origin(node.input_value(1).get_node())
    name = str(weights.get_friendly_name()).removeprefix("network.").removesuffix(".weight")
    return {name, name.removesuffix(".layer")}


def _is_single(output: Any) -> bool:
    return bool(output.get_element_type().get_type_name() == "f32")
