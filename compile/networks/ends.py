"""Both ends of a network in the one form: the layers next to the picture and next to the output, and what it makes of its scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from compile.networks.layered import LayeredNetwork, layered

ActivationKind = Literal["sigmoid", "softmax", "log_softmax", "argmax"]
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
}
_MOVES = (torch.permute, torch.reshape, torch.squeeze, torch.unsqueeze, torch.Tensor.to)
# Probabilities nearer to 0 or 1 than this are the same in a mask of 8 bits.
_NEAREST = 1e-4


@dataclass(frozen=True)
class Activation:
    """The last step of a network, if it makes something else of its scores.

    Attributes:
        kind: what it is.
        axis: over which axis of its input it works, counted from the front; None for a sigmoid.
        input_name: the step of the graph whose value it takes: the scores.
    """

    kind: ActivationKind
    axis: int | None
    input_name: str


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
    axis = None if kind == "sigmoid" else node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if axis is None and kind != "sigmoid":
        return None
    return Activation(kind, axis if axis is None else int(axis), node.args[0].name)


def without_activation(network: LayeredNetwork, activation: Activation) -> LayeredNetwork:
    """A network up to its scores; it shares its layers with the whole one. The channels stay where that has them."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(network.graph, copied)
    assert output is not None
    (cut,) = [made for node, made in copied.items() if node.name == activation.input_name]
    graph.output(_moved_behind(graph, cut, network.graph, activation))
    return layered(network, graph)


def outer_activation(network: LayeredNetwork, activation: Activation | None) -> OuterActivation | None:
    """The last activation, if it is the same when it is applied behind the network, over the channels on axis 1; else None."""
    if activation is None or activation.kind == "argmax":
        return None
    if activation.kind == "sigmoid":
        return "sigmoid"
    axis = activation.axis
    for move in reversed(_moves(network.graph)):
        if move.target is torch.permute:
            order = list(move.args[1])
            axis = order.index(axis % len(order)) if axis is not None else None
        elif move.target is not torch.Tensor.to:
            return None  # which axis is which is not known behind it
    return activation.kind if axis in (1, -3) else None


def with_logits(network: LayeredNetwork) -> LayeredNetwork:
    """A network of one class that gives probabilities, with their logits as its output; it shares its layers."""
    graph = fx.Graph()
    output = graph.graph_copy(network.graph, {})
    graph.output(graph.call_function(torch.logit, (output, _NEAREST)))
    return layered(network, graph)


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


def _moved_behind(graph: fx.Graph, cut: fx.Node, original: fx.Graph, activation: Activation) -> fx.Node:
    """Do to the scores what is done behind the activation with the order of their axes."""
    if activation.kind == "argmax":
        if activation.axis in (1, -3):
            return cut
        order = [0, *[axis for axis in (1, 2, 3) if axis != activation.axis]]
        order.insert(1, activation.axis or 0)
        return graph.call_function(torch.permute, (cut, order))
    for move in reversed(_moves(original)):
        if move.target is torch.permute:
            cut = graph.call_function(torch.permute, (cut, move.args[1]))
        elif move.target is not torch.Tensor.to:
            cut = graph.call_function(move.target, (cut, *move.args[1:]), dict(move.kwargs))
    return cut
