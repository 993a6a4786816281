"""U²-Net (Qin et al., 2020), full and lite, a U of U-shaped stages, under the names that checkpoints carry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

StageTable = tuple[tuple[int, int, int], ...]
"""(in, mid, out) channels of the eleven stages: encoder 1 to 6, then decoder 5 to 1."""

FULL: StageTable = (
    (3, 32, 64),
    (64, 32, 128),
    (128, 64, 256),
    (256, 128, 512),
    (512, 256, 512),
    (512, 256, 512),
    (1024, 256, 512),
    (1024, 128, 256),
    (512, 64, 128),
    (256, 32, 64),
    (128, 16, 64),
)
LITE: StageTable = ((3, 16, 64), *((64, 16, 64),) * 5, *((128, 16, 64),) * 5)

ENCODER_HEIGHTS = (7, 6, 5, 4, 4, 4)
DECODER_HEIGHTS = (4, 4, 5, 6, 7)
_DILATED = (4, 5, 6)  # of the eleven: encoder 5 and 6, decoder 5, whose maps are too small to be pooled again


class ConvUnit(nn.Module):
    """3×3 convolution, batch normalization, ReLU; height and width stay."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), float."""
        y: torch.Tensor = self.relu(self.bn(self.conv(x)))
        return y


class UBlock(nn.Module):
    """A stage that is a small U-Net itself (RSU in the paper), added to its own first convolution.

    Args:
        in_channels: Channels of the input.
        mid_channels: Channels inside.
        out_channels: Channels of the output.
        height: Units on the way down; ``height`` − 2 of them pool first.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, height: int) -> None:
        super().__init__()
        self.conv_in = ConvUnit(in_channels, out_channels)
        self.encode_modules = nn.ModuleList(
            [
                ConvUnit(out_channels, mid_channels),
                *(ConvUnit(mid_channels, mid_channels) for _ in range(height - 2)),
                ConvUnit(mid_channels, mid_channels, dilation=2),
            ]
        )
        self.decode_modules = nn.ModuleList(
            [
                *(ConvUnit(2 * mid_channels, mid_channels) for _ in range(height - 2)),
                ConvUnit(2 * mid_channels, out_channels),
            ]
        )
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), float."""
        y: torch.Tensor = self.conv_in(x)
        residual, skips = y, []
        for depth, unit in enumerate(self.encode_modules):
            if 0 < depth < len(self.encode_modules) - 1:
                y = self.pool(y)
            y = unit(y)
            skips.append(y)
        y = skips.pop()
        for index, unit in enumerate(self.decode_modules):
            skip = skips.pop()
            if index > 0:
                y = _resize(y, skip)
            y = unit(torch.cat((y, skip), dim=1))
        return y + residual


class DilatedUBlock(nn.Module):
    """A stage of the same shape for small maps (RSU-4F in the paper): dilation in place of pooling."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = ConvUnit(in_channels, out_channels)
        self.encode_modules = nn.ModuleList(
            [
                ConvUnit(out_channels, mid_channels),
                *(ConvUnit(mid_channels, mid_channels, dilation=dilation) for dilation in (2, 4, 8)),
            ]
        )
        self.decode_modules = nn.ModuleList(
            [
                *(ConvUnit(2 * mid_channels, mid_channels, dilation=dilation) for dilation in (4, 2)),
                ConvUnit(2 * mid_channels, out_channels),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), float."""
        y: torch.Tensor = self.conv_in(x)
        residual, skips = y, []
        for unit in self.encode_modules:
            y = unit(y)
            skips.append(y)
        y = skips.pop()
        for unit in self.decode_modules:
            y = unit(torch.cat((y, skips.pop()), dim=1))
        return y + residual


class U2Net(nn.Module):
    """U²-Net: six stages down, five up, and a side output from each of the six sizes, fused into one.

    Args:
        out_channels: Channels of the output; 1 for salient objects.
        stages: (in, mid, out) channels of the eleven stages, encoder 1 to 6, then decoder 5 to 1: ``FULL``, ``LITE``,
            or other widths.
        in_channels: Channels of the input, in place of the table's first number.

    Attributes:
        size_multiple: At heights and widths in multiples of this, both ways of rounding in the pooling layers give the
            same output.

    Raises:
        ValueError: ``stages`` has another length, or a stage does not take what the stages before it give.
    """

    size_multiple = 32

    def __init__(self, out_channels: int = 1, stages: StageTable = FULL, in_channels: int | None = None) -> None:
        super().__init__()
        if in_channels is not None and stages:
            stages = ((in_channels, *stages[0][1:]), *stages[1:])
        _check_stages(stages, out_channels)
        self.stages, self.in_channels, self.out_channels = stages, stages[0][0], out_channels
        blocks: list[nn.Module] = [
            DilatedUBlock(*widths) if index in _DILATED else UBlock(*widths, height)
            for index, (widths, height) in enumerate(zip(stages, ENCODER_HEIGHTS + DECODER_HEIGHTS, strict=True))
        ]
        self.encode_modules = nn.ModuleList(blocks[:6])
        self.decode_modules = nn.ModuleList(blocks[6:])
        # From the deepest size up: encoder stage 6, decoder stages 5 to 1.
        self.side_modules = nn.ModuleList(nn.Conv2d(out, out_channels, 3, padding=1) for _, _, out in stages[5:])
        self.out_conv = nn.Conv2d(6 * out_channels, out_channels, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self._ceil_mode = True

    def set_ceil_mode(self, enabled: bool) -> None:
        """Choose how every pooling layer rounds an odd size: up, as trained, or down, which compilers can take.

        Where height and width are multiples of ``size_multiple`` nothing is odd and both give the same output; rounding
        down, ``forward`` and ``logits`` refuse other sizes.

        Args:
            enabled: True rounds up (the networks are trained so), False down.
        """
        self._ceil_mode = enabled
        for module in self.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = enabled

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Score every pixel.

        Args:
            x: (N, in_channels, H, W) float, normalized as in training.

        Returns:
            In evaluation the mask, (N, out_channels, H, W) float in [0, 1]. In training seven logits of that shape: the
            fused one, then the side outputs of stage 1 (full size) to stage 6 (deepest).

        Raises:
            ValueError: The pooling layers round down, and H or W is not a multiple of ``size_multiple``.
        """
        if not self.training:
            return torch.sigmoid(self.logits(x))
        sides = self._side_logits(x)
        return [self._fuse(sides), *sides]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Score every pixel with the fused output alone, before the sigmoid, in training and in evaluation.

        Args:
            x: As in ``forward``.

        Returns:
            (N, out_channels, H, W) float logits.

        Raises:
            ValueError: As in ``forward``.
        """
        return self._fuse(self._side_logits(x))

    def _fuse(self, sides: Sequence[torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = self.out_conv(torch.cat(tuple(sides), dim=1))
        return y

    def _side_logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        if not self._ceil_mode and (x.shape[-2] % self.size_multiple or x.shape[-1] % self.size_multiple):
            raise ValueError(
                f"input: expected height and width in multiples of {self.size_multiple}, "
                f"got {x.shape[-2]}×{x.shape[-1]}: choose such a size, or set_ceil_mode(True)"
            )
        image, y = x, x
        skips: list[torch.Tensor] = []
        for depth, stage in enumerate(self.encode_modules):
            if depth > 0:
                y = self.pool(y)
            y = stage(y)
            skips.append(y)
        features = [skips.pop()]
        for stage in self.decode_modules:
            skip = skips.pop()
            features.append(stage(torch.cat((_resize(features[-1], skip), skip), dim=1)))
        sides = [side(feature) for side, feature in zip(self.side_modules, features, strict=True)]
        # The last one is of the input's size already.
        sides[:-1] = [_resize(side, image) for side in sides[:-1]]
        return sides[::-1]


def u2net_full(out_channels: int = 1, in_channels: int = 3) -> U2Net:
    """Build the full U²-Net: 44.0 million parameters."""
    return U2Net(out_channels, FULL, in_channels)


def u2net_lite(out_channels: int = 1, in_channels: int = 3) -> U2Net:
    """Build the lite U²-Net (published as U²-NetP): 1.1 million parameters."""
    return U2Net(out_channels, LITE, in_channels)


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _check_stages(stages: StageTable, out_channels: int) -> None:
    if len(stages) != 11:
        raise ValueError(
            f"stages: expected 11 rows (in, mid, out), got {len(stages)}: six for the encoder, five for the decoder"
        )
    if min(out_channels, *(min(row) for row in stages)) < 1:
        raise ValueError(
            f"stages, out_channels: expected 1 or more each, got {stages}, {out_channels}: give positive numbers"
        )
    outs = [out for _, _, out in stages]
    for index in range(1, 11):
        # A decoder stage takes the stage before it and the encoder stage of its own size: 5 (index 6) to 1 (index 10).
        wanted = outs[index - 1] + (outs[10 - index] if index > 5 else 0)
        if stages[index][0] != wanted:
            name = f"encoder stage {index + 1}" if index < 6 else f"decoder stage {11 - index}"
            raise ValueError(
                f"stages: {name} expected {wanted} input channels, got {stages[index][0]}: mend row {index}"
            )
