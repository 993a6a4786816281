"""The metrics of saliency papers, against ground truth: of one picture and of a data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.metrics.agreement import boundary_iou, iou
from pipeline.errors import OptionError, ShapeError
from pipeline.frames.frame import describe

BETA_SQUARED = 0.3  # the weight of precision that saliency papers use
EPSILON = float(
    np.finfo(np.float64).eps
)  # where the published S-measure has it, so that near-empty masks come out alike

Mask = NDArray[np.uint8]
Truth = NDArray[np.bool_]
Counts = NDArray[np.intp]  # (2, 256): how many pixels have each value, off and on the subject


class SaliencyMetrics:
    """Collects max F-measure, S-measure, mean absolute error, IoU and boundary IoU, picture by picture.

    There are two ways to take the maximum of the F-measure over 256 thresholds. Papers (and U²-Net's) average precision and recall
    over the pictures and take F of the averages; others average F over the pictures. Both are told.
    """

    def __init__(self) -> None:
        self._precision = np.zeros(256)
        self._recall = np.zeros(256)
        self._f_measure = np.zeros(256)
        self._of_pictures: dict[str, list[float]] = {"s_measure": [], "mae": [], "iou": [], "boundary_iou": []}

    def add(self, mask_hw: Mask, truth_hw: Truth) -> None:
        """Add one picture.

        Args:
            mask_hw: (H, W) uint8, probability × 255. Taken as it is: published evaluations stretch each mask to 0..255 first, as
                the contract "official" does inside the frame program.
            truth_hw: (H, W) bool, True on the subject.

        Raises:
            ShapeError: they differ in size, or are not uint8 and bool.
        """
        _check(mask_hw, truth_hw)
        # At threshold t all pixels of value t and above are subject: sums from the brightest value downwards.
        hits = np.bincount(mask_hw[truth_hw], minlength=256)[::-1].cumsum()[::-1]
        found = np.bincount(mask_hw.ravel(), minlength=256)[::-1].cumsum()[::-1]
        precision = hits / np.maximum(found, 1)
        recall = hits / max(np.count_nonzero(truth_hw), 1)
        self._precision += precision
        self._recall += recall
        self._f_measure += f_measure(precision, recall)
        reference_hw = truth_hw.astype(np.uint8) * 255
        of_picture = {
            "s_measure": s_measure(mask_hw, truth_hw),
            "mae": float(np.abs(mask_hw / 255 - truth_hw).mean()),
            "iou": iou(mask_hw, reference_hw),
            "boundary_iou": boundary_iou(mask_hw, reference_hw),
        }
        for name, value in of_picture.items():
            self._of_pictures[name].append(value)

    def result(self) -> dict[str, Any]:
        """Number of pictures, both maxima of the F-measure, and the means of the others; all 0 to 1, to 5 digits.

        Returns:
            pictures, max_f, max_mean_f, s_measure, mae, iou and boundary_iou (both at probability 0.5).

        Raises:
            OptionError: no picture was added.
        """
        count = len(self._of_pictures["mae"])
        if not count:
            raise OptionError("ground truth: expected at least one picture with its mask, got none")
        return {
            "pictures": count,
            "max_f": round(float(f_measure(self._precision / count, self._recall / count).max()), 5),
            "max_mean_f": round(float(self._f_measure.max() / count), 5),
            **{name: round(float(np.mean(values)), 5) for name, values in self._of_pictures.items()},
        }


def f_measure(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """F-measure with β² = 0.3 (Achanta et al., "Frequency-tuned Salient Region Detection", CVPR 2009).

    Args:
        precision: any shape, float64, 0 to 1.
        recall: the same shape.

    Returns:
        The same shape, float64, 0 to 1; 0 where both are 0. A new array.
    """
    result: NDArray[np.float64] = (
        (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-9)
    )
    return result


def s_measure(mask_hw: Mask, truth_hw: Truth, alpha: float = 0.5) -> float:
    """S-measure: is the structure of the mask that of the truth, as objects and region by region?

    Defined by Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017. The mean of two scores: how bright
    and even the mask is on the subject, and its inverse off it; and a structural similarity in the four parts of the picture around
    the subject's centre. Without a subject, or without background, it is the mean agreement. Sums are exact: an even part counts as
    even where floating point would leave a trace of variance.

    Args:
        mask_hw: (H, W) uint8, probability × 255.
        truth_hw: (H, W) bool, True on the subject.
        alpha: the weight of the first score, 0 to 1.

    Returns:
        0 to 1; 1 for the truth itself.

    Raises:
        ShapeError: they differ in size, or are not uint8 and bool.
    """
    _check(mask_hw, truth_hw)
    share = float(truth_hw.mean())
    if share in (0, 1):
        brightness = float(mask_hw.mean()) / 255
        return brightness if share else 1 - brightness
    row, column = _centre(truth_hw)
    parts = [
        _count_values(mask_hw[rows, columns], truth_hw[rows, columns])
        for rows in (slice(row), slice(row, None))
        for columns in (slice(column), slice(column, None))
    ]
    off, on = sum(parts, start=np.zeros((2, 256), np.intp))
    objects = share * _evenness(on) + (1 - share) * _evenness(off[::-1])
    regions = sum(int(part.sum()) / truth_hw.size * _similarity(part) for part in parts)
    return max(0.0, alpha * objects + (1 - alpha) * regions)


def _centre(truth_hw: Truth) -> tuple[int, int]:
    """Row and column at which the picture is cut; the subject's mean pixel is the last of the upper left part, as published."""
    sums = (np.count_nonzero(truth_hw, axis=axis) for axis in (1, 0))
    row, column = (round(float(count @ np.arange(len(count)) / count.sum())) + 1 for count in sums)
    return row, column


def _count_values(mask_hw: Mask, truth_hw: Truth) -> Counts:
    on = np.bincount(mask_hw[truth_hw], minlength=256)
    return np.stack([np.bincount(mask_hw.ravel(), minlength=256) - on, on])


def _evenness(counts: NDArray[np.intp]) -> float:
    """Score of one object from how many of its pixels have each value: 1 where all are 255."""
    count, mean, squares = _moments(counts)
    deviation = math.sqrt(squares / (count - 1)) if count > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + EPSILON)


def _similarity(counts: Counts) -> float:
    """Structural similarity of mask and truth in one part of the picture, -1 to 1."""
    size, on = int(counts.sum()), int(counts[1].sum())
    if not size:  # the subject's center is in the last row or column
        return 0.0
    _, mean, squares = _moments(counts.sum(axis=0))
    truth_mean = on / size
    truth_squares = on * (size - on) / size
    products = (size * _total(counts[1]) - on * _total(counts.sum(axis=0))) / (255 * size)
    degrees = max(size - 1, 1)
    shared = 4 * mean * truth_mean * products / degrees
    either = (mean**2 + truth_mean**2) * ((squares + truth_squares) / degrees)
    if shared == 0:
        return 1.0 if either == 0 else 0.0
    return shared / (either + EPSILON)


def _moments(counts: NDArray[np.intp]) -> tuple[int, float, float]:
    """Number of pixels, their mean, and the sum of their squared distances from it, as probabilities."""
    # Whole numbers of any length: the difference of two large sums of a 4K picture loses nothing.
    count, total = int(counts.sum()), _total(counts)
    squares = int(counts @ np.arange(256) ** 2)
    return count, total / (255 * count), (count * squares - total**2) / (255**2 * count)


def _total(counts: NDArray[np.intp]) -> int:
    return int(counts @ np.arange(256))


def _check(mask_hw: Mask, truth_hw: Truth) -> None:
    # A truth of 0 and 255 would be taken as indices.
    fits = mask_hw.dtype == np.uint8 and truth_hw.dtype == np.bool_ and mask_hw.ndim == 2 and mask_hw.size > 0
    if not fits or mask_hw.shape != truth_hw.shape:
        raise ShapeError(
            f"ground truth: expected a (H, W) uint8 mask and its (H, W) bool truth, got {describe(mask_hw)} and {describe(truth_hw)}"
        )
