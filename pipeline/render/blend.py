"""How a mask's values mix a picture with colors or with another picture, in 8-bit integers."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image
from pipeline.quick_dataclass import dataclass
from pipeline.render.look import Color, Look, soft_edge, subject_weights

# Fewer columns of one weight than this are not worth blending by themselves.
_WORTH_COLUMNS = bytes([1] * 32)


@dataclass(frozen=True, eq=False)
class Blend:
    """How a mask's values mix a picture with colors, or with another picture: ``picture × kept + rest``.

    Attributes:
        first: the smallest value that changes what is drawn; 256: none does.
        last: from here on all values are drawn alike; 256: no two are.
        kept: (256, 1, 3) uint8, how much of the picture stays, 0 to 255.
        added: (256, 1, 3) uint8, the rest of each value; None: it is what was drawn before, as much as is not kept.
        matrix: (3, 4) float32, the same for the values from ``last`` on.
    """

    first: int
    last: int
    kept: NDArray[np.uint8]
    added: NDArray[np.uint8] | None
    matrix: NDArray[np.float32]

    @classmethod
    def colours(cls, look: Look, task: Task) -> Blend:
        """Colours over the picture."""
        if task == "binary":
            weights = np.rint(255 * look.alpha * soft_edge(look.threshold)).astype(np.uint8)
            colours = np.full((256, 1, 3), look.palette.color(1), dtype=np.uint8)
        else:
            weights = np.full(256, round(255 * look.alpha), dtype=np.uint8)
            weights[0] *= not look.palette.transparent_class_0
            colours = look.palette.table_bgr()
        matrix = np.hstack([(1 - look.alpha) * np.eye(3), look.alpha * colours[255].T]).astype(np.float32)
        last = int(np.argmax(weights == weights[255])) if task == "binary" else 256
        table = _of_pixels(weights)
        added = cast(Image, cv2.multiply(colours, table, scale=1 / 255))
        return cls(_first(weights), last, cast(Image, cv2.bitwise_not(table)), added, matrix)

    @classmethod
    def subject(cls, look: Look, task: Task, over: Color | None) -> Blend:
        """The picture's subject over a color; None: over what was drawn before."""
        weights = subject_weights(task, look.threshold)
        kept = _of_pixels(weights)
        added: Image | None = None
        if over is not None:
            colours = np.full((256, 1, 3), over, dtype=np.uint8)
            added = cast(Image, cv2.multiply(colours, cv2.bitwise_not(kept), scale=1 / 255))
        last = int(np.argmax(weights == 255))
        return cls(_first(weights), last, kept, added, np.eye(3, 4, dtype=np.float32))

    def parts(self, mask: Image) -> tuple[list[slice], list[slice]]:
        """The columns of a strip that are drawn alike from top to bottom, and the others that are touched."""
        # Bytes are searched faster than numpy finds runs.
        touched = (mask.max(axis=0) >= self.first).tobytes()
        left, right = max(0, touched.find(1)), touched.rfind(1) + 1
        alike: list[slice] = []
        others: list[slice] = []
        if left < right and self.last <= 255:
            runs = (mask[:, left:right].min(axis=0) >= self.last).tobytes() + b"\0"
            start, offset = runs.find(_WORTH_COLUMNS), left
            while start >= 0:
                stop = runs.find(0, start)
                if left < offset + start:
                    others.append(slice(left, offset + start))
                alike.append(slice(offset + start, offset + stop))
                left, start = offset + stop, runs.find(_WORTH_COLUMNS, stop)
        if left < right:
            others.append(slice(left, right))
        return alike, others

    def mix(self, drawn: Image, picture: Image, mask: Image, scratch: NDArray[np.uint8]) -> None:
        """Mix a picture, each pixel by its mask's value, with the rest, into ``drawn``; all three are (h, w) alike.

        Args:
            drawn: (h, w, 3) uint8, where to.
            picture: (h, w, 3) uint8.
            mask: (h, w) uint8.
            scratch: (2, n) uint8, n ≥ 3 h w, to compute in: new memory for each strip costs as much as the arithmetic.
        """
        kept, mixed = (part[: drawn.size].reshape(drawn.shape) for part in scratch)
        cv2.applyColorMap(mask, self.kept, dst=kept)
        cv2.multiply(picture, kept, dst=mixed, scale=1 / 255)
        if self.added is None:
            rest = cv2.multiply(drawn, cv2.bitwise_not(kept, dst=kept), dst=kept, scale=1 / 255)
        else:
            rest = cv2.applyColorMap(mask, self.added, dst=kept)
        cv2.add(mixed, rest, dst=drawn)


def _first(weights: NDArray[np.uint8]) -> int:
    """The first of these, which never fall, that is not 0; 256: there is none."""
    return int(np.argmax(weights > 0)) if weights[255] else 256


def _of_pixels(weights: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(256, 1, 3): as a table that OpenCV looks pixels up in."""
    return np.repeat(weights, 3).reshape(256, 1, 3)
