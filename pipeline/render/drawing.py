"""What a render mode gets: a frame and its mask, where to draw, and memory that lasts from frame to frame.

A frame is drawn in strips that stay in the processor's cache: only the columns that the mask touches are blended, and where it is one
value all over, as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import ShapeError
from pipeline.frames.frame import Image, describe
from pipeline.quick_dataclass import dataclass
from pipeline.render.blend import Blend
from pipeline.render.look import Color, Look

# Pixels drawn at a time: few enough to stay in the processor's cache, enough that the calls cost little.
_STRIP_PIXELS = 128 * 1024


class Memory:
    """What one renderer keeps from frame to frame, because it takes long to make."""

    def __init__(self) -> None:
        self._scratch = np.empty((2, 0), np.uint8)
        self._look: Look | None = None
        self._blends: dict[object, Blend] = {}  # of that look
        self._covering: tuple[Image, Image] | None = None  # a picture, and itself at the frame's size

    def scratch(self, size: int) -> NDArray[np.uint8]:
        """(2, n) uint8, n ≥ size, the same for every frame of a size."""
        if self._scratch.shape[1] < size:
            self._scratch = np.empty((2, size), np.uint8)
        return self._scratch

    def blend(self, look: Look, key: object, make: Callable[[], Blend]) -> Blend:
        """A blend of a look, made once."""
        if self._look is not look:
            self._look, self._blends = look, {}
        if key not in self._blends:
            self._blends[key] = make()
        return self._blends[key]

    def covering(self, picture: Image, size_hw: tuple[int, ...]) -> Image:
        """A picture scaled to cover a frame, its middle cut out: (H, W, 3), made once; not to be changed."""
        if self._covering is None or self._covering[0] is not picture or self._covering[1].shape[:2] != size_hw:
            self._covering = picture, _cover(picture, size_hw)
        return self._covering[1]


@dataclass(frozen=True)
class Drawing:
    """One frame to draw.

    Attributes:
        view: (H, W, 3) uint8 BGR, W times the mode's ``frames_wide``: to be drawn, of unknown content.
        image: (H, W, 3) uint8 BGR; not to be changed.
        mask: (H, W) uint8 as ``task`` says; not to be changed.
        look: how.
        task: "binary" (mask = probability × 255) or "classes" (mask = class index, 0 = background).
        memory: of the renderer.
    """

    view: Image
    image: Image
    mask: Image
    look: Look
    task: Task
    memory: Memory

    def colours(self) -> Blend:
        """Mixes the classes' colors into the picture."""
        return self.memory.blend(self.look, "colours", lambda: Blend.colours(self.look, self.task))

    def subject(self, over: Color | None) -> Blend:
        """Mixes the subject into a color, or into what was drawn before."""
        return self.memory.blend(self.look, ("subject", over), lambda: Blend.subject(self.look, self.task, over))

    def scratch(self) -> NDArray[np.uint8]:
        """(2, n) uint8: memory for two pictures of a strip."""
        return self.memory.scratch(3 * strip_rows(self.mask) * self.mask.shape[1])


def strips(mask: Image) -> Iterator[slice]:
    """The rows of a frame, some at a time."""
    rows = strip_rows(mask)
    return (slice(start, start + rows) for start in range(0, mask.shape[0], rows))


def strip_rows(mask: Image) -> int:
    """How many rows a strip has."""
    rows: int = max(1, min(mask.shape[0], _STRIP_PIXELS // mask.shape[1]))
    return rows


def lookup(mask: Image, table: NDArray[np.uint8]) -> Image:
    """(H, W) uint8: a mask's values through a table, (256,) uint8."""
    return cast(Image, cv2.LUT(mask, table))


def checked(image: Image, mask: Image) -> tuple[Image, Image]:
    """Both arrays, row after row in memory; copies only where they are not."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(f"image: expected (H, W, 3) uint8 BGR, got {describe(image)}")
    if mask.shape != image.shape[:2] or mask.dtype != np.uint8:
        raise ShapeError(f"mask: expected {image.shape[:2]} uint8, the image's height and width, got {describe(mask)}")
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _cover(picture: Image, size_hw: tuple[int, ...]) -> Image:
    """The picture scaled to cover the frame, its middle cut out: a new (H, W, 3) array."""
    height, width = size_hw
    scale = max(height / picture.shape[0], width / picture.shape[1])
    scaled_wh = max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale))
    scaled = cv2.resize(picture, scaled_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (scaled_wh[1] - height) // 2, (scaled_wh[0] - width) // 2
    return cast(Image, scaled[top : top + height, left : left + width].copy())
