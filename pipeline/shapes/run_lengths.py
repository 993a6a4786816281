"""COCO's run lengths (RLE) of masks, as pycocotools writes and reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS = 5
_LONGEST = 13
"""So many groups of five bits hold any difference of two 64-bit counts."""


def counts_of(inside: NDArray[np.uint8], left: int, top: int, size_hw: tuple[int, int]) -> list[int]:
    """How many pixels are outside, inside, outside … in turn, column by column from the top left of the frame.

    Args:
        inside: (h, w) uint8, not 0 inside: the part of a frame beyond which nothing is inside.
        left: where that part lies in the frame, in pixels.
        top: likewise.
        size_hw: of the frame.

    Returns:
        COCO's uncompressed counts; the first is 0 where the first pixel is inside.
    """
    height, width = size_hw
    rows, columns = inside.shape
    padded = np.zeros((columns, rows + 2), np.int8)
    padded[:, 1:-1] = inside.T != 0
    steps = np.diff(padded, axis=1)
    start = (left * height + top) + np.arange(columns) * height  # of each column of the part
    column, row = np.nonzero(steps == 1)
    starts = start[column] + row
    column, row = np.nonzero(steps == -1)
    ends = start[column] + row
    # A run that reaches the bottom of the frame goes on at the top of the next column.
    joined = np.flatnonzero(ends[:-1] == starts[1:])
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    changes = np.empty(2 * len(starts) + 2, np.int64)
    changes[0], changes[-1] = 0, height * width
    changes[1:-1:2], changes[2:-1:2] = starts, ends
    counts: list[int] = np.diff(changes).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    return counts


def compressed(counts: list[int]) -> str:
    """The counts as COCO's short text: from the fourth on each as its difference to the one before the last, in groups of five bits.

    The lowest group comes first. The sixth bit says that more follow, and 48 is added, which makes a letter of each.
    """
    values = np.asarray(counts, np.int64)
    values[3:] = values[3:] - np.asarray(counts, np.int64)[1:-2]
    groups = (values[:, None] >> (_BITS * np.arange(_LONGEST))) & 0x1F
    rest = values[:, None] >> (_BITS * np.arange(1, _LONGEST + 1))
    # The last group's highest bit is the sign of all.
    is_last = np.where(groups & 0x10, rest == -1, rest == 0)
    length = is_last.argmax(axis=1)
    place = np.arange(_LONGEST)
    letters = groups + np.where(place < length[:, None], 0x20, 0) + 48
    return bytes(letters[place <= length[:, None]].astype(np.uint8)).decode("ascii")
