"""The metrics of saliency papers over a data set with ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.agreement import iou
from pipeline.errors import OptionError, ShapeError
from pipeline.frame import describe

BETA_SQUARED = 0.3  # the weight of precision that saliency papers use


class SaliencyMetrics:
    """Collects max F-measure, mean absolute error and IoU, picture by picture.

    There are two ways to take the maximum of the F-measure over 256 thresholds. Papers (and U²-Net's) average precision and recall
    over the pictures and take F of the averages; others average F over the pictures. Both are told.
    """

    def __init__(self) -> None:
        self._precision = np.zeros(256)
        self._recall = np.zeros(256)
        self._f_measure = np.zeros(256)
        self._errors: list[float] = []
        self._ious: list[float] = []

    def add(self, mask_hw: NDArray[np.uint8], truth_hw: NDArray[np.bool_]) -> None:
        """Add one picture.

        Args:
            mask_hw: (H, W) uint8, probability × 255.
            truth_hw: (H, W) bool, True on the subject.

        Raises:
            ShapeError: they differ in size.
        """
        if mask_hw.shape != truth_hw.shape:
            raise ShapeError(f"ground truth: expected {mask_hw.shape} as the picture, got {describe(truth_hw)}")
        # At threshold t all pixels of value t and above are subject: sums from the brightest value downwards.
        hits = np.bincount(mask_hw[truth_hw], minlength=256)[::-1].cumsum()[::-1]
        found = np.bincount(mask_hw.ravel(), minlength=256)[::-1].cumsum()[::-1]
        precision = hits / np.maximum(found, 1)
        recall = hits / max(np.count_nonzero(truth_hw), 1)
        self._precision += precision
        self._recall += recall
        self._f_measure += f_measure(precision, recall)
        self._errors.append(float(np.abs(mask_hw / 255 - truth_hw).mean()))
        self._ious.append(iou(mask_hw, truth_hw.astype(np.uint8) * 255))

    def result(self) -> dict[str, Any]:
        """Number of pictures, both maxima of the F-measure, mean absolute error and mean IoU at 0.5.

        Raises:
            OptionError: no picture was added.
        """
        count = len(self._errors)
        if not count:
            raise OptionError("--data: expected pictures with masks, got none")
        return {
            "pictures": count,
            "max_f": round(float(f_measure(self._precision / count, self._recall / count).max()), 5),
            "max_mean_f": round(float(self._f_measure.max() / count), 5),
            "mae": round(float(np.mean(self._errors)), 5),
            "iou": round(float(np.mean(self._ious)), 5),
        }


def f_measure(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """F-measure of precision and recall, 0 where both are 0."""
    result: NDArray[np.float64] = (
        (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-9)
    )
    return result
