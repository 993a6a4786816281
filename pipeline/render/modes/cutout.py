"""The subject on green, or on transparency in a picture file."""

from __future__ import annotations

from typing import cast

import cv2

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError
from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, checked, lookup
from pipeline.render.look import subject_weights
from pipeline.render.modes import RenderMode
from pipeline.render.subject import draw_over_background

CUTOUT = RenderMode(
    name="cutout",
    help="the subject on green or on --background; PNG, .mov and .webm have the mask as their alpha channel",
    order=50,
    background=(0x40, 0xB1, 0x00),  # pipeline.render.look.GREEN_SCREEN
    picture="cutout_bgra",
)


def draw(drawing: Drawing) -> None:
    """Draw the subject over the background."""
    draw_over_background(drawing)


def cutout_bgra(image_hwc: Image, mask_hw: Image, task: Task, threshold: float | None = None) -> Image:
    """The subject as a picture with transparency, for a PNG file.

    Args:
        image_hwc: (H, W, 3) uint8 BGR; not changed.
        mask_hw: (H, W) uint8 as ``task`` says; not changed.
        task: "binary" (mask = probability × 255) or "classes" (mask = class index, 0 = background).
        threshold: for a binary mask, 0 to 1: the opacity is the soft edge around this probability, as in mode "cutout".
            None: the opacity is the probability itself, which keeps hair and glass as the network sees them.

    Returns:
        (H, W, 4) uint8 B, G, R, opacity (not multiplied into the colors): a new array that is the caller's.

    Raises:
        ShapeError: an array has another shape or dtype.
        OptionError: the threshold is not 0 to 1.
    """
    image, mask = checked(image_hwc, mask_hw)
    if threshold is not None and not 0 <= threshold <= 1:
        raise OptionError(f"threshold: expected 0 to 1, got {threshold}")
    if task == "binary" and threshold is None:
        opacity = mask
    else:
        opacity = lookup(mask, subject_weights(task, threshold or 0))
    picture = cast(Image, cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    picture[..., 3] = opacity
    return picture
