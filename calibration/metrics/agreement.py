"""How far two masks are apart: as areas, value by value, and along their contours."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.frames.iou import Mask, check_masks, iou, mean_absolute_error

__all__ = ["boundary_iou", "iou", "mean_absolute_error"]


def boundary_iou(
    mask_hw: Mask, reference_hw: Mask, task: Task = "binary", threshold: float = 0.5, dilation_ratio: float = 0.02
) -> float:
    """Intersection over union of what lies inside each mask within d pixels of its contour.

    The inside of a large subject counts for nothing here, so this sees a contour that is off where the IoU does not. Defined by Cheng
    et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021. As in the authors' evaluation, d is a
    share of the picture's diagonal, at least 1 pixel; distance is counted in steps to one of 8 neighbors (d erosions with a 3×3
    kernel); outside of the picture is background, so a mask has a contour where the picture ends.

    Args:
        mask_hw: (H, W) uint8, probability × 255 or class index.
        reference_hw: the same.
        task: "classes" gives the mean over the classes that either mask has.
        threshold: probability from which a pixel of a binary mask counts.
        dilation_ratio: d as a share of the diagonal.

    Returns:
        0 to 1; 1 when both are empty.

    Raises:
        ShapeError: the masks differ in size, or are not uint8.
    """
    check_masks(mask_hw, reference_hw)
    if task == "binary":
        mask_hw, reference_hw = ((mask >= threshold * 255).astype(np.uint8) for mask in (mask_hw, reference_hw))
    distance_px = max(1, round(dilation_ratio * math.hypot(*mask_hw.shape)))
    in_mask, in_reference = (_near_contours(mask, distance_px) for mask in (mask_hw, reference_hw))
    of_mask, of_reference = _count_classes(mask_hw[in_mask]), _count_classes(reference_hw[in_reference])
    shared = _count_classes(mask_hw[in_mask & in_reference & (mask_hw == reference_hw)])
    union = of_mask + of_reference - shared
    if task == "binary":
        return float(shared[1] / union[1]) if union[1] else 1.0
    present = union > 0  # every class has a contour
    return float(np.mean(shared[present] / union[present]))


def _near_contours(labels_hw: Mask, distance_px: int) -> NDArray[np.bool_]:
    """Where another label, or the end of the picture, is within ``distance_px``: the contours of all labels in one pass."""
    kernel = np.ones((3, 3), np.uint8)
    # The default border is neutral; OpenCV makes one larger kernel, taken row by row, of the iterations.
    lowest, highest = (operation(labels_hw, kernel, iterations=distance_px) for operation in (cv2.erode, cv2.dilate))
    near: NDArray[np.bool_] = lowest != highest
    near[:distance_px] = near[-distance_px:] = True
    near[:, :distance_px] = near[:, -distance_px:] = True
    return near


def _count_classes(labels: Mask) -> NDArray[np.intp]:
    return np.bincount(labels, minlength=256)
