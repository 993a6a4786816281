"""Both ends of a network in the one form: the layers next to the picture and next to the output, and what it makes of its scores."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from compile.networks.contract import OutputLayout
from compile.networks.decision import Decision, threshold
from compile.networks.layered import LayeredNetwork, layered

ActivationKind = Literal["sigmoid", "softmax", "log_softmax", "argmax", "threshold"]
OuterActivation = Literal["sigmoid", "softmax", "log_softmax"]

_ATEN = torch.ops.aten
_ACTIVATIONS: dict[Any, ActivationKind] = {
    torch.sigmoid: "sigmoid",
    torch.softmax: "softmax",
    torch.log_softmax: "log_softmax",
    torch.argmax: "argmax",
    _ATEN.sigmoid.default: "sigmoid",
    _ATEN.softmax.int: "softmax",
    _ATEN.log_softmax.int: "log_softmax",
    _ATEN.argmax.default: "argmax",
    _ATEN.gt.Scalar: "threshold",
    _ATEN.ge.Scalar: "threshold",
}
_PERMUTES = (torch.permute, _ATEN.permute.default)
_CASTS = (torch.Tensor.to, _ATEN.to.dtype, _ATEN._to_copy.default)
# They take a part of the values.
_SELECTS = (torch.select, operator.getitem, _ATEN.select.int, _ATEN.slice.Tensor)
_MOVES = (
    *_SELECTS,
    *(torch.reshape, torch.squeeze, torch.unsqueeze, *_PERMUTES, *_CASTS),
    *(_ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default),
)
# Probabilities nearer to 0 or 1 than this are the same in a mask of 8 bits.
_NEAREST = 1e-4


@dataclass(frozen=True)
class Activation:
    """The last step of a network, if it makes something else of its scores.

    Attributes:
        kind: what it is.
        axis: over which axis of its input it works, counted from the front; None for a sigmoid and a comparison.
        input_name: the step of the graph whose value it takes: the scores.
        number: what a comparison compares with.
    """

    kind: ActivationKind
    axis: int | None
    input_name: str
    number: float = 0.0


def first_layers(network: fx.GraphModule) -> tuple[str, ...]:
    """The layers that are reached from the picture without another layer, in the order in which they run."""
    return _nearest(network, [node for node in network.graph.nodes if node.op == "placeholder"], "users")


def layers_before(network: fx.GraphModule, steps: Iterable[fx.Node]) -> tuple[str, ...]:
    """The layers from which some steps are reached without another layer, in the order in which they run."""
    return _nearest(network, list(steps), "all_input_nodes")


def _nearest(
    network: fx.GraphModule, start: list[fx.Node], direction: Literal["all_input_nodes", "users"]
) -> tuple[str, ...]:
    seen: set[fx.Node] = set()
    while start:
        node = start.pop()
        if node not in seen:
            seen.add(node)
            if node.op != "call_module":
                start.extend(getattr(node, direction))
    return tuple(str(node.target) for node in network.graph.nodes if node in seen and node.op == "call_module")


def final_activation(network: fx.GraphModule) -> Activation | None:
    """What a network makes of its scores in the end, if nothing but the order and number of axes changes behind it."""
    node = _end(network.graph)
    while node.op == "call_function" and node.target in _MOVES:
        node = node.args[0]
    kind = _ACTIVATIONS.get(node.target) if node.op == "call_function" else None
    if kind is None:
        return None
    if kind == "threshold":
        return Activation(kind, None, node.args[0].name, float(node.args[1]))
    axis = None if kind == "sigmoid" else node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if axis is None and kind != "sigmoid":
        return None
    return Activation(kind, axis if axis is None else int(axis), node.args[0].name)


def without_activation(network: LayeredNetwork, activation: Activation) -> LayeredNetwork:
    """A network up to its scores; it shares its layers with the whole one. The channels stay where that has them."""
    graph, cut = _up_to(network, activation.input_name)
    graph.output(_moved_behind(graph, cut, network.graph))
    return layered(network, graph)


def _up_to(network: LayeredNetwork, step: str) -> tuple[fx.Graph, fx.Node]:
    """A copy of a network's graph without an output, and a step in it by its name."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(network.graph, copied)
    assert output is not None
    (found,) = [made for node, made in copied.items() if node.name == step]
    return graph, found


def outer_activation(network: LayeredNetwork, activation: Activation | None) -> OuterActivation | None:
    """The last activation, if it is the same when it is applied behind the network, over the channels on axis 1; else None."""
    if activation is None or activation.kind in ("argmax", "threshold"):
        return None
    if activation.kind == "sigmoid":
        return "sigmoid"
    axis = activation.axis
    for move in reversed(_moves(network.graph)):
        if move.target in _PERMUTES:
            order = list(move.args[1])
            axis = order.index(axis % len(order)) if axis is not None else None
        elif move.target not in _CASTS:
            return None  # which axis is which is not known behind it
    if axis not in (1, -3):
        return None
    return "softmax" if activation.kind == "softmax" else "log_softmax"


def without_decision(network: LayeredNetwork) -> tuple[LayeredNetwork, Decision | None]:
    """A network of ATen's operators without a decision at its end, which is given too; it shares its layers."""
    activation = final_activation(network)
    if activation is None or activation.kind not in ("argmax", "threshold"):
        return network, None
    if any(move.target in _SELECTS for move in _moves(network.graph)):
        return network, None
    if activation.kind == "argmax":
        graph, cut = _up_to(network, activation.input_name)
        graph.output(cut)
        return layered(network, graph), Decision("argmax", axis=activation.axis)
    (before,) = [node for node in network.graph.nodes if node.name == activation.input_name]
    is_behind = _ACTIVATIONS.get(before.target) == "sigmoid"
    decision = threshold(activation.number, behind_sigmoid=is_behind)
    if decision is None:
        return network, None
    graph, cut = _up_to(network, before.args[0].name if is_behind else before.name)
    graph.output(graph.call_function(operator.sub, (cut, decision.offset)) if decision.offset else cut)
    return layered(network, graph), decision


def with_channels_first(network: LayeredNetwork, layout: OutputLayout) -> LayeredNetwork:
    """A network whose output has the axes batch, channel, height and width; it shares its layers."""
    graph = fx.Graph()
    output: Any = graph.graph_copy(network.graph, {})
    order = [layout.index(axis) for axis in "nchw" if axis in layout]
    if order != sorted(order):
        output = graph.call_function(torch.permute, (output, order))
    for position, axis in enumerate("nchw"):
        if axis not in layout:
            output = graph.call_function(torch.unsqueeze, (output, position))
    graph.output(output)
    return layered(network, graph)


def channels_first(output: Tensor, layout: OutputLayout) -> Tensor:
    """A network's output with its axes in the order batch, channel, height and width; what is missing has one element."""
    output = output.permute([layout.index(axis) for axis in "nchw" if axis in layout])
    for position, axis in enumerate("nchw"):
        if axis not in layout:
            output = output.unsqueeze(position)
    return output


def with_head(network: LayeredNetwork, head: Callable[..., Tensor], *more: Any) -> LayeredNetwork:
    """A network with one more step, a function of its output and other arguments; it shares its layers."""
    graph = fx.Graph()
    output = graph.graph_copy(network.graph, {})
    graph.output(graph.call_function(head, (output, *more)))
    return layered(network, graph)


def logits_of(probabilities: Tensor) -> Tensor:
    """Logits of probabilities; those of 0 and 1 are finite."""
    return torch.logit(probabilities, _NEAREST)


def _end(graph: fx.Graph) -> Any:
    (end,) = [node for node in graph.nodes if node.op == "output"]
    return end.args[0]


def _moves(graph: fx.Graph) -> list[Any]:
    """What is done last with the order of axes, the last one first."""
    moves, node = [], _end(graph)
    while node.target in _MOVES:
        moves.append(node)
        node = node.args[0]
    return moves


def _moved_behind(graph: fx.Graph, cut: fx.Node, original: fx.Graph) -> fx.Node:
    """Do to the scores what is done behind the activation with the order of their axes."""
    for move in reversed(_moves(original)):
        if move.target not in _CASTS:
            cut = graph.call_function(move.target, (cut, *move.args[1:]), dict(move.kwargs))
    return cut
