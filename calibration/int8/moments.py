"""What a layer's input patches look like: their second moments over all frames, which rounding of its weights is fitted to."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Patches of a frame. All frames together give tens of thousands, against at most BLOCK unknowns.
_POSITIONS = 256
BLOCK = 1152
"""Columns whose products with each other are kept; beyond, memory would grow with the square of the channels."""


class Moments:
    """Second moments of the patches that a layer multiplies its weights with, in blocks of neighboring input channels.

    Args:
        layer: an ungrouped convolution, or a linear layer, whose patches are its input's rows; only its geometry is read.
        generator: of the positions that are looked at.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
        self._layer = layer
        self._generator = generator
        self._area = prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
        self.block_channels = max(1, BLOCK // self._area)
        self._sums: list[Tensor] = []
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Look at a frame's input.

        Args:
            x: (N, C, H, W) float, of a linear layer (…, C); not changed.
        """
        patches = (
            self._patches(self._layer, x.detach()) if isinstance(self._layer, nn.Conv2d) else self._rows(x.detach())
        )
        self._count += len(patches)
        for index, block in enumerate(torch.split(patches, self.block_channels * self._area, 1)):
            product = block.T @ block
            if index == len(self._sums):
                self._sums.append(product)
            else:
                self._sums[index] += product

    def blocks(self) -> list[Tensor]:
        """Second moments, (columns, columns) float32 each; columns are a weight's axes 1 to 3, flattened."""
        return [total / max(1, self._count) for total in self._sums]

    def _rows(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        if len(rows) > _POSITIONS:
            rows = rows[torch.randint(0, len(rows), (_POSITIONS,), generator=self._generator)]
        return rows

    def _patches(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel_size, layer.stride
        dilation_h, dilation_w = layer.dilation
        pad_h, pad_w = (0, 0) if isinstance(layer.padding, str) else layer.padding
        padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
        count_h = (padded.shape[2] - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
        count_w = (padded.shape[3] - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
        positions = torch.arange(count_h * count_w)
        if len(positions) > _POSITIONS:
            positions = torch.randint(0, len(positions), (_POSITIONS,), generator=self._generator)
        rows = (positions // count_w * stride_h)[:, None] + torch.arange(kernel_h).repeat_interleave(
            kernel_w
        ) * dilation_h
        columns = (positions % count_w * stride_w)[:, None] + torch.arange(kernel_w).repeat(kernel_h) * dilation_w
        # (N, C, positions, area) to (N × positions, C × area), as a weight is flattened.
        return padded[:, :, rows, columns].permute(0, 2, 1, 3).flatten(0, 1).flatten(1).float()
