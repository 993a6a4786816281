"""The classes' colors over the picture."""

from __future__ import annotations

import cv2

from pipeline.render.drawing import Drawing, strips
from pipeline.render.modes import RenderMode

OVERLAY = RenderMode(name="overlay", help="the classes' colors over the picture", order=10, on_device=True)


def draw(drawing: Drawing) -> None:
    """Blend the colors in, only in the columns that the mask touches."""
    blend, scratch, mask = drawing.colours(), drawing.scratch(), drawing.mask
    for rows in strips(mask):
        drawn = drawing.view[rows]
        drawn[:] = drawing.image[rows]
        alike, others = blend.parts(mask[rows])
        for columns in alike:
            cv2.transform(drawn[:, columns], blend.matrix, dst=drawn[:, columns])
        for columns in others:
            blend.mix(drawn[:, columns], drawn[:, columns], mask[rows, columns], scratch)
