"""How far two masks of a picture agree: one definition, for the gate and for the run."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.frames.frame import describe

Mask = NDArray[np.uint8]
Task = Literal["binary", "classes"]

LEAST_COVERED = 0.01
MOST_UNDECIDED = 0.25
"""A frame is judged by itself if its subject covers at least ``LEAST_COVERED`` of it, and its undecided pixels are at most
``MOST_UNDECIDED`` of the subject: a subject of ten pixels, or one that the network itself cannot make out, moves with any rounding."""

UNDECIDED_MARGIN = 0.4
"""A pixel is undecided where the two likeliest classes are closer than this: for one class, a probability from 0.3 to 0.7."""


def iou(mask_hw: Mask, reference_hw: Mask, task: Task = "binary", threshold: float = 0.5) -> float:
    """Intersection over union of two masks.

    Args:
        mask_hw: (H, W) uint8, probability × 255 or class index.
        reference_hw: the same.
        task: "classes" gives the mean over the classes that either mask has.
        threshold: probability from which a pixel of a binary mask counts.

    Returns:
        0 to 1; 1 when both are empty.

    Raises:
        ShapeError: the masks differ in size, or are not uint8.
    """
    check_masks(mask_hw, reference_hw)
    if task == "classes":
        present = np.union1d(np.unique(mask_hw), np.unique(reference_hw))
        return float(np.mean([_iou(mask_hw == index, reference_hw == index) for index in present]))
    level = threshold * 255
    return _iou(mask_hw >= level, reference_hw >= level)


def mean_absolute_error(mask_hw: Mask, reference_hw: Mask, task: Task = "binary") -> float:
    """Mean distance of two masks.

    Returns:
        0 to 1: of the probabilities, or for "classes" the share of pixels whose class differs.

    Raises:
        ShapeError: the masks differ in size, or are not uint8.
    """
    check_masks(mask_hw, reference_hw)
    if task == "classes":
        return float(np.mean(mask_hw != reference_hw))
    return float(np.mean(np.abs(mask_hw.astype(np.float32) - reference_hw.astype(np.float32))) / 255)


def covered_share(mask_hw: Mask, task: Task = "binary") -> float:
    """What of a mask is subject, 0 to 1; of classes, what is not the most frequent one."""
    if task == "classes":
        return 1 - float(np.bincount(mask_hw.ravel()).max()) / mask_hw.size
    return float(np.mean(mask_hw >= 128))


def undecided_share(mask_hw: Mask) -> float:
    """What of a binary mask is undecided, 0 to 1."""
    return float(np.mean(np.abs(mask_hw / 255 - 0.5) < UNDECIDED_MARGIN / 2))


def check_masks(mask_hw: Mask, reference_hw: Mask) -> None:
    """Refuse two masks that cannot be compared.

    Raises:
        ShapeError: the masks differ in size, or are not uint8.
    """
    # A mask of True or of probabilities to 1 would be far below every threshold, and agree with all others.
    same_type = mask_hw.dtype == reference_hw.dtype == np.uint8
    if mask_hw.shape != reference_hw.shape or mask_hw.ndim != 2 or mask_hw.size == 0 or not same_type:
        raise ShapeError(
            f"masks: expected two (H, W) uint8 of one size, got {describe(mask_hw)} and {describe(reference_hw)}"
        )


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0
