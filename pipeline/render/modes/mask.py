"""The mask itself."""

from __future__ import annotations

import cv2

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing
from pipeline.render.modes import RenderMode

MASK = RenderMode(
    name="mask",
    help="the mask alone: probability as gray, or the classes' colors; picture files and .mkv hold the mask's own values",
    order=20,
    picture="picture",
    exact=True,
)


def draw(drawing: Drawing) -> None:
    """Draw the mask."""
    if drawing.task == "binary":
        cv2.cvtColor(drawing.mask, cv2.COLOR_GRAY2BGR, dst=drawing.view)
    else:
        cv2.applyColorMap(drawing.mask, drawing.look.palette.table_bgr(), dst=drawing.view)


def picture(image: Image, mask: Image, task: Task) -> Image:
    """The mask: 8-bit gray of the frame's size, probability × 255 or class index."""
    return mask
