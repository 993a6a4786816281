"""U-Net (Ronneberger et al., 2015) with padding and batch normalization, under the names that checkpoints carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class DoubleConv(nn.Module):
    """Two times 3×3 convolution, batch normalization, ReLU; height and width stay."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None) -> None:
        super().__init__()
        mid_channels = out_channels if mid_channels is None else mid_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), float."""
        y: torch.Tensor = self.double_conv(x)
        return y


class Down(nn.Module):
    """Halve height and width (rounding down), then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H // 2, W // 2), float."""
        y: torch.Tensor = self.maxpool_conv(x)
        return y


class Up(nn.Module):
    """Double height and width, join the map of the encoder at that size, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        self.up: nn.Module
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
            self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, deeper: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Map (N, C, h, w) and the encoder's (N, in_channels / 2, H, W) to (N, out_channels, H, W), float.

        Where pooling has rounded down, the doubled map is smaller than ``skip``; zeros make up for it, the smaller half
        of them left and on top.
        """
        deeper = self.up(deeper)
        missing_h, missing_w = skip.shape[-2] - deeper.shape[-2], skip.shape[-1] - deeper.shape[-1]
        if missing_h or missing_w:
            left, top = missing_w // 2, missing_h // 2
            deeper = F.pad(deeper, (left, missing_w - left, top, missing_h - top))
        y: torch.Tensor = self.conv(torch.cat((skip, deeper), dim=1))
        return y


class OutConv(nn.Module):
    """The 1×1 convolution from features to one score for each class."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), float."""
        y: torch.Tensor = self.conv(x)
        return y


class UNet(nn.Module):
    """U-Net: four times down, four times up, a skip connection at every size.

    Args:
        n_channels: Channels of the input.
        n_classes: Channels of the output; the logit of one class is for a sigmoid, those of more are for a softmax.
        bilinear: Enlarge bilinearly (aligned corners) instead of by transposed convolutions.
        base_width: Channels at full size; every level below has twice as many.

    Attributes:
        size_multiple: Height and width in multiples of this need no padding inside. Other sizes work too.

    Raises:
        ValueError: A number of channels is below 1.
    """

    size_multiple = 16

    def __init__(self, n_channels: int = 3, n_classes: int = 2, bilinear: bool = False, base_width: int = 64) -> None:
        super().__init__()
        if min(n_channels, n_classes, base_width) < 1:
            raise ValueError(
                "n_channels, n_classes, base_width: expected 1 or more each, "
                f"got {n_channels}, {n_classes}, {base_width}: give positive numbers"
            )
        self.n_channels, self.n_classes = n_channels, n_classes
        self.bilinear, self.base_width = bilinear, base_width
        width = base_width
        # Bilinear enlarging keeps the channels, so the level below must already have the halved number.
        halved = 2 if bilinear else 1
        self.inc = DoubleConv(n_channels, width)
        self.down1 = Down(width, 2 * width)
        self.down2 = Down(2 * width, 4 * width)
        self.down3 = Down(4 * width, 8 * width)
        self.down4 = Down(8 * width, 16 * width // halved)
        self.up1 = Up(16 * width, 8 * width // halved, bilinear)
        self.up2 = Up(8 * width, 4 * width // halved, bilinear)
        self.up3 = Up(4 * width, 2 * width // halved, bilinear)
        self.up4 = Up(2 * width, width, bilinear)
        self.outc = OutConv(width, n_classes)
        self._checkpointing = False

    def use_checkpointing(self) -> None:
        """Keep only the borders of the ten stages while training, and compute their inside again in the backward pass.

        Costs about one more forward pass for each step and saves most of the activations' memory. Gradients, running
        statistics and the names in the state dict stay as they are. Outside of training nothing changes.
        """
        self._checkpointing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score every pixel.

        Args:
            x: (N, n_channels, H, W) float, normalized as in training; H and W at least 16.

        Returns:
            (N, n_classes, H, W) float logits, in training and in evaluation.
        """
        size1 = self._run(self.inc, x)
        size2 = self._run(self.down1, size1)
        size4 = self._run(self.down2, size2)
        size8 = self._run(self.down3, size4)
        y = self._run(self.down4, size8)
        y = self._run(self.up1, y, size8)
        y = self._run(self.up2, y, size4)
        y = self._run(self.up3, y, size2)
        y = self._run(self.up4, y, size1)
        return self._run(self.outc, y)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Score every pixel; the same as ``forward``, under the name that every network of this room has."""
        y: torch.Tensor = self(x)
        return y

    def _run(self, stage: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        if self._checkpointing and self.training and torch.is_grad_enabled():

            def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _statistics_kept(stage)

            # Nothing in a stage is random: no need to store and restore the generators.
            y = checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        else:
            y = stage(*inputs)
        return y


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """Let the second run of a stage update copies: the running statistics have counted this batch in the first."""
    kept: list[tuple[nn.Module, str, torch.Tensor]] = []
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, buffer in list(module.named_buffers(recurse=False)):
                kept.append((module, name, buffer))
                setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
