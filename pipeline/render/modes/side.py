"""The picture, and beside it the overlay."""

from __future__ import annotations

from dataclasses import replace

from pipeline.render.drawing import Drawing
from pipeline.render.modes import RenderMode, overlay

SIDE = RenderMode(name="side", help="the picture, and beside it the overlay", order=30, frames_wide=2)


def draw(drawing: Drawing) -> None:
    """Draw both."""
    width = drawing.mask.shape[1]
    drawing.view[:, :width] = drawing.image
    overlay.draw(replace(drawing, view=drawing.view[:, width:]))
