"""How the frames of a program lie in memory: BGR, NV12 as decoders give them, or any number of channels as a file has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Pixels = str
"""Of a program's input. "bgr": (N, H, W, 3) uint8. "nv12": (N, H·3/2, W) uint8, rows of luma and then half as many rows of U and V in
turn, for each two by two pixels, by BT.709 in limited range; H and W are even. "4x16": (N, H, W, 4), so many channels of so many bits,
in the order of the file: 1 to 16 channels of 8 bits, uint8, or of 16 bits, int32, for TensorRT has no uint16."""

OfCameras = Literal["bgr", "nv12"]
"""What cameras, videos and ordinary pictures are."""

MOST_CHANNELS = 16


class Bands(NamedTuple):
    """Channels as a file has them: how many, and their bits, 8 or 16."""

    channels: int
    bits: int

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' if self.channels > 1 else ''} of {self.bits} bits"

    @property
    def pixels(self) -> Pixels:
        """How such frames are called."""
        return f"{self.channels}x{self.bits}"

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The type of a frame's pixels; a program takes 16 bits as int32."""
        import numpy as np  # --help reads this module, and would wait for it

        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)


def bands_of(pixels: Pixels) -> Bands | None:
    """Which channels frames of a kind have; None for BGR and NV12."""
    found = re.fullmatch(r"([1-9]|1[0-6])x(8|16)", pixels)
    return None if found is None else Bands(int(found[1]), int(found[2]))


def is_pixels(pixels: object) -> bool:
    """Whether there are such frames."""
    return isinstance(pixels, str) and (pixels in ("bgr", "nv12") or bands_of(pixels) is not None)


def input_type(pixels: Pixels) -> np.dtype[np.generic]:
    """The type of the input of a program that takes such frames."""
    import numpy as np  # as above

    bands = bands_of(pixels)
    return np.dtype(np.int32 if bands is not None and bands.bits == 16 else np.uint8)


def expected(pixels: Pixels) -> str:
    """A program's frames as messages say them."""
    if pixels == "nv12":
        return "(N, H·3/2, W) uint8, which is NV12 with even H and W"
    return f"(N, H, W, {_channels(pixels)}) {input_type(pixels)}"


def frames_shape(pixels: Pixels, count: int, size_hw: tuple[int, int]) -> tuple[int, ...]:
    """The shape of an array of so many frames of a (height, width); both are even for NV12."""
    height, width = size_hw
    return (count, height * 3 // 2, width) if pixels == "nv12" else (count, height, width, _channels(pixels))


def frames_nhw(pixels: Pixels, shape: Sequence[int]) -> tuple[int, int, int] | None:
    """What ``frames_shape`` was made of, as (N, H, W); None if an array of this shape holds no such frames."""
    if pixels != "nv12":
        return (shape[0], shape[1], shape[2]) if len(shape) == 4 and shape[3] == _channels(pixels) else None
    if len(shape) != 3 or shape[1] % 3 or shape[2] % 2:
        return None
    return shape[0], shape[1] // 3 * 2, shape[2]


def _channels(pixels: Pixels) -> int:
    bands = bands_of(pixels)
    return 3 if bands is None else bands.channels
