"""BGR to NV12 by BT.709 in limited range, for views that an encoder takes as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ITU-R BT.709 in limited range: luma 16 to 235, chroma 128 ± 112.
_RED, _BLUE = 0.2126, 0.0722
_GREEN = 1 - _RED - _BLUE
_LUMA, _CHROMA = 219 / 255, 224 / 255


class BgrToNv12(nn.Module):
    """BGR to NV12 by BT.709 in limited range.

    With B, G and R from 0 to 255, and halves rounded to the even number:

        L = 0.2126 R + 0.7152 G + 0.0722 B
        Y = round(16 + 219 / 255 · L)
        U = round(128 + 224 / 255 · (B - L) / 1.8556)
        V = round(128 + 224 / 255 · (R - L) / 1.5748)

    U and V are of the mean color of each two by two pixels. FFmpeg's converter is within 1 of 255 of this where it averages too
    (SWS_AREA); its other filters look at pixels beyond these four. No value leaves the limits of 16 to 235 and 16 to 240, so nothing is
    clipped.
    """

    def forward(self, frames_nhwc: Tensor) -> Tensor:
        """(N, H, W, 3) float32 BGR, 0 to 255, H and W even, to (N, H·3/2, W) float32, whole numbers."""
        count, height, width, _ = frames_nhwc.shape
        x = frames_nhwc.permute(0, 3, 1, 2)
        luma = 16.0 + _LUMA * _light(*torch.split(x, 1, 1))
        blue, green, red = torch.split(F.avg_pool2d(x, 2), 1, 1)
        light = _light(blue, green, red)
        u = 128.0 + _CHROMA / (2 * (1 - _BLUE)) * (blue - light)
        v = 128.0 + _CHROMA / (2 * (1 - _RED)) * (red - light)
        chroma = torch.cat((u, v), 1).permute(0, 2, 3, 1).reshape(count, height // 2, width)
        return torch.cat((luma.reshape(count, height, width), chroma), 1).round()


def _light(blue: Tensor, green: Tensor, red: Tensor) -> Tensor:
    return blue * _BLUE + green * _GREEN + red * _RED
