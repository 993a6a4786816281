"""Edges of a mask drawn to those of the picture, which has more pixels than the network looked at."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.frames.frame import Image, check_mask

# The side of the squares in which mask and picture are compared, of the frame's shorter side.
_WINDOW_SHARE = 1 / 60
# Picture edges of less contrast than this, in gray levels, hardly count.
_CONTRAST_LEVELS = 6.0
# The comparison is made at about so many pixels, whatever the frame's size.
_COMPARED_PX = 640 * 360
# A mask value from here to as far below 255 is no edge of anything.
_SURE_LEVELS = 6
# Fixed point of the fitted slope.
_ONE = 128

Plane = NDArray[np.int16]


def refine_edges(image_hwc: Image, mask_hw: Image) -> Image:
    """Draw the soft edge of a binary mask to the picture's edges near to it.

    In a small square around each pixel the mask is fitted as a straight line of the gray values, and the mean of the
    lines that meet in a pixel is its new value (He et al., "Guided Image Filtering", 2013). Fitted at a reduced size, applied to every
    pixel; only where the mask is not sure, all else stays as it is.

    Args:
        image_hwc: (H, W, 3) uint8 BGR; not changed.
        mask_hw: (H, W) uint8, probability × 255; not changed. Class maps have no soft edge to draw.

    Returns:
        (H, W) uint8: a new array that is the caller's.

    Raises:
        ShapeError: the two are not of one size, or not uint8.
    """
    check_mask("mask edges", image_hwc, mask_hw)
    refined: Image = np.array(mask_hw, order="C")
    height, width = refined.shape
    unsure = np.asarray(cv2.inRange(refined, _SURE_LEVELS + 1, 254 - _SURE_LEVELS), np.uint8)
    left, top, box_width, box_height = cv2.boundingRect(unsure)
    if box_width == 0:
        return refined
    side_px = max(3.0, min(height, width) * _WINDOW_SHARE)
    margin = math.ceil(side_px)  # as far as the squares of the pixels in the box reach
    rows = slice(max(0, top - margin), top + box_height + margin)
    columns = slice(max(0, left - margin), left + box_width + margin)
    mask, unsure = refined[rows, columns], unsure[rows, columns]
    grey = np.asarray(cv2.cvtColor(np.ascontiguousarray(image_hwc[rows, columns]), cv2.COLOR_BGR2GRAY), np.uint8)
    # Whole blocks are what INTER_AREA is fast for; the rows and columns past the last one take part in applying only.
    factor = max(1, round(math.sqrt(height * width / _COMPARED_PX)))
    slope, offset = _fitted_lines(
        _reduced(grey, factor), _reduced(mask, factor), max(3, 2 * round(side_px / factor / 2) + 1)
    )
    slope, offset = (_enlarged(plane, factor, mask.shape) for plane in (slope, offset))
    fitted = cv2.multiply(slope, grey, scale=1 / _ONE, dtype=cv2.CV_16S)
    cv2.copyTo(cv2.add(fitted, offset, dtype=cv2.CV_8U), unsure, mask)
    return refined


def _fitted_lines(grey: Image, mask: Image, side: int) -> tuple[Plane, Plane]:
    """Slope × `_ONE` and offset of ``mask ≈ slope × grey + offset`` around each pixel, (h, w) int16."""
    window = (side, side)
    picture, values = grey.astype(np.float32), mask.astype(np.float32)
    mean_picture, mean_values = cv2.blur(picture, window), cv2.blur(values, window)
    covariance = cv2.blur(picture * values, window) - mean_picture * mean_values
    variance = cv2.blur(picture * picture, window) - mean_picture * mean_picture
    slope = covariance / (np.maximum(variance, 0) + _CONTRAST_LEVELS**2)
    offset = mean_values - slope * mean_picture
    return _fixed_point(cv2.blur(slope, window) * _ONE), _fixed_point(cv2.blur(offset, window))


def _fixed_point(plane: NDArray[Any]) -> Plane:
    return np.asarray(np.rint(plane).clip(-32768, 32767), np.int16)


def _reduced(plane: Image, factor: int) -> Image:
    """Means of the whole blocks of ``factor`` pixels."""
    height, width = (max(1, length // factor) for length in plane.shape)
    whole = plane[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _enlarged(plane: Plane, factor: int, size_hw: tuple[int, ...]) -> Plane:
    """The plane at the size of what was reduced; past the last whole block it goes on as it ends."""
    height, width = size_hw
    whole = cv2.resize(plane, (min(width, plane.shape[1] * factor), min(height, plane.shape[0] * factor)))
    below, beside = height - whole.shape[0], width - whole.shape[1]
    if below or beside:
        whole = cv2.copyMakeBorder(whole, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    return np.asarray(whole, np.int16)
