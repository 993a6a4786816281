"""How frames of any shape fit a network of one: stretched, whole between bars ("letterbox"), or their middle cut out ("cover").

Offsets are whole numbers made of sizes alone, with no branch on them, so that an exported program takes frames of any size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compile.networks.contract import Contract

SizeHW = tuple[int, int]


class Region(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The part of (N, C, H, W) that lies in it."""
        return x[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def within(self, x: Tensor, size_hw: SizeHW) -> Tensor:
        """(N, C, height, width) at its place in a picture of ``size_hw`` that is 0 elsewhere."""
        right, bottom = size_hw[1] - self.width - self.left, size_hw[0] - self.height - self.top
        return F.pad(x, (self.left, right, self.top, bottom))


class Fit:
    """Where the frame lies in the network's input, and the network's scores on the frame.

    "letterbox" is the frame at the largest size that fits, sides rounded, with half of what is left on each
    side and the odd pixel at the end: as ultralytics does it. "cover" is the largest part of the frame that has the network's shape,
    from its middle.

    Args:
        contract: its ``fit`` and size.
    """

    def __init__(self, contract: Contract) -> None:
        self.kind, self.size_hw = contract.fit, contract.imgsz

    def seen(self, x: Tensor) -> Tensor:
        """What of frames (N, C, H, W) the network sees."""
        return _centered(self.size_hw, _size_of(x)).of(x) if self.kind == "cover" else x

    def content_hw(self, frame_hw: SizeHW) -> SizeHW:
        """The size that is taken in the network's input by what it sees of a frame."""
        if self.kind != "letterbox":
            return self.size_hw
        region = _centered(frame_hw, self.size_hw)
        return region.height, region.width

    def with_bars(self, x: Tensor, frame_hw: SizeHW, pad: Tensor) -> Tensor:
        """(N, C, *content_hw) in the network's size, with the values ``pad`` (1, C, 1, 1) around it."""
        if self.kind != "letterbox":
            return x
        region = _centered(frame_hw, self.size_hw)
        return region.within(x - pad, self.size_hw) + pad

    def on_frame(self, scores: Tensor, frame_hw: SizeHW, mode: str = "bilinear") -> tuple[Tensor, SizeHW]:
        """Of scores (N, C, h, w) those that lie on the frame, and the size that they have on it.

        Args:
            scores: of any size.
            frame_hw: (height, width) of the frame.
            mode: how small ones are enlarged: "nearest" for numbers that have no mean.
        """
        if self.kind == "letterbox":
            # Bars end between the pixels of scores that are smaller than the network's input, as those of a free size may be.
            is_known = all(isinstance(side, int) for side in _size_of(scores))
            if not is_known or _size_of(scores) != self.size_hw:
                scores = F.interpolate(scores, self.size_hw, mode=mode)
            return _centered(frame_hw, self.size_hw).of(scores), frame_hw
        if self.kind == "cover":
            region = _centered(self.size_hw, frame_hw)
            return scores, (region.height, region.width)
        return scores, frame_hw

    def whole(self, masks: Tensor, frame_hw: SizeHW) -> Tensor:
        """Masks (N, h, w) of the size that ``on_frame`` gave, as masks of the frame: 0 where the network saw nothing."""
        if self.kind != "cover":
            return masks
        return _centered(self.size_hw, frame_hw).within(masks.unsqueeze(1), frame_hw)[:, 0]

    def flags_on_frame(self, flags_nhw: NDArray[np.bool_] | None, frame_hw: SizeHW) -> NDArray[np.bool_] | None:
        """Flags of the network's output (N, h, w), of any size, as flags of the frame; None stays None."""
        if flags_nhw is None or self.kind == "stretch":
            return flags_nhw
        scores, covered_hw = self.on_frame(torch.from_numpy(flags_nhw)[:, None].float(), frame_hw, "nearest")
        flags: NDArray[np.bool_] = self.whole(F.interpolate(scores, covered_hw)[:, 0], frame_hw).numpy() >= 0.5
        return flags


def _size_of(x: Tensor) -> SizeHW:
    return x.shape[2], x.shape[3]


def _centered(shape_hw: SizeHW, within_hw: SizeHW) -> Region:
    """The largest region of a shape within a size, in its middle."""
    (rows, columns), (height, width) = shape_hw, within_hw
    inner_height = _at_least_1(torch.sym_min(height, _rounded(width * rows, columns)))  # type: ignore[no-untyped-call]
    inner_width = _at_least_1(torch.sym_min(width, _rounded(height * columns, rows)))  # type: ignore[no-untyped-call]
    return Region((height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)


def _at_least_1(side: Any) -> int:
    least: int = torch.sym_max(1, side)  # type: ignore[no-untyped-call]
    return least


def _rounded(a: int, b: int) -> int:
    # Halves up: TensorRT-RTX finds no bounds of a size that is rounded to the even number, and refuses it.
    return (2 * a + b) // (2 * b)
