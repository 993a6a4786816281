"""Channels of similar reach, exactly and at no cost: what a layer makes larger, all layers that read it take smaller.

A tensor has one INT8 scale, so a channel that stays far below the largest one keeps only a few levels. ReLU, pooling, resizing and
concatenation let a factor of a channel through, so it can be put into the weights before and taken out of the weights behind. Which
layers share a channel is read from the graph that PyTorch exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.inference_form import Scores

# Operators that let a positive factor of a channel through.
_HOMOGENEOUS = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "max_pool2d", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d",
    "dropout", "dropout_", "identity", "contiguous", "clone", "detach", "alias", "to",
}  # fmt: skip
# A channel that is nearly always zero must not be blown up: what counts is at least this share of its tensor.
_LEAST_REACH = 0.003
_FIXED = 0


@dataclass(frozen=True)
class Factors:
    """What a convolution's weights are multiplied by.

    Attributes:
        outputs: (K,) float32, its output channels, and its bias.
        inputs: (C,) float32, what its input channels arrive multiplied by; its weights are divided by them.
    """

    outputs: Tensor
    inputs: Tensor

    def apply(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        """Put them into a layer's weights, in place."""
        outputs, inputs = self.outputs.view(-1, 1, 1, 1), self.inputs.view(1, -1, 1, 1)
        if isinstance(layer, nn.ConvTranspose2d):
            outputs, inputs = self.outputs.view(1, -1, 1, 1), self.inputs.view(-1, 1, 1, 1)
        layer.weight.data = layer.weight.data * outputs / inputs
        if layer.bias is not None:
            layer.bias.data = layer.bias.data * self.outputs


class ChannelGraph:
    """Which channels of a network carry the same factor.

    Args:
        network: in evaluation mode, batch normalizations folded; its ``logits`` are traced, not computed.
        input_shape: (1, C, h, w).
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> None:
        self._parents: list[int] = [_FIXED]
        self._inputs: dict[str, NDArray[np.int64]] = {}
        self._outputs: dict[str, NDArray[np.int64]] = {}
        with torch.no_grad():
            program = torch.export.export(Scores(network), (torch.zeros(input_shape),), strict=False)
        parameters = dict(program.graph_signature.inputs_to_parameters)
        channels: dict[torch.fx.Node, NDArray[np.int64]] = {}
        for node in program.graph.nodes:
            shape = _shape(node)
            if node.op == "placeholder" and len(shape) == 4 and node.name not in parameters:
                channels[node] = np.zeros(int(shape[1]), np.int64)
            elif node.op == "call_function":
                traced = self._trace(node, channels, parameters)
                if traced is not None and len(shape) > 1 and len(traced) == shape[1]:
                    channels[node] = traced
                elif traced is not None:  # its channels are not on axis 1, or not one to one
                    self._fix([traced])
            elif node.op == "output":
                self._fix(channels[read] for read in node.all_input_nodes if read in channels)

    def factors(self, reach: Mapping[str, Tensor], power: float) -> dict[str, Factors]:
        """What every layer is multiplied by.

        Args:
            reach: by layer, (C,) the largest absolute value of each input channel.
            power: 0 changes nothing, 1 makes all channels reach equally far.

        Returns:
            By the layer's name; layers that are not in the graph have none.
        """
        largest = np.zeros(len(self._parents))
        for name, channels in self._inputs.items():
            if name in reach:
                values = reach[name].double().numpy()
                np.maximum.at(largest, self._roots(channels), np.maximum(values, _LEAST_REACH * values.max()))
        known = largest > 0
        known[self._root(_FIXED)] = False
        factor = np.ones(len(largest))
        if known.any():
            factor[known] = (largest[known] / np.median(largest[known])) ** -power
        return {
            name: Factors(
                *(
                    torch.from_numpy(factor[self._roots(channels)].astype(np.float32))
                    for channels in (self._outputs[name], self._inputs[name])
                )
            )
            for name in self._inputs
        }

    def _trace(
        self, node: torch.fx.Node, channels: Mapping[torch.fx.Node, NDArray[np.int64]], parameters: Mapping[str, str]
    ) -> NDArray[np.int64] | None:
        read = [channels[other] for other in node.all_input_nodes if other in channels]
        shape = _shape(node)
        if not read:
            return None
        operator = str(node.target).removeprefix("aten.").partition(".")[0]
        if operator in ("conv2d", "conv_transpose2d"):
            return self._convolution(node, operator, read[0], int(shape[1]), parameters)
        if operator in _HOMOGENEOUS or (operator == "pad" and _pads_with_zeros(node)):
            return read[0]
        if operator == "cat" and _dimension(node) == 1:
            parts: Any = node.args[0]
            if all(part in channels for part in parts):
                return np.concatenate([channels[part] for part in parts])
        if operator in ("add", "add_") and len(read) == 2 and len(read[0]) == len(read[1]):
            for first, second in zip(*read, strict=True):
                self._join(int(first), int(second))
            return read[0]
        self._fix(read)
        return np.zeros(int(shape[1]), np.int64) if len(shape) == 4 else None

    def _convolution(
        self, node: torch.fx.Node, operator: str, read: NDArray[np.int64], count: int, parameters: Mapping[str, str]
    ) -> NDArray[np.int64]:
        weight: Any = node.args[1]
        name = parameters.get(weight.name, "").removeprefix("network.").removesuffix(".weight")
        # (x, weight, bias, stride, padding, dilation, groups); transposed has output_padding before groups, dilation behind.
        groups = node.args[6] if len(node.args) > 6 else 1
        if not name or groups != 1 or name in self._inputs:  # a layer that runs twice serves two masters
            self._fix([read, *(self._inputs.pop(name, None), self._outputs.pop(name, None))])
            return np.zeros(count, np.int64)
        made = np.arange(len(self._parents), len(self._parents) + count)
        self._parents.extend(int(one) for one in made)
        self._inputs[name], self._outputs[name] = read, made
        return made

    def _fix(self, tensors: Any) -> None:
        for channels in tensors:
            for channel in () if channels is None else channels:
                self._join(_FIXED, int(channel))

    def _join(self, first: int, second: int) -> None:
        self._parents[self._root(second)] = self._root(first)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def _roots(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([self._root(int(channel)) for channel in channels], np.int64)


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _pads_with_zeros(node: torch.fx.Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode == "constant" and not value


def _dimension(node: torch.fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def equalise(network: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Put factors into the weights of a network's layers, in place."""
    for name, one in factors.items():
        one.apply(network.get_submodule(name))  # type: ignore[arg-type]
