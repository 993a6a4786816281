"""How far masks that were moved agree with those computed for the same frames, and how far they may be moved for that."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image

TRUSTED_FROM = 0.9
"""Below this IoU moved masks are not shown any more ..."""
TRUSTED_AGAIN_FROM = 0.93
"""... and where none were, from this one on they are again, so that they do not come and go."""

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
    counted = counted_agreement(mask_hw, other_hw, task)
    return 1.0 if counted is None else counted


def counted_agreement(mask_hw: Image, other_hw: Image, task: Task) -> float | None:
    """``agreement``; None where nothing is left to be counted."""
    bins = 2 if task == "binary" else 256  # of two, the second begins at 128
    joint = cv2.calcHist([mask_hw, other_hw], [0, 1], None, [bins, bins], [0, 256, 0, 256])
    both = joint.diagonal()
    either = joint.sum(axis=0) + joint.sum(axis=1) - both
    counted = either >= _COUNTED_SHARE * mask_hw.size
    if task == "binary":
        counted[0] = False
    return float(np.mean(both[counted] / either[counted])) if counted.any() else None


class Trust:
    """How far the masks of one source may be moved; not at all before anything was measured.

    Agreement falls with a mask's age, in a straight line through two means: of masks as new as moved ones get, and as old.

    Attributes:
        measured: there was a comparison.
        holds: masks as new as moved ones get are good enough to be shown.
    """

    def __init__(self) -> None:
        self.measured = self.holds = False
        self._young: deque[tuple[int, float]] = deque(maxlen=_COMPARISONS)
        self._old: deque[tuple[int, float]] = deque(maxlen=_COMPARISONS)
        self._lost_for = 0  # comparisons

    def add(self, age: int, value: float, older: tuple[int, float] | None = None) -> None:
        """Take what was measured for one frame.

        Args:
            age: of the newer mask that was moved to it, in frames.
            value: its agreement with the one that was computed, 0 to 1.
            older: age and agreement of the older one.
        """
        self._young.append((age, value))
        if older is not None:
            self._old.append(older)
        young = _typical(self._young)[1]
        self._lost_for = 0 if self.holds else self._lost_for + 1
        if self.holds or not self.measured:
            self.holds = young >= TRUSTED_FROM
        else:
            self.holds = young >= TRUSTED_AGAIN_FROM and self._lost_for >= _FEWEST_TO_RETURN
        self.measured = True

    def expected(self, age: int) -> float:
        """The agreement of a mask of this age, by what was measured; without it 0."""
        if not self.measured:
            return 0.0
        young_age, young, loss = self._line()
        return young - loss * max(0.0, age - young_age)

    def allows(self, age: int) -> bool:
        """Whether a mask of this age may be shown."""
        return self.holds and self.expected(age) >= TRUSTED_FROM

    @property
    def reach(self) -> float:
        """The oldest age that is allowed, in frames; inf where they do not get worse."""
        young_age, young, loss = self._line()
        if young < TRUSTED_FROM:
            return 0.0
        return young_age + (young - TRUSTED_FROM) / loss if loss else float("inf")

    @property
    def oldest(self) -> float:
        """How old masks get, in frames."""
        return _typical(self._old or self._young)[0]

    def _line(self) -> tuple[float, float, float]:
        """Age and agreement of young masks, and what is lost with each frame."""
        young_age, young = _typical(self._young)
        if not self._old:
            return young_age, young, (1 - young) / max(1.0, young_age)
        old_age, old = _typical(self._old)
        return young_age, young, max(0.0, (young - old) / max(1.0, old_age - young_age))


def _typical(measured: deque[tuple[int, float]]) -> tuple[float, float]:
    """Mean age and agreement; from four on without the worst, for a subject that comes into the picture makes one that tells nothing."""
    ordered = sorted(measured, key=lambda each: each[1])
    ages, values = zip(*(ordered[1:] if len(ordered) >= 4 else ordered), strict=True)
    return float(np.mean(ages)), float(np.mean(values))
