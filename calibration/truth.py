"""Ground truth beside frames: what the masks of a frame should be, by somebody who looked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from pipeline.bundle import Task
from pipeline.sources.pictures import read_picture

Truth = NDArray[np.uint8]
"""(H, W) uint8: for "binary" 255 on the subject and 0 elsewhere, for "classes" class indices."""

Truths = Callable[[str, tuple[int, int]], Truth]
"""A frame's name and its (height, width) to its truth."""


def read_truths(folder: str, task: Task) -> Truths:
    """Ground truth from a folder of NAME.png, grey, by the frames' names.

    Args:
        folder: for "binary" a picture above 127 is subject, for "classes" its values are class indices.
        task: what masks mean.

    Returns:
        What reads them. It raises ``CalibrationError`` where a frame has none, or one of another size or form.

    Raises:
        CalibrationError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise CalibrationError(f"--calib-masks {folder}: expected a folder with NAME.png for every frame, got none")

    def read(name: str, size_hw: tuple[int, int]) -> Truth:
        path = Path(folder) / f"{name}.png"
        if not path.is_file():
            raise CalibrationError(f"--calib-masks {folder}: expected {path.name} for the frame {name}, got none")
        image = read_picture(path)
        if image.shape[:2] != size_hw:
            height, width = image.shape[:2]
            raise CalibrationError(
                f"{path}: expected a mask of {size_hw[0]}×{size_hw[1]} as its frame, got {height}×{width}"
            )
        if (image != image[:, :, :1]).any():
            raise CalibrationError(f"{path}: expected a grey mask, got colours")
        grey = np.ascontiguousarray(image[:, :, 0])
        return np.where(grey > 127, 255, 0).astype(np.uint8) if task == "binary" else grey

    return read


def resize_truth(truth_hw: Truth, size_hw: tuple[int, int]) -> Truth:
    """To another (height, width), by the nearest pixel."""
    return np.asarray(cv2.resize(truth_hw, size_hw[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
