"""The subject before another background."""

from __future__ import annotations

from pipeline.render.drawing import Drawing
from pipeline.render.modes import RenderMode
from pipeline.render.subject import draw_over_background

REPLACE = RenderMode(name="replace", help="the subject on white or on --background", order=70)


def draw(drawing: Drawing) -> None:
    """Draw the subject over the background."""
    draw_over_background(drawing)
