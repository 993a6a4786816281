"""Pictures with the masks that a network gave for them, or should have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CompileError
from pipeline.frames.frame import Image
from pipeline.sources.picture_file import read_picture
from pipeline.sources.pictures import PICTURES

# Folders of pictures and of masks beside each other, as data sets call them.
_PICTURE_FOLDERS = ("images", "imgs", "image", "pictures", "frames")
_MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "gt")
# What is added to a picture's name for its mask, where both lie in one folder.
_ENDINGS = ("", "_mask", "-mask", "_matte", "_gt")


@dataclass(frozen=True)
class Example:
    """A picture and its mask.

    Attributes:
        name: of the picture's file.
        picture: (H, W, 3) uint8 BGR.
        mask_hw: (H, W) uint8, as its file has it.
    """

    name: str
    picture: Image
    mask_hw: NDArray[np.uint8]


def read_examples(folder: Path, most: int) -> list[Example]:
    """Read pairs of picture and mask, at most ``most`` of them, spread over all in the order of their names.

    Args:
        folder: with NAME.jpg and NAME.png (or NAME_mask.png), or with the folders images and masks.
        most: 1 or more.

    Raises:
        CompileError: there are none, or a mask has colors, or another size than its picture.
        SourceError: a file cannot be read.
    """
    if not folder.is_dir():
        raise CompileError(f"--examples {folder}: expected a folder with pictures and masks, got none")
    pairs = _pairs(folder)
    if not pairs:
        raise CompileError(
            f"--examples {folder}: expected pictures and masks, NAME.jpg beside NAME.png or folders images and masks, got no pair"
        )
    step = max(1.0, len(pairs) / most)
    return [_example(*pairs[int(index * step)]) for index in range(min(most, len(pairs)))]


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    pictures = next((inside[name] for name in _PICTURE_FOLDERS if name in inside), folder)
    masks = next((inside[name] for name in _MASK_FOLDERS if name in inside), folder)
    # Of one name a PNG is the mask: it is the only one of both forms that keeps its values.
    by_stem = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() == ".png"}
    pairs = []
    for path in sorted(pictures.iterdir()):
        if path.suffix.lower() in PICTURES.suffixes:
            found = [by_stem[path.stem + ending] for ending in _ENDINGS if path.stem + ending in by_stem]
            pairs += [(path, mask) for mask in found if mask != path][:1]
    return pairs


def _example(picture: Path, mask: Path) -> Example:
    image, values = read_picture(picture), read_picture(mask)
    if (values != values[:, :, :1]).any():
        raise CompileError(f"{mask}: expected a gray mask, got colors: save probabilities or class indices")
    if values.shape != image.shape:
        raise CompileError(
            f"{mask}: expected a mask of {_size(image.shape)} as its picture {picture.name}, got {_size(values.shape)}"
        )
    return Example(picture.name, image, np.ascontiguousarray(values[:, :, 0]))


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"
