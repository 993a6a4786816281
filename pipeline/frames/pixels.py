"""How the frames of a program lie in memory: BGR, or NV12 as decoders give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Pixels = Literal["bgr", "nv12"]
"""Of a program's input, all uint8. "bgr": (N, H, W, 3). "nv12": (N, H·3/2, W), rows of luma and then half as many rows of U and V in
turn, for each two by two pixels, by BT.709 in limited range; H and W are even."""

EXPECTED: dict[Pixels, str] = {
    "bgr": "(N, H, W, 3) uint8",
    "nv12": "(N, H·3/2, W) uint8, which is NV12 with even H and W",
}
"""Frames of each kind as messages say it."""


def frames_shape(pixels: Pixels, count: int, size_hw: tuple[int, int]) -> tuple[int, ...]:
    """The shape of an array of so many frames of a (height, width); both are even for NV12."""
    height, width = size_hw
    return (count, height, width, 3) if pixels == "bgr" else (count, height * 3 // 2, width)


def frames_nhw(pixels: Pixels, shape: Sequence[int]) -> tuple[int, int, int] | None:
    """What ``frames_shape`` was made of, as (N, H, W); None if an array of this shape holds no such frames."""
    if pixels == "bgr":
        return (shape[0], shape[1], shape[2]) if len(shape) == 4 and shape[3] == 3 else None
    if len(shape) != 3 or shape[1] % 3 or shape[2] % 2:
        return None
    return shape[0], shape[1] // 3 * 2, shape[2]
