"""How a picture is to be shown: what a file says beside the pixels themselves."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from pipeline.frames.frame import Image
from pipeline.quick_dataclass import dataclass
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    import av
    from av.sidedata.sidedata import SideData

log = logger_of(__name__)

SQUARE = Fraction(1)
# What a header says of pixels that are a hundred times as wide as high is no size but a mistake.
_LONGEST_PIXEL = 100
# Beside a multiple of 90°, the largest angle in a display matrix that is rounding.
_ROUNDING_DEGREES = 1.0


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pixels become the upright picture: first exchange rows and columns, then mirror.

    Attributes:
        is_transposed: rows become columns.
        is_mirrored_x: left and right change sides, after that.
        is_mirrored_y: top and bottom change sides, after that.
        lost_degrees: what a free angle has beside that, which nobody turns a video by; 0 if there is none.
    """

    is_transposed: bool = False
    is_mirrored_x: bool = False
    is_mirrored_y: bool = False
    lost_degrees: float = 0.0

    @property
    def is_upright(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.is_transposed or self.is_mirrored_x or self.is_mirrored_y)

    def upright(self, image: Image) -> Image:
        """(H, W, 3) uint8 as stored to (H, W, 3) or (W, H, 3) as shown; the same array if nothing is to be done."""
        if self.is_transposed:
            image = np.asarray(cv2.transpose(image), np.uint8)
        if self.is_mirrored_x or self.is_mirrored_y:
            axis = -1 if self.is_mirrored_x and self.is_mirrored_y else 1 if self.is_mirrored_x else 0
            image = np.asarray(cv2.flip(image, axis), np.uint8)
        return image

    def aspect(self, sample_aspect: Fraction) -> Fraction:
        """The shape of a pixel, width to height, as it is shown."""
        return 1 / sample_aspect if self.is_transposed else sample_aspect


UPRIGHT = Orientation()


def orientation_of(decoded: av.VideoFrame) -> Orientation:
    """What the display matrix of a decoded picture says."""
    data = decoded.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if data is None else read_matrix(bytes(cast("SideData", data)))


def read_matrix(matrix: bytes) -> Orientation:
    """What a display matrix says, nine whole numbers as in ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y.

    One that is damaged, or makes all of the picture a line, says nothing.
    """
    if len(matrix) != struct.calcsize("9i"):
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if a * d == b * c:
        return UPRIGHT
    is_transposed = abs(a) + abs(d) < abs(b) + abs(c)
    (x, across_x), (y, across_y) = ((c, a), (b, d)) if is_transposed else ((a, c), (d, b))
    lost = max(math.degrees(math.atan2(abs(across), abs(along))) for across, along in ((across_x, x), (across_y, y)))
    return Orientation(is_transposed, x < 0, y < 0, lost if lost > _ROUNDING_DEGREES else 0.0)


def pixel_shape(sample_aspect: Fraction | None) -> Fraction:
    """The shape of a pixel, width to height, where a file says a sensible one; else square."""
    if not sample_aspect or not Fraction(1, _LONGEST_PIXEL) <= sample_aspect <= _LONGEST_PIXEL:
        return SQUARE
    return Fraction(sample_aspect)


class Notes:
    """Says each thing once.

    Args:
        name: of the source, which begins each line.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()

    def __call__(self, sentence: str) -> None:
        """Log a sentence, if it is new."""
        if sentence not in self._said:
            self._said.add(sentence)
            log.info(f"{self._name}: {sentence}")
