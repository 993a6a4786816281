"""Memory for views that is used again."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np

from pipeline.frames.frame import Image

# Views of so many sizes are renewed in the same memory, as many of each: what one source needs whose view is shown or sent elsewhere.
_SIZES = 4
_SPARE_VIEWS = 2


class ViewMemory:
    """Arrays for views, in memory that was used before: fresh memory costs a page fault for each 4 KiB, every frame.

    The memory of a view comes back when it and all that refers to it are gone, on whichever thread that happens.
    """

    def __init__(self) -> None:
        self._spare: dict[int, deque[bytearray]] = {}

    def take(self, shape: tuple[int, int, int]) -> Image:
        """An array of unknown content."""
        size_bytes = math.prod(shape)
        if size_bytes not in self._spare:
            if len(self._spare) == _SIZES:
                del self._spare[next(iter(self._spare))]
            self._spare[size_bytes] = deque(maxlen=_SPARE_VIEWS)
        spare = self._spare[size_bytes]
        try:
            memory = spare.pop()
        except IndexError:
            memory = bytearray(size_bytes)
        # Slices of an array over memory that is no array's refer to that array, so that it is the last one to go.
        view: Image = np.ndarray(shape, np.uint8, memory)
        weakref.finalize(view, spare.append, memory).atexit = False
        return view
