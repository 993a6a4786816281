"""How much masks flicker: what changes in them where the picture does not change."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image, check_mask

STILL_LEVELS = 3
"""A pixel is still where the mean gray of the 5×5 pixels around it changes by less than this, of 255."""

LEAST_STILL = 0.05
"""Of two frames with a smaller share of still pixels, nothing is counted: there was a cut, or the camera swept."""

_SIDE = 5


class FlickerMeter:
    """Measures one source's masks, frame after frame.

    The flicker of two successive frames is the mean of |mask − mask before| ÷ 255 over the still pixels, for class maps the
    share of them whose class changed. Of each picture, the gray values are averaged over 5×5 pixels, so that neither a camera's
    noise nor that of the compression counts as change; still is what then differs by less than ``STILL_LEVELS``. The flicker of
    a source is the mean over its pairs of frames.

    A mask that follows a moving subject changes too where the subject and what is behind it look alike, so that of
    moving pictures some flicker is due. Compare masks of the same pictures only.

    Args:
        task: "binary" (mask = probability × 255) or "classes" (mask = class index).
    """

    def __init__(self, task: Task = "binary") -> None:
        self._task = task
        self._grey: Image | None = None
        self._mask: Image | None = None
        self._total = 0.0
        self.pairs = 0

    @property
    def flicker(self) -> float:
        """0 to 1; 0 where no pair of frames was counted."""
        return self._total / self.pairs if self.pairs else 0.0

    def add(self, image_hwc: Image, mask_hw: Image) -> float | None:
        """Look at the next frame.

        Args:
            image_hwc: (H, W, 3) uint8 BGR; not changed, not kept.
            mask_hw: (H, W) uint8; not changed, a copy is kept until the next frame.

        Returns:
            The flicker of this frame and the one before it, 0 to 1; None where they are not counted: at the first frame, at a change
            of size, at a cut.

        Raises:
            ShapeError: the two are not of one size, or not uint8.
        """
        check_mask("frame", image_hwc, mask_hw)
        grey = np.asarray(cv2.blur(cv2.cvtColor(image_hwc, cv2.COLOR_BGR2GRAY), (_SIDE, _SIDE)), np.uint8)
        before, mask_before = self._grey, self._mask
        self._grey, self._mask = grey, mask_hw.copy()
        if before is None or mask_before is None or before.shape != grey.shape:
            return None
        still: NDArray[np.bool_] = cv2.absdiff(grey, before) < STILL_LEVELS
        if np.count_nonzero(still) < LEAST_STILL * still.size:
            return None
        if self._task == "classes":
            change = float(np.mean((mask_hw != mask_before)[still]))
        else:
            change = float(np.mean(cv2.absdiff(mask_hw, mask_before)[still])) / 255
        self._total += change
        self.pairs += 1
        return change
