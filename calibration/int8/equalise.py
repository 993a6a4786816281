"""Channels of similar reach, exactly and at no cost: what a layer makes larger, all layers that read it take smaller.

A tensor has one INT8 scale, so a channel that stays far below the largest one keeps only a few levels. ReLU, pooling, resizing and
concatenation let a factor of a channel through, so it can be put into the weights before and taken out of the weights behind. Which
layers share a channel is read from the graph that PyTorch exports. Beside layers, normalizations and constants take factors in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.inference_form import Scores

# Operators that let a positive factor of a channel through: pointwise; over the picture's axes; of two tensors with the same factors.
_POINTWISE = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "abs", "dropout", "dropout_", "identity", "contiguous", "clone",
    "detach", "alias", "to", "_to_copy",
}  # fmt: skip
_OVER_PICTURE = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d",
    "upsample_nearest_exact2d", "upsample_bicubic2d",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax"}
_SUMS = {"add", "add_", "sub", "maximum", "minimum"}
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"}
_LAYERS = {"conv2d", "conv_transpose2d", "linear"}
_LINEAR = {*_OVER_PICTURE, *_RESHAPES, "add", "add_", "cat", "permute", "transpose", "contiguous", "clone", "pad", "to", "_to_copy"} - {
    "max_pool2d", "adaptive_max_pool2d"
}  # fmt: skip
# Where the weight and the bias of a normalization are among its arguments.
_NORMS = {"batch_norm": 1, "instance_norm": 1, "layer_norm": 2, "group_norm": 2}
# A channel that is nearly always zero must not be blown up: what counts is at least this share of its tensor.
_LEAST_REACH = 0.003
# How far below the value at which it is clipped a channel must stay: frames that nobody has seen yet give larger values.
_HEADROOM = 1.1
_FIXED = 0

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Factors:
    """What a layer's weights, or a constant that channels are multiplied with or shifted by, are multiplied by.

    Attributes:
        outputs: (K,) float32, by output channel; a layer's bias too.
        inputs: (C,) float32, what input channels arrive multiplied by; weights are divided by them.
    """

    outputs: Tensor
    inputs: Tensor

    def apply(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
        """Put them into a layer's weights, in place."""
        weight, groups = layer.weight.data, getattr(layer, "groups", 1)
        places = [1] * (weight.ndim - 2)
        if isinstance(layer, nn.ConvTranspose2d):  # (C, K of a group, kernel)
            outputs = self.outputs.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
            inputs = self.inputs.view(-1, 1)
        else:  # (K, C of a group, kernel)
            outputs = self.outputs.view(-1, 1)
            inputs = self.inputs.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        layer.weight.data = weight * outputs.view(*outputs.shape, *places) / inputs.view(*inputs.shape, *places)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data * self.outputs

    def applied(self, constant: Tensor) -> Tensor:
        """A constant of one value for each channel with them in."""
        return constant * (self.outputs / self.inputs).view(constant.shape)


@dataclass(frozen=True)
class _Channels:
    """Which factors a tensor's channels carry, and on which of its axes they are."""

    ids: Ids
    axis: int


@dataclass(frozen=True)
class _Clip:
    """Channels that are cut off at a value, right behind a layer."""

    layer: str
    ids: Ids
    limit: float


class ChannelGraph:
    """Which channels of a network carry the same factor, and which layers are at its ends.

    Args:
        network: in evaluation mode, batch normalizations folded; its ``logits`` are traced, not computed.
        input_shape: (1, C, h, w).

    Attributes:
        first_layers: names of those that read the picture, and nothing that another layer gave.
        last_layers: names of those that give the scores: the output is reached from them without another layer, or through linear
            steps and layers of scores, and they have no more channels than it.
        clipped_layers: names of those whose output is cut off at a value: ``factors`` wants to know how far it reaches.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> None:
        self._parents: list[int] = [_FIXED]
        self._inputs: dict[str, Ids] = {}
        self._outputs: dict[str, Ids] = {}
        self._clips: list[_Clip] = []
        with torch.no_grad():
            program = torch.export.export(Scores(network), (torch.zeros(input_shape),), strict=False)
        signature = program.graph_signature
        self._parameters = {name: _of_network(target) for name, target in signature.inputs_to_parameters.items()}
        self._constants = {name: _of_network(target) for name, target in signature.inputs_to_buffers.items()}
        self._layers: dict[torch.fx.Node, str] = {}  # by node, for layers of the network that run once
        self._channels: dict[torch.fx.Node, _Channels | Sequence[_Channels]] = {}  # none: all factors are 1
        for node in program.graph.nodes:
            if node.op == "call_function":
                traced = self._trace(node)
                if traced is not None:
                    self._channels[node] = traced
            elif node.op == "output":
                self._fix(node.all_input_nodes)
        self.first_layers = self._first(program.graph, signature.user_inputs)
        self.last_layers = self._last(program.graph)
        self.clipped_layers = {clip.layer for clip in self._clips}

    def factors(
        self, reach: Mapping[str, Tensor], power: float, peaks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Factors]:
        """What every layer and constant is multiplied by.

        Args:
            reach: by layer, (C,) the largest absolute value of each input channel; layers that stay out of INT8 need none.
            power: 0 changes nothing, 1 makes all channels reach equally far.
            peaks: by clipped layer, (K,) the largest value of each output channel; without them those are left.

        Returns:
            By name; layers that are not in the graph have none.
        """
        largest = np.zeros(len(self._parents))
        for name, channels in self._inputs.items():
            if name in reach:
                values = reach[name].double().numpy()
                np.maximum.at(largest, self._roots(channels), np.maximum(values, _LEAST_REACH * values.max()))
        known = largest > 0
        known[self._root(_FIXED)] = False
        limits, most = np.full(len(largest), np.inf), np.full(len(largest), np.inf)
        for clip in self._clips:
            roots = self._roots(clip.ids)
            peak = (peaks or {}).get(clip.layer)
            room = (
                np.zeros(len(roots))
                if peak is None
                else clip.limit / np.maximum(_HEADROOM * peak.double().numpy(), 1e-30)
            )
            np.minimum.at(limits, roots, clip.limit)
            np.minimum.at(most, roots, room)
        known[most <= 1] = False
        factor = np.ones(len(largest))
        if known.any():
            free = known & np.isinf(limits)
            # Below a clip channels are brought up to it: some reach it, and cannot be moved.
            wanted = np.where(np.isinf(limits), np.median(largest[free]) if free.any() else 1.0, limits)
            factor[known] = np.minimum((largest[known] / wanted[known]) ** -power, most[known])
        return {
            name: Factors(
                *(
                    torch.from_numpy(factor[self._roots(channels)].astype(np.float32))
                    for channels in (self._outputs[name], self._inputs[name])
                )
            )
            for name in self._inputs
        }

    def _trace(self, node: torch.fx.Node) -> _Channels | Sequence[_Channels] | None:
        operator = _operator(node)
        if operator in _LAYERS:
            return self._layer(node)
        read = [self._channels[other] for other in node.all_input_nodes if other in self._channels]
        if not read:
            return self._made_by_norm(node) if operator in _NORMS else None
        if operator == "getitem" and not isinstance(read[0], _Channels):
            part: Any = node.args[1]
            chosen: _Channels = read[0][part]
            return chosen
        passed = self._passed(node, operator, read) if all(isinstance(one, _Channels) for one in read) else None
        if passed is None:
            self._fix(node.all_input_nodes)
            return self._made_by_norm(node) if operator in _NORMS else None
        return passed

    def _passed(
        self, node: torch.fx.Node, operator: str, read: Sequence[Any]
    ) -> _Channels | Sequence[_Channels] | None:
        """What is let through of the factors; None if nothing is."""
        x, shape = read[0], _shape(node)
        if operator == "cat":
            return self._concatenated(node)
        if operator in ("split", "split_with_sizes", "chunk"):
            return self._parts(node, x)
        if operator in ("clamp", "clamp_", "hardtanh", "hardtanh_", "relu6", "relu6_"):
            return self._clipped(node, x)
        if operator in _SUMS and len(read) == 2:
            same = [len(one.ids) for one in read] == [shape[x.axis]] * 2 and x.axis == read[1].axis
            return self._joined(*read) if same and len({len(_shape(n)) for n in node.all_input_nodes}) == 1 else None
        if operator in (*_SUMS, "mul", "mul_", "div", "div_") and len(read) == 1:
            return self._with_constant(node, operator, x)
        if len(read) != 1:
            return None
        if (
            operator in _POINTWISE
            or (operator in _OVER_PICTURE and x.axis == 1)
            or (operator == "pad" and _pads_with_zeros(node))
        ):
            return x if len(shape) > x.axis and shape[x.axis] == len(x.ids) else None
        return _moved(node, operator, x)

    def _layer(self, node: torch.fx.Node) -> _Channels | None:
        operator = _operator(node)
        source, weight = node.all_input_nodes[0], node.args[1]
        x = self._channels.get(source)
        shape = _shape(node)
        axis = len(shape) - 1 if operator == "linear" else 1
        name = self._parameters.get(weight.name, "").removesuffix(".weight")  # type: ignore[union-attr]
        fits = x is None or (isinstance(x, _Channels) and x.axis == axis)
        twice = name in self._layers.values()  # it serves two masters
        if not name or twice or not fits:
            self._fix([source])
        if not name or twice:
            for ids in (self._inputs.pop(name, None), self._outputs.pop(name, None)):
                self._fix_ids([] if ids is None else ids)
            self._layers |= {node: name} if name else {}
            return None
        self._layers[node] = name
        count = _shape(source)[axis]
        read = x.ids if isinstance(x, _Channels) and fits else np.zeros(count, np.int64)
        return self._make(name, read, shape[axis], axis)

    def _make(self, name: str, read: Ids, count: int, axis: int) -> _Channels:
        made = np.arange(len(self._parents), len(self._parents) + count)
        self._parents.extend(int(one) for one in made)
        self._inputs[name], self._outputs[name] = read, made
        return _Channels(made, axis)

    def _made_by_norm(self, node: torch.fx.Node) -> _Channels | None:
        """Channels with the factors that a normalization's weight and bias take in."""
        shape, start = _shape(node), _NORMS[_operator(node)]
        given = [*node.args, *[None] * 4][start : start + 2]
        axis = len(shape) - 1 if _operator(node) == "layer_norm" else 1
        names = [self._own_constant(one, shape[axis]) for one in given]
        if None in names:
            return None
        made = self._make(str(names[0]), np.zeros(shape[axis], np.int64), shape[axis], axis)
        self._inputs[str(names[1])], self._outputs[str(names[1])] = self._inputs[str(names[0])], made.ids
        return made

    def _with_constant(self, node: torch.fx.Node, operator: str, x: _Channels) -> _Channels | None:
        """A sum or product with a number or a tensor whose factors are 1."""
        shape = _shape(node)
        args: Any = node.args
        others = [part for part in args if self._channels.get(part) is not x]
        if (
            len(others) != 1
            or len(shape) <= x.axis
            or shape[x.axis] != len(x.ids)
            or x.axis != _axis_in(node, x, self._channels)
        ):
            return None
        name = self._own_constant(others[0], len(x.ids))
        if name is not None and _lies_on(_shape(others[0]), x.axis, len(shape)):
            if operator in ("mul", "mul_"):
                return self._make(name, x.ids, len(x.ids), x.axis)
            if operator in ("add", "add_", "sub") and node.args[0] is not others[0]:
                self._inputs[name], self._outputs[name] = np.zeros(len(x.ids), np.int64), x.ids
                return x
        if operator in ("mul", "mul_") or (operator in ("div", "div_") and node.args[1] is others[0]):
            return x
        return None

    def _clipped(self, node: torch.fx.Node, x: _Channels) -> _Channels | None:
        low, high = (0.0, 6.0) if "relu6" in _operator(node) else ([*node.args[1:], None, None])[:2]
        low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
        layer = self._layers.get(node.all_input_nodes[0])
        if low != 0 or len(node.all_input_nodes) != 1:
            return None
        if high is not None:
            if layer is None or layer not in self._outputs or not isinstance(high, (int, float)) or high <= 0:
                return None
            self._clips.append(_Clip(layer, x.ids, float(high)))
        return x

    def _concatenated(self, node: torch.fx.Node) -> _Channels | None:
        parts: Any = node.args[0]
        axis = int(_dimension(node)) % len(_shape(node))
        tracked = [self._channels.get(part) for part in parts]
        if any(one is not None and one.axis != axis for one in tracked):  # type: ignore[union-attr]
            return None
        ids = [
            np.zeros(_shape(part)[axis], np.int64) if one is None else one.ids  # type: ignore[union-attr]
            for part, one in zip(parts, tracked, strict=True)
        ]
        return _Channels(np.concatenate(ids), axis)

    def _parts(self, node: torch.fx.Node, x: _Channels) -> Sequence[_Channels] | None:
        axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        values: Any = node.meta["val"]
        if int(axis) % len(values[0].shape) != x.axis:
            return [x] * len(values)
        ends = list(accumulate(value.shape[x.axis] for value in values))
        return [_Channels(x.ids[start:end], x.axis) for start, end in zip([0, *ends], ends, strict=False)]

    def _joined(self, first: _Channels, second: _Channels) -> _Channels:
        for one, other in zip(first.ids, second.ids, strict=True):
            self._join(int(one), int(other))
        return first

    def _own_constant(self, node: Any, count: int) -> str | None:
        """The name of a constant of one value for each channel that nothing else reads."""
        name = self._constants.get(getattr(node, "name", ""))
        alone = name is not None and len(node.users) == 1 and prod(_shape(node)) == count
        return name if alone and name not in self._inputs else None

    def _first(self, graph: torch.fx.Graph, inputs: Sequence[Any]) -> tuple[str, ...]:
        from_picture: set[torch.fx.Node] = set()
        from_layer: set[torch.fx.Node] = set()
        for node in graph.nodes:
            before = set(node.all_input_nodes)
            if before & (from_layer | self._layers.keys()):
                from_layer.add(node)
            elif node.name in inputs or before & from_picture:
                from_picture.add(node)
        return tuple(name for node, name in self._layers.items() if node in from_picture)

    def _last(self, graph: torch.fx.Graph) -> tuple[str, ...]:
        found = _nearest([node for node in graph.nodes if node.op == "output"], self._layers)
        scores = max((len(self._outputs.get(self._layers[node], ())) for node in found), default=0)
        waiting = list(found)
        while waiting:
            before = _nearest([waiting.pop()], self._layers, through=_LINEAR)
            new = [
                node
                for node in before
                if node not in found and len(self._outputs.get(self._layers[node], ())) <= scores
            ]
            found += new
            waiting += new
        return tuple(dict.fromkeys(self._layers[node] for node in graph.nodes if node in found))

    def _fix(self, nodes: Iterable[torch.fx.Node]) -> None:
        for node in nodes:
            channels = self._channels.get(node, ())
            for one in (channels,) if isinstance(channels, _Channels) else channels:
                self._fix_ids(one.ids)

    def _fix_ids(self, ids: Iterable[Any]) -> None:
        for one in ids:
            self._join(_FIXED, int(one))

    def _join(self, first: int, second: int) -> None:
        self._parents[self._root(second)] = self._root(first)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def _roots(self, channels: Ids) -> Ids:
        return np.asarray([self._root(int(channel)) for channel in channels], np.int64)


def _nearest(
    start: Iterable[torch.fx.Node], layers: Mapping[torch.fx.Node, str], through: Iterable[str] | None = None
) -> list[torch.fx.Node]:
    """The layers that steps read without another one between; through some operators alone, or through all."""
    waiting = [near for node in start for near in node.all_input_nodes]
    seen: dict[torch.fx.Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        if node not in layers and (through is None or _operator(node) in through):
            waiting.extend(node.all_input_nodes)
    return [node for node in seen if node in layers]


def _moved(node: torch.fx.Node, operator: str, x: _Channels) -> _Channels | None:
    """Channels behind a step that moves them, takes some of them, or works along other axes."""
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    args: Any = node.args
    if operator == "permute":
        return _Channels(x.ids, [one % len(before) for one in args[1]].index(x.axis))
    if operator == "transpose":
        pair = [one % len(before) for one in args[1:3]]
        return _Channels(x.ids, pair[1 - pair.index(x.axis)] if x.axis in pair else x.axis)
    if operator == "slice":
        given: list[Any] = list(args[1:])
        axis, start, end, step = given + [0, 0, 2**62, 1][len(given) :]
        return _Channels(x.ids[start:end:step], x.axis) if axis % len(before) == x.axis else x
    if operator in _RESHAPES:
        front = prod(before[: x.axis])
        axes = [axis for axis, side in enumerate(after) if side == len(x.ids) and prod(after[:axis]) == front]
        return _Channels(x.ids, axes[0]) if axes else None
    if operator in _REDUCTIONS and len(args) > 1:
        over = sorted(one % len(before) for one in (args[1] if isinstance(args[1], (list, tuple)) else [args[1]]))
        if x.axis in over:
            return None
        gone = 0 if len(after) == len(before) else sum(one < x.axis for one in over)
        return _Channels(x.ids, x.axis - gone)
    return None


def _axis_in(node: torch.fx.Node, x: _Channels, channels: Mapping[torch.fx.Node, Any]) -> int:
    """Where an operand's axis of channels is in what comes out, which may have more axes in front."""
    (source,) = {one for one in node.all_input_nodes if channels.get(one) is x}
    return x.axis + len(_shape(node)) - len(_shape(source))


def _lies_on(shape: Sequence[int], axis: int, rank: int) -> bool:
    """Whether a constant of that shape lies along an axis of a tensor with so many, when both are added."""
    full = [*[1] * (rank - len(shape)), *shape]
    return all(side == 1 for position, side in enumerate(full) if position != axis)


def _operator(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").partition(".")[0]


def _of_network(target: str) -> str:
    return target.removeprefix("network.")


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(getattr(getattr(node, "meta", {}).get("val"), "shape", ()))


def _pads_with_zeros(node: torch.fx.Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode == "constant" and not value


def _dimension(node: torch.fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def equalise(network: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Put factors into the weights of a network's layers and into its constants, in place."""
    constants = dict(network.named_buffers())
    for name, one in factors.items():
        if name in constants:
            holder = network.get_submodule(name.rpartition(".")[0])
            setattr(holder, name.rpartition(".")[2], one.applied(constants[name]))
        else:
            one.apply(network.get_submodule(name))  # type: ignore[arg-type]
