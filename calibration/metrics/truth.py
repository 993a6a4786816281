"""Ground truth beside frames: what the masks of a frame should be, by somebody who looked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import CalibrationError, EdgemaskError
from pipeline.sources.picture_file import read_picture

Truth = NDArray[np.uint8]
"""(H, W) uint8: for "binary" 255 on the subject, 0 elsewhere and ``VOID`` of "binary" where nobody knows; for "classes" class indices,
and 255 where nobody knows."""

VOID: dict[Task, int] = {"binary": 128, "classes": 255}
"""The value of pixels that count for nothing."""

# So many masks are looked at to see whether a folder's subject is 1 or 255.
_LOOKED_AT = 64

Truths = Callable[[str, tuple[int, int]], Truth]
"""A frame's name and its (height, width) to its truth."""


def read_truths(folder: str, task: Task) -> Truths:
    """Ground truth from a folder of NAME.png, gray, by the frames' names.

    Args:
        folder: for "binary" pictures above 127 on the subject, or of 0 and 1 with 1 on the subject and 255 where nobody knows; for
            "classes" class indices, 255 where nobody knows.
        task: what masks mean.

    Returns:
        What reads them. It raises ``CalibrationError`` where a frame has none, or one of another size or form.

    Raises:
        CalibrationError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise CalibrationError(f"--calib-masks {folder}: expected a folder with NAME.png for every frame, got none")
    of_ones = task == "binary" and any(_is_of_ones(path) for path in sorted(Path(folder).glob("*.png"))[:_LOOKED_AT])

    def read(name: str, size_hw: tuple[int, int]) -> Truth:
        path = Path(folder) / f"{name}.png"
        if not path.is_file():
            raise CalibrationError(f"--calib-masks {folder}: expected {path.name} for the frame {name}, got none")
        grey = _read_grey(path)
        if grey.shape != size_hw:
            height, width = grey.shape
            raise CalibrationError(
                f"{path}: expected a mask of {size_hw[0]}×{size_hw[1]} as its frame, got {height}×{width}"
            )
        if task == "classes":
            return grey
        if of_ones:
            _require(
                path, np.isin(grey, (0, 1, 255)).all(), "0, 1 and 255 alone, as the other masks of the folder", grey
            )
            return np.select([grey == 1, grey == 255], [255, VOID["binary"]], 0).astype(np.uint8)
        _require(path, grey.max() > 127 or not grey.any(), "a subject above 127, or of 1 on 0", grey)
        return np.where(grey > 127, 255, 0).astype(np.uint8)

    return read


def with_void_agreed(mask_hw: NDArray[np.uint8], truth_hw: Truth) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A binary mask, and its truth as (H, W) bool, both of them background where nobody knows."""
    void = truth_hw == VOID["binary"]
    return np.where(void, 0, mask_hw).astype(np.uint8), truth_hw > VOID["binary"]


def _read_grey(path: Path) -> Truth:
    image = read_picture(path)
    if (image != image[:, :, :1]).any():
        raise CalibrationError(f"{path}: expected a grey mask, got colours")
    return np.ascontiguousarray(image[:, :, 0])


def _is_of_ones(path: Path) -> bool:
    try:
        values = set(np.unique(_read_grey(path)).tolist())
    except EdgemaskError:  # told when a frame asks for it
        return False
    return 1 in values and values <= {0, 1, 255}


def _require(path: Path, fits: object, expected: str, grey: Truth) -> None:
    if not fits:
        raise CalibrationError(
            f"{path}: expected {expected}, got values up to {int(grey.max())}: which of them is the subject?"
        )


def resize_truth(truth_hw: Truth, size_hw: tuple[int, int]) -> Truth:
    """To another (height, width), by the nearest pixel."""
    return np.asarray(cv2.resize(truth_hw, size_hw[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
