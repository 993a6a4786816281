"""The classes' outlines over the picture."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, lookup
from pipeline.render.look import subject_level
from pipeline.render.modes import RenderMode

CONTOUR = RenderMode(name="contour", help="the classes' outlines over the picture", order=40)


def draw(drawing: Drawing) -> None:
    """Draw a line inside each class along its edge."""
    image, view, palette = drawing.image, drawing.view, drawing.look.palette
    view[:] = image
    labels = drawing.mask
    if drawing.task == "binary":
        level = subject_level(drawing.look.threshold)
        labels = cast(Image, cv2.threshold(labels, level - 1, 1, cv2.THRESH_BINARY)[1])
    outlined = np.ones(256, dtype=np.uint8)
    outlined[0] = drawing.task == "classes" and not palette.transparent_class_0
    box = _box(labels, int(np.argmax(outlined)), margin=1)
    if box is None:
        return
    # A pixel is on an outline where a square around it holds another class: the line lies inside its own class, two
    # classes that touch show both colors, and the frame's border, where the object may go on, has no line.
    side = 2 * max(1, round(image.shape[0] / 240)) + 1
    inside = labels[box]
    square = np.ones((side, side), dtype=np.uint8)
    on_edge = cv2.compare(cv2.dilate(inside, square), cv2.erode(inside, square), cv2.CMP_NE)
    cv2.bitwise_and(on_edge, lookup(inside, 255 * outlined), dst=on_edge)
    cv2.copyTo(cast(Image, cv2.applyColorMap(inside, palette.table_bgr())), on_edge, view[box])


def _box(mask: Image, first: int, margin: int) -> tuple[slice, slice] | None:
    """The smallest rectangle outside which every value is below ``first``, and a margin; None: there is no such pixel."""
    left, top, width, height = cv2.boundingRect(cv2.threshold(mask, first - 1, 255, cv2.THRESH_BINARY)[1])
    if width == 0:
        return None
    return slice(max(0, top - margin), top + height + margin), slice(max(0, left - margin), left + width + margin)
