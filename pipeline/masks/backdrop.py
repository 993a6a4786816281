"""What stands behind the subjects of a camera that stands still, and where a picture differs from it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.frames.frame import Image

SAME, UNKNOWN, SHADOW, DIFFERS = range(4)
"""A pixel is what is behind, or nobody knows; it is that but darker, which a shadow may be; or it is something else."""

# A mask's edge may be wrong by so many pixels: what is so near to a subject is not learned.
_RIM_PX = 4
# A difference in gray levels counts from so many, and from so many times the mean one of what stands still.
_LEAST_LEVELS, _TIMES_MEAN = 4.0, 3.0
# Where more of what is around the subjects differs, the camera moves.
_MOST_SHARE = 0.12
# The share of a new picture that is learned where it does not differ.
_SHARE = 0.4


class Backdrop:
    """Learns from computed masks what is behind them; one instance for each scene."""

    def __init__(self) -> None:
        self._learned = np.zeros((0, 0), np.float32)
        self._levels: Image = np.zeros((0, 0), np.uint8)
        self._half = self._unknown = self._levels
        self._last: Image | None = None
        self._from_levels = _LEAST_LEVELS

    def learn(self, grey: Image, is_subject: Image) -> Image | None:
        """Take a picture whose mask was computed.

        Args:
            grey: (h, w) uint8; kept, not changed.
            is_subject: (h, w) uint8, above 0 on subjects.

        Returns:
            The states of its pixels, as ``states`` gives them, by what was learned before; None where nothing was, or the camera moves.
        """
        last, self._last = self._last, grey
        outside = cv2.dilate(is_subject, np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)) == 0
        states = None if last is None else self.states(grey)
        around = np.count_nonzero(outside)
        if last is None or states is None or np.count_nonzero(outside & (states >= SHADOW)) > _MOST_SHARE * around:
            self._keep(grey.astype(np.float32), outside)
            return None
        still = cv2.absdiff(grey, self._levels)[outside & (states == SAME)]
        if still.size:
            self._from_levels = max(_LEAST_LEVELS, _TIMES_MEAN * float(still.mean()))
        # What differs is learned once it has stayed from one computed frame to the next: a shadow moves on, a parked car stays.
        stays = (cv2.absdiff(grey, last) <= self._from_levels) | (states == UNKNOWN)
        share = np.where(states == SAME, np.float32(_SHARE), stays.astype(np.float32)) * outside
        self._keep(self._learned + share * (grey - self._learned), outside | (self._unknown == 0))
        return states

    def states(self, grey: Image) -> Image:
        """(h, w) uint8, new: ``SAME``, ``UNKNOWN``, ``SHADOW`` or ``DIFFERS`` for each pixel of a picture."""
        off = cv2.threshold(cv2.absdiff(grey, self._levels), self._from_levels, DIFFERS, cv2.THRESH_BINARY)[1]
        may_be_shadow = cv2.threshold(
            cv2.inRange(grey, self._half, self._levels), 0, DIFFERS - SHADOW, cv2.THRESH_BINARY
        )[1]
        known = cv2.subtract(cv2.medianBlur(off, 3), may_be_shadow)  # not below 0, which is SAME
        return np.asarray(cv2.copyTo(self._unknown, self._unknown, known), np.uint8)

    def _keep(self, learned: NDArray[np.float32], is_known: NDArray[np.bool_]) -> None:
        self._learned, self._levels = learned, np.rint(learned).astype(np.uint8)
        self._half = np.asarray(self._levels >> 1, np.uint8)
        self._unknown = np.where(is_known, 0, UNKNOWN).astype(np.uint8)
