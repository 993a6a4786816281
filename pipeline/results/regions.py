"""Masks to regions: the classes in a picture and their connected parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError, ShapeError
from pipeline.frames.frame import Image, describe
from pipeline.render.look import subject_level
from pipeline.shapes.found import ClassFound
from pipeline.shapes.region import Region

MAX_REGIONS = 20
"""A class has at most this many regions, the largest first."""

MIN_SHARE = 0.0005
"""A connected part that covers less of the frame is no region: one of 20 × 23 pixels at 720p."""

# Walking around parts costs by the length of their outlines, labels cost by the pixels of the picture: as much where one pixel of so
# many is at an outline.
_PIXELS_BY_EDGE = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """How masks are read.

    Attributes:
        task: "binary" (mask = probability × 255) or "classes" (mask = class index).
        names: of the classes, as in the manifest; those that have none are called by their number.
        threshold: the probability from which a pixel of a binary mask is inside, 0 to 1.
        has_background: class 0 has no regions.
        min_share: see `MIN_SHARE`.
        max_regions: see `MAX_REGIONS`.
    """

    task: Task = "binary"
    names: Sequence[str] = ()
    threshold: float = 0.5
    has_background: bool = True
    min_share: float = MIN_SHARE
    max_regions: int = MAX_REGIONS

    @property
    def first(self) -> int:
        """The number of the first class that has regions."""
        return 1 if self.task == "binary" or self.has_background else 0

    def name(self, number: int) -> str:
        """What a class is called; of a binary mask there is number 1 alone, whose name is the only one."""
        at = 0 if self.task == "binary" else number
        return self.names[at] if at < len(self.names) else "" if self.task == "binary" else f"class {number}"


def classes_of(mask: Image, reading: Reading) -> list[ClassFound]:
    """The classes in a mask, by number, with their regions.

    Args:
        mask: (H, W) uint8; not changed.
        reading: how.
    """
    mask = np.ascontiguousarray(mask)
    if reading.task == "binary":
        subject = cv2.threshold(mask, subject_level(reading.threshold) - 1, 255, cv2.THRESH_BINARY)[1]
        found = [_class_of(subject, 1, reading, mask, has_regions=True)]
    else:
        present = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()).tolist()
        found = [
            _class_of(cv2.compare(mask, number, cv2.CMP_EQ), number, reading, None, has_regions=number >= reading.first)
            for number in present
        ]
    return [entry for entry in found if entry.area > 0]


def regions(
    mask: Image,
    *,
    task: Task = "binary",
    classes: Sequence[str] = (),
    threshold: float = 0.5,
    min_share: float = MIN_SHARE,
    max_regions: int = MAX_REGIONS,
) -> list[Region]:
    """The connected parts of a mask's classes, each with its outline, run lengths and label line.

        for region in regions(mask):
            print(region.name, region.xywh, region.polygon(), region.rle(), region.yolo())

    Args:
        mask: (H, W) uint8, as a model gives it; not changed.
        task: "binary" (probability × 255) or "classes" (class index, 0 = background).
        classes: their names, as in ``Model.classes``.
        threshold: the probability from which a pixel of a binary mask is inside, 0 to 1.
        min_share: parts that cover less of the frame are left out.
        max_regions: of each class, the largest.

    Returns:
        By class, of each the largest first.

    Raises:
        ShapeError: the mask has another shape or dtype.
        OptionError: a value is out of range.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise ShapeError(f"mask: expected (H, W) uint8, got {describe(mask)}")
    if task not in ("binary", "classes"):
        raise OptionError(f"task: expected binary or classes, got {task!r}")
    for name, value in (("threshold", threshold), ("min_share", min_share)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name}: expected 0 to 1, got {value}")
    reading = Reading(task, classes, threshold, min_share=min_share, max_regions=max_regions)
    return [region for found in classes_of(mask, reading) for region in found.regions]


def _class_of(
    inside: NDArray[Any], number: int, reading: Reading, probability: Image | None, *, has_regions: bool
) -> ClassFound:
    """One class; ``inside`` is (H, W) uint8, not 0 where it is."""
    pixels = cv2.countNonZero(inside)
    mean = _sum(probability, inside) / (255 * pixels) if probability is not None and pixels else None
    found = _regions_of(inside, number, reading, probability) if has_regions else ()
    return ClassFound(number, reading.name(number), pixels / inside.size, mean, tuple(found))


def _regions_of(inside: NDArray[Any], number: int, reading: Reading, probability: Image | None) -> list[Region]:
    left, top, width, height = cv2.boundingRect(inside)
    if not width:
        return []
    part = np.ascontiguousarray(inside[top : top + height, left : left + width])
    least = reading.min_share * inside.size
    parts = _labeled(part, least) if _is_speckled(part) else _outlined(part, least)
    # Of equal ones the upper, then the left one first.
    largest = sorted(parts, key=lambda one: (-one.pixels, one.xywh[1], one.xywh[0]))[: reading.max_regions]
    regions = []
    for (x, y, box_width, box_height), pixels, its in largest:
        box = (left + x, top + y, box_width, box_height)
        mean = None
        if probability is not None:
            window = probability[box[1] : box[1] + box_height, box[0] : box[0] + box_width]
            mean = _sum(window, its * 255) / (255 * pixels)
        size_hw = (inside.shape[0], inside.shape[1])
        regions.append(
            Region(number, reading.name(number), box, pixels, size_hw, its, mean, label=number - reading.first)
        )
    return regions


class _Part(NamedTuple):
    """A connected part: its box in the picture that it was looked for in, its pixels, and (h, w) uint8, 1 where they are."""

    xywh: tuple[int, int, int, int]
    pixels: int
    its: NDArray[np.uint8]


def _is_speckled(part: NDArray[np.uint8]) -> bool:
    """Whether there is so much to walk around that labels for all pixels are there sooner."""
    pairs = ((part[:, 1:], part[:, :-1]), (part[1:], part[:-1]))
    edges = sum(cv2.countNonZero(cv2.absdiff(*pair)) for pair in pairs if pair[0].size)
    return edges * _PIXELS_BY_EDGE > part.size


def _outlined(part: NDArray[np.uint8], least: float) -> list[_Part]:
    """Connected parts of at least so many pixels, by walking around them."""
    outlines, nesting = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = []
    for index, outline in enumerate(outlines):
        if nesting[0][index][3] >= 0:  # of a hole
            continue
        x, y, width, height = cv2.boundingRect(outline)
        if width * height < least:
            continue
        its = np.zeros((height, width), np.uint8)
        cv2.drawContours(its, outlines, index, (1,), cv2.FILLED, hierarchy=nesting, maxLevel=1, offset=(-x, -y))
        pixels = cv2.countNonZero(its)
        if pixels >= least:
            found.append(_Part((x, y, width, height), pixels, its))
    return found


def _labeled(part: NDArray[np.uint8], least: float) -> list[_Part]:
    """Likewise, by giving each pixel the number of its part."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8, ltype=cv2.CV_32S)
    found = []
    for label in (np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= least) + 1).tolist():  # 0 is what lies outside
        x, y, width, height, pixels = stats[label].tolist()
        its = (labels[y : y + height, x : x + width] == label).astype(np.uint8)
        found.append(_Part((x, y, width, height), pixels, its))
    return found


def _sum(values: Image, inside: NDArray[np.uint8]) -> float:
    """Of the values where ``inside`` is 255, not 0; several times as fast as the mean by a mask, and exact as well."""
    return float(cv2.sumElems(cv2.bitwise_and(values, inside))[0])
