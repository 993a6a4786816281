"""Pictures whose pixels are not square, for what shows them on a screen."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np

from pipeline.frames.frame import Image


def squared(view: Image, sample_aspect: Fraction) -> Image:
    """A view with square pixels, by the smaller change of size that never loses a row or column; itself if they are square.

    Args:
        view: (H, W, 3) uint8 BGR.
        sample_aspect: the shape of its pixels, width to height.
    """
    if sample_aspect == 1:
        return view
    height, width = view.shape[:2]
    size_wh = (round(width * sample_aspect), height) if sample_aspect > 1 else (width, round(height / sample_aspect))
    return np.asarray(cv2.resize(view, size_wh, interpolation=cv2.INTER_LINEAR), np.uint8)
