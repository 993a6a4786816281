"""Probability as colors of heat."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, strips
from pipeline.render.modes import RenderMode, overlay

HEATMAP = RenderMode(name="heatmap", help="probability as colors of heat over the picture", order=80)


def draw(drawing: Drawing) -> None:
    """Draw the probabilities; classes have none, and are drawn as an overlay."""
    if drawing.task != "binary":
        overlay.draw(drawing)
        return
    # Lightness rises with the probability all the way, for every eye; improbable pixels only grow darker. The table is made once:
    # OpenCV makes its own anew in each call, which takes longer than to draw a strip.
    table = cast(Image, cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(256, 1), cv2.COLORMAP_INFERNO))
    alpha = drawing.look.alpha
    for rows in strips(drawing.mask):
        heat = cv2.applyColorMap(drawing.mask[rows], table)
        cv2.addWeighted(drawing.image[rows], 1 - alpha, heat, alpha, 0, dst=drawing.view[rows])
