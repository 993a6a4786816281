"""How far masks that were moved agree with those computed for the same frames, and whether that is enough to show them."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image

TRUSTED_FROM = 0.9
"""Below this IoU moved masks are not shown any more ..."""
TRUSTED_AGAIN_FROM = 0.93
"""... and from this one on they are again, so that they do not come and go."""

_COMPARISONS = 8
# So many were compared since moved masks were given up.
_FEWEST_TO_RETURN = 5
# What covers less of the picture flickers in the network's own masks.
_COUNTED_SHARE = 0.001


def agreement(mask_hw: Image, other_hw: Image, task: Task) -> float:
    """IoU of two masks; of class maps the mean over their classes.

    Args:
        mask_hw: (H, W) uint8, probability × 255 or class index.
        other_hw: likewise, of the same size.
        task: of the masks.

    Returns:
        0 to 1. What covers less than a thousandth of the picture in both together is not counted; 1 where nothing is left.
    """
    bins = 2 if task == "binary" else 256  # of two, the second begins at 128
    joint = cv2.calcHist([mask_hw, other_hw], [0, 1], None, [bins, bins], [0, 256, 0, 256])
    both = joint.diagonal()
    either = joint.sum(axis=0) + joint.sum(axis=1) - both
    counted = either >= _COUNTED_SHARE * mask_hw.size
    if task == "binary":
        counted[0] = False
    return float(np.mean(both[counted] / either[counted])) if counted.any() else 1.0


class Trust:
    """Whether the moved masks of one source are good enough to be shown; they are taken to be so at first.

    Attributes:
        holds: they are.
        recent: mean agreement of the last eight comparisons; from four on without the worst, for a subject that comes into the
            picture makes one that tells nothing of the others.
    """

    def __init__(self) -> None:
        self.holds = True
        self.recent = 1.0
        self._last: deque[float] = deque(maxlen=_COMPARISONS)
        self._lost_for = 0  # comparisons

    def add(self, value: float) -> None:
        """Take the agreement of one moved mask, 0 to 1, with the one that was computed for its frame."""
        self._last.append(value)
        ordered = sorted(self._last)
        self.recent = float(np.mean(ordered[1:] if len(ordered) >= 4 else ordered))
        self._lost_for = 0 if self.holds else self._lost_for + 1
        if self.holds:
            self.holds = self.recent >= TRUSTED_FROM
        else:
            self.holds = self.recent >= TRUSTED_AGAIN_FROM and self._lost_for >= _FEWEST_TO_RETURN
