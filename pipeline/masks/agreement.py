"""How far masks that were moved agree with those computed for the same frames, and how far they may be moved for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image

TRUSTED_FROM = 0.9
"""Below this IoU moved masks are not shown any more ..."""
TRUSTED_AGAIN_FROM = 0.93
"""... and where none were, from this one on they are again, so that they do not come and go."""

_COMPARISONS = 4
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


def counted_agreement(mask_hw: Image, other_hw: Image, task: Task, share: float = _COUNTED_SHARE) -> float | None:
    """``agreement``; None where nothing is left to be counted, which is what covers at least this share of the picture."""
    bins = 2 if task == "binary" else 256  # of two, the second begins at 128
    joint = cv2.calcHist([mask_hw, other_hw], [0, 1], None, [bins, bins], [0, 256, 0, 256])
    both = joint.diagonal()
    either = joint.sum(axis=0) + joint.sum(axis=1) - both
    counted = either >= share * mask_hw.size
    if task == "binary":
        counted[0] = False
    return float(np.mean(both[counted] / either[counted])) if counted.any() else None


class Trust:
    """How far the masks of one source may be moved; not at all before anything was measured.

    Agreement falls with a mask's age, in a straight line through what was measured of masks as new as moved ones get, and as old. A
    comparison that is bad holds at once, several hold for a while.

    Attributes:
        measured: there was a comparison.
        holds: masks as new as moved ones get are good enough to be shown.
    """

    def __init__(self) -> None:
        self.measured = self.holds = False
        self._young: deque[_Measured] = deque(maxlen=_COMPARISONS)
        self._old: deque[_Measured] = deque(maxlen=_COMPARISONS)
        self._lost_for = 0  # comparisons

    def add(self, age: int, value: float, older: tuple[int, float] | None = None) -> None:
        """Take what was measured for one frame.

        Args:
            age: of the newer mask that was moved to it, in frames.
            value: its agreement with the one that was computed, 0 to 1.
            older: age and agreement of the older one.
        """
        self._young.append(_Measured(age, value))
        if older is not None:
            self._old.append(_Measured(*older))
        young = _typical(self._young).value
        self._lost_for = 0 if self.holds or not self.measured else self._lost_for + 1
        if self.holds or not self.measured:
            self.holds = young >= TRUSTED_FROM
        else:
            self.holds = young >= TRUSTED_AGAIN_FROM and self._lost_for >= _FEWEST_TO_RETURN
        self.measured = True

    def expected(self, age: float) -> float:
        """The agreement of a mask of this age, by what was measured; without it 0."""
        return min((line.at(age) for line in self._lines()), default=0.0)

    def allows(self, age: float) -> bool:
        """Whether a mask of this age may be shown."""
        return self.holds and self.expected(age) >= TRUSTED_FROM

    @property
    def reach(self) -> float:
        """The oldest age at which masks agree well enough, in frames; inf where they do not get worse."""
        return min((line.reach for line in self._lines()), default=0.0)

    @property
    def oldest(self) -> float:
        """How old masks get, in frames; by the last comparison, of which there was one."""
        return (self._old or self._young)[-1].age

    @property
    def is_enough(self) -> bool:
        """Whether masks are good enough as old as they get; true before anything was measured."""
        return not self.measured or self.expected(self.oldest) >= TRUSTED_FROM

    @property
    def times_as_many(self) -> float:
        """How many times as many computed masks would be enough, 1 or more."""
        return self.oldest / max(0.1, min(self.reach, self.oldest))

    def _lines(self) -> list[_Line]:
        """Of the last comparisons together, and of the last one."""
        if not self.measured:
            return []
        return [
            _line(_typical(self._young), _typical(self._old) if self._old else None),
            _line(self._young[-1], self._old[-1] if self._old else None),
        ]


class _Measured(NamedTuple):
    age: float
    value: float


class _Line(NamedTuple):
    """Agreement over age: what it is at an age, and what is lost with each frame from there."""

    age: float
    value: float
    loss: float

    def at(self, age: float) -> float:
        return self.value - self.loss * max(0.0, age - self.age)

    @property
    def reach(self) -> float:
        if self.value < TRUSTED_FROM:  # it was 1 at first
            return self.age * (1 - TRUSTED_FROM) / (1 - self.value)
        return self.age + (self.value - TRUSTED_FROM) / self.loss if self.loss else float("inf")


def _line(young: _Measured, old: _Measured | None) -> _Line:
    if old is None:
        return _Line(*young, (1 - young.value) / max(1.0, young.age))
    return _Line(*young, max(0.0, (young.value - old.value) / max(1.0, old.age - young.age)))


def _typical(measured: Collection[_Measured]) -> _Measured:
    """Mean age and agreement; from four on without the worst: a subject that comes into the picture makes one."""
    ordered = sorted(measured, key=lambda each: each.value)
    ages, values = zip(*(ordered[1:] if len(ordered) >= 4 else ordered), strict=True)
    return _Measured(float(np.mean(ages)), float(np.mean(values)))
