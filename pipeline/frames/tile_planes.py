"""A picture as a few tiles of luma and color, by which pictures are compared."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

TILES = 16
"""On each side."""


def tile_planes(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Look at every pixel of a picture, and keep sixteen by sixteen tiles of it.

    Args:
        image: (H, W, 3) uint8 BGR; not changed and not kept.

    Returns:
        (64, 64, 3) uint8 BGR, in which noise is gone, and the tiles as luma and both color differences, (16, 16, 3) float32, 0 to 1.
    """
    small = cv2.resize(image, (4 * TILES, 4 * TILES), interpolation=cv2.INTER_AREA)
    tiles = cv2.resize(small, (TILES, TILES), interpolation=cv2.INTER_AREA)
    planes = cv2.cvtColor(tiles.astype(np.float32) / 255, cv2.COLOR_BGR2YCrCb)
    return np.asarray(small, np.uint8), np.asarray(planes, np.float32)
