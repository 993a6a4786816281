"""Ground truth beside frames: what the masks of a frame should be, by somebody who looked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps

from pipeline.bundles.bundle import Task
from pipeline.errors import CalibrationError, EdgemaskError

Truth = NDArray[np.uint8]
"""(H, W) uint8: for "binary" 255 on the subject, 0 elsewhere and ``VOID`` of "binary" where nobody knows; for "classes" class indices,
and 255 where nobody knows."""

VOID: dict[Task, int] = {"binary": 128, "classes": 255}
"""The value of pixels that count for nothing."""

# So many masks are looked at to see whether a folder's subject is 1 or 255.
_LOOKED_AT = 64
_SUFFIXES = frozenset((".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jpg", ".jpeg", ".pgm"))
_LOSSY = frozenset(("JPEG", "MPO", "WEBP"))
_VOID_16_BITS = 65535

Truths = Callable[[str, tuple[int, int]], Truth]
"""A frame's name and its (height, width) to its truth."""


def read_truths(folder: str, task: Task, option: str = "--calib-masks") -> Truths:
    """Ground truth from a folder of pictures, by the frames' names, whatever their suffix.

    Args:
        folder: for "binary" pictures above 127 on the subject, or of 0 and 1 with 1 on the subject and 255 where nobody knows; for
            "classes" class indices, of 8 or 16 bits or those of a palette, and 255 where nobody knows.
        task: what masks mean.
        option: what the folder was given by, for messages.

    Returns:
        What reads them. It raises ``CalibrationError`` where a frame has none, or one of another size or form.

    Raises:
        CalibrationError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise CalibrationError(f"{option} {folder}: expected a folder with NAME.png for every frame, got none")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    of_ones = task == "binary" and any(_is_of_ones(path) for path in files[:_LOOKED_AT])

    def read(name: str, size_hw: tuple[int, int]) -> Truth:
        if name not in by_name:
            raise CalibrationError(f"{option} {folder}: expected {name}.png for the frame {name}, got none")
        path, *others = by_name[name]
        if others:
            raise CalibrationError(
                f"{option} {folder}: expected one mask for the frame {name}, got {path.name} and {others[0].name}: remove one"
            )
        grey = _read_grey(path, task)
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


def _read_grey(path: Path, task: Task) -> Truth:
    """(H, W) uint8 as the file has it, not as it is seen: a palette's indices are classes, and transparency is none."""
    try:
        with PillowImage.open(path) as picture:
            if task == "classes" and picture.format in _LOSSY:
                raise CalibrationError(
                    f"{path}: expected class indices as PNG, got {picture.format}, which changes values: save them anew"
                )
            image = ImageOps.exif_transpose(picture)
            if image.mode == "P":
                return _of_palette(path, image, task)
            if image.mode in ("LA", "RGBA"):
                image, alpha = image.convert(image.mode[:-1]), np.asarray(image.getchannel("A"))
                _require_opaque(path, alpha)
            # Not by Pillow's own conversion, which cuts 16 bits off at 255.
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, ValueError, SyntaxError) as error:
        raise CalibrationError(f"{path}: expected a mask, got a file that cannot be decoded") from error
    if values.ndim == 3:
        if values.shape[2] != 3 or (values != values[:, :, :1]).any():
            raise CalibrationError(
                f"{path}: expected a grey mask, got colours: is this the picture and not its mask, or are classes drawn in colours?"
            )
        values = values[:, :, 0]
    return _in_8_bits(path, values, task)


def _of_palette(path: Path, image: PillowImage.Image, task: Task) -> Truth:
    indices = np.asarray(image, np.uint8)
    if task == "classes":
        return np.ascontiguousarray(indices)
    # A palette of greys was made by a program that saves space; one of colors numbers classes: 0 and 1, and 255 as in VOC.
    colors = np.asarray(image.convert("RGB"))
    if (colors == colors[:, :, :1]).all():
        return np.ascontiguousarray(colors[:, :, 0])
    _require(path, np.isin(indices, (0, 1, 255)).all(), "a palette of greys, or of the indices 0, 1 and 255", indices)
    return np.ascontiguousarray(indices)


def _in_8_bits(path: Path, values: NDArray[np.generic], task: Task) -> Truth:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, np.uint8)
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values) or whole.min(initial=0) < 0:
        raise CalibrationError(f"{path}: expected whole numbers from 0, got {values.dtype} with others")
    largest = int(whole.max(initial=0))
    if task == "classes" and largest == _VOID_16_BITS:
        whole[whole == _VOID_16_BITS] = VOID["classes"]
        largest = int(whole.max(initial=0))
    if largest > 255:
        if task == "classes":
            raise CalibrationError(f"{path}: expected class indices up to 255, got {largest}")
        whole >>= 8
    return whole.astype(np.uint8)


def _require_opaque(path: Path, alpha: NDArray[np.uint8]) -> None:
    if alpha.min(initial=255) < 255:
        raise CalibrationError(
            f"{path}: expected a grey mask, got one that is transparent in part: is the subject in its colors or in its alpha?"
        )


def _is_of_ones(path: Path) -> bool:
    try:
        values = set(np.unique(_read_grey(path, "binary")).tolist())
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
