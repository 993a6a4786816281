"""The subject over another background, which several modes draw."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, strip_rows, strips
from pipeline.render.look import Color, background_color


def draw_over_background(drawing: Drawing) -> None:
    """Draw the subject over the look's background, or the mode's own where none is given."""
    background = drawing.look.background
    if isinstance(background, np.ndarray):
        draw_over(drawing, drawing.memory.covering(background, drawing.mask.shape))
    else:
        draw_over(drawing, background_color(drawing.look))


def draw_over(drawing: Drawing, background: Image | Color | None) -> None:
    """Draw the subject over something else.

    Args:
        drawing: what to draw, and where.
        background: a picture of the frame's size, a color, or None: what the view holds already.
    """
    view, image, mask, scratch = drawing.view, drawing.image, drawing.mask, drawing.scratch()
    blend = drawing.subject(background if isinstance(background, tuple) else None)
    flat = _flat(background, (strip_rows(mask), mask.shape[1])) if isinstance(background, tuple) else None
    for rows in strips(mask):
        drawn = view[rows]
        if flat is not None:
            drawn[:] = flat[: len(drawn)]
        elif isinstance(background, np.ndarray):
            drawn[:] = background[rows]
        alike, others = blend.parts(mask[rows])
        for columns in alike:
            drawn[:, columns] = image[rows, columns]
        for columns in others:
            blend.mix(drawn[:, columns], image[rows, columns], mask[rows, columns], scratch)


def _flat(color: Color, size_hw: tuple[int, ...]) -> Image:
    height, width = size_hw
    picture = np.empty((height, width, 3), dtype=np.uint8)
    # numpy repeats three bytes a pixel, one at a time: 40 times slower.
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), color, cv2.FILLED)
    return picture
