"""Outlines of a part of a mask: closed lines around its pixels, its holes cut open, because COCO and YOLO have no holes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]
"""(N, 2) float64: points (x, y) of a closed line, 4 or more, the last joined to the first; the top left corner is (0, 0), and the
middle of the first pixel (0.5, 0.5)."""


def outlines_of(inside: NDArray[np.uint8]) -> list[Outline]:
    """A closed line around each connected part.

    It runs inside of the outermost pixels, a quarter of a pixel from their edge, so that every reader makes the same pixels of it:
    who fills what has its middle inside, as COCO's tools do, and who takes points as pixels and fills those too, as OpenCV's
    ``fillPoly`` and YOLO's training do once the points are cut to integers.

    A hole is joined to the line around it by a cut of no width: the line runs to the hole along a row of the part's own pixels,
    around the hole and back. So one line says the whole part.

    Args:
        inside: (H, W) uint8, not 0 inside. Connected are pixels that touch by a side or a corner.

    Returns:
        The outline of each part, empty where nothing is inside.
    """
    # Of four pixels for each, the outermost have their middles a quarter from the edge. Every border pixel is a point here, so that
    # a cut along a row always meets one.
    inside = cv2.resize(inside, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
    contours, hierarchy = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = []
    for index, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][index]
        if parent >= 0:
            continue
        holes = []
        while child >= 0:
            holes.append(contours[child][:, 0])
            child = hierarchy[0][child][0]
        outlines.append((_turns(_cut_open(contour[:, 0], holes, inside) if holes else contour[:, 0]) + 0.5) / 2)
    return outlines


def _cut_open(outer: NDArray[Any], holes: list[NDArray[Any]], inside: NDArray[np.uint8]) -> NDArray[Any]:
    """One closed line of all: holes from left to right, each joined to what is there by a row to its left.

    That row begins at the hole's leftmost border pixel and ends at the last pixel before the part does, which lies on the outer line
    or on a hole further left, and so on the line that is there.
    """
    line = outer
    for hole in sorted(holes, key=lambda points: (int(points[:, 0].min()), int(points[:, 1].min()))):
        start = int(hole[:, 0].argmin())
        x, y = hole[start].tolist()
        outside = np.flatnonzero(inside[y, :x] == 0)
        end_x = int(outside[-1]) + 1 if outside.size else 0
        at = int(np.flatnonzero((line[:, 0] == end_x) & (line[:, 1] == y))[0])
        around = np.concatenate((hole[start:], hole[: start + 1]))
        line = np.concatenate((line[: at + 1], around, line[at:]))
    return line


def _turns(line: NDArray[Any]) -> NDArray[Any]:
    """The points of a closed line at which its direction changes."""
    step_in = line - np.roll(line, 1, axis=0)
    step_out = np.roll(line, -1, axis=0) - line
    turns: NDArray[Any] = line[_directions(step_in) != _directions(step_out)]
    return turns


def _directions(steps: NDArray[Any]) -> NDArray[Any]:
    # The row of a cut may be many pixels long.
    numbers: NDArray[Any] = np.sign(steps[:, 0]) * 3 + np.sign(steps[:, 1])
    return numbers
