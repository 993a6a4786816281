"""Layers in INT8 as PyTorch modules, which compute here exactly what the exported program computes: Q/DQ, explicit and symmetric.

Activations have one scale for each tensor, weights one for each output channel; zero is zero. The exporter writes QuantizeLinear and
DequantizeLinear for them, which is what TensorRT builds INT8 from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset19 as op
from torch import Tensor, nn

from calibration.int8.ranges import LEVELS
from calibration.int8.rounding import SMALLEST_SCALE, round_weights, weight_scales

OPSET = 19
"""The first with FP16 scales."""


@torch.library.custom_op("edgemask::round_to_int8", mutates_args=())
def _round_to_int8(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (x / scale).round().clamp(-LEVELS - 1, LEVELS).mul(scale).to(x.dtype)


@torch.library.custom_op("edgemask::from_int8", mutates_args=())
def _from_int8(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return weight.to(scale.dtype) * scale.view(-1, *[1] * (weight.ndim - 1))


@_round_to_int8.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(x)


@_from_int8.register_fake
def _(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty(weight.shape, dtype=scale.dtype, device=weight.device)


def _round_to_int8_in_onnx(x: Any, scale: Any, zero: Any) -> Any:
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)


def _from_int8_in_onnx(weight: Any, scale: Any, zero: Any) -> Any:
    return op.DequantizeLinear(weight, scale, zero, axis=0)


IN_ONNX: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.edgemask.round_to_int8.default: _round_to_int8_in_onnx,
    torch.ops.edgemask.from_int8.default: _from_int8_in_onnx,
}
"""How the exporter writes these operators."""


Quantizable = nn.Conv2d | nn.Linear


def channel_axis(layer: nn.Module) -> int:
    """Which axis of what a layer takes and gives is its channels."""
    return -1 if isinstance(layer, nn.Linear) else 1


class QuantizedLayer(nn.Module):
    """A convolution or a linear layer in INT8.

    Args:
        layer: with FP32 weights; not changed.
        input_range: the absolute value of the input that becomes 127.
        dtype: of scales, bias, output and of the narrow layer: float32, or float16 for a program that is FP16 elsewhere.
        exact: input channels that stay out of INT8, in a narrow layer of their own: those whose values or weights are so
            large that one scale for all would leave nothing of the others, or on which the masks depend most.
        rounded: the other channels' weights as (levels, scales), (K, columns) int8 and (K,) float32; None rounds to the nearest.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor
    input_zero: Tensor
    bias: Tensor | None
    rest: Tensor
    outliers: Tensor
    exact_weight: Tensor

    typed = True  # its type is its own: what makes a network FP16 leaves it alone

    def __init__(
        self,
        layer: Quantizable,
        input_range: float,
        dtype: torch.dtype = torch.float32,
        exact: Sequence[int] = (),
        rounded: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ValueError("a grouped convolution is not quantised")
        weight = layer.weight.detach().float()
        rest = [channel for channel in range(weight.shape[1]) if channel not in set(exact)]
        kept = weight[:, rest]
        if rounded is None:
            scales = weight_scales(kept.flatten(1))
            rounded = round_weights(kept.flatten(1), scales), scales
        levels, scales = rounded
        self.register_buffer("weight", levels.view(kept.shape))
        self.register_buffer("weight_scale", scales.to(dtype))
        self.register_buffer("weight_zero", torch.zeros(len(scales), dtype=torch.int8))
        self.register_buffer("input_scale", torch.tensor(max(input_range / LEVELS, SMALLEST_SCALE)).to(dtype))
        self.register_buffer("input_zero", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(dtype))
        self._axis = channel_axis(layer)
        self._multiply: Callable[..., Tensor] = F.linear
        if isinstance(layer, nn.Conv2d):
            self._multiply = partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
        self.exact = tuple(exact)
        self.register_buffer("rest", torch.tensor(rest))
        self.register_buffer("outliers", torch.tensor(self.exact, dtype=torch.int64))
        self.register_buffer("exact_weight", weight[:, list(exact)].to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer takes, in any float type, to what it gives, in its own."""
        quantised = x.index_select(self._axis, self.rest) if self.exact else x
        quantised = torch.ops.edgemask.round_to_int8(
            quantised.to(self.input_scale.dtype), self.input_scale, self.input_zero
        )
        weight = torch.ops.edgemask.from_int8(self.weight, self.weight_scale, self.weight_zero)
        y = self._multiply(quantised, weight, self.bias)
        if self.exact:
            narrow = x.index_select(self._axis, self.outliers).to(self.exact_weight.dtype)
            z = self._multiply(narrow, self.exact_weight)
            y = (y.to(z.dtype) + z).to(y.dtype)
        return y

    def input_error(self, x: Tensor) -> Tensor:
        """What INT8 does to inputs; nothing to channels that stay out of it."""
        error: Tensor = torch.ops.edgemask.round_to_int8(x, self.input_scale, self.input_zero) - x
        if self.exact:
            error.movedim(self._axis, 0)[list(self.exact)] = 0
        return error
