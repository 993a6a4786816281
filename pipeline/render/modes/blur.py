"""The subject before the picture out of focus."""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np

from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, lookup
from pipeline.render.look import subject_weights
from pipeline.render.modes import RenderMode
from pipeline.render.subject import draw_over

BLUR = RenderMode(name="blur", help="the subject before the picture out of focus", order=60)


def draw(drawing: Drawing) -> None:
    """Draw the subject over what is around it, blurred."""
    weights = subject_weights(drawing.task, drawing.look.threshold)
    blurred_background(drawing.image, lookup(drawing.mask, weights), drawing.view)
    draw_over(drawing, None)


def blurred_background(image_hwc: Image, weight_hw: Image, out: Image | None = None) -> Image:
    """The picture out of focus, without the subject's colours.

    Each pixel is the mean of the background around it (a Gaussian of 1/40 of the frame's shorter side); the subject
    does not bleed into it, which would show as a halo. It is computed at a fraction of the size, which nobody sees.

    Args:
        image_hwc: (H, W, 3) uint8 BGR.
        weight_hw: (H, W) uint8, how much of the subject each pixel is, 0 to 255.
        out: (H, W, 3) uint8, where to put the result; None: a new array.

    Returns:
        (H, W, 3) uint8 BGR. Where no background is near, it is the blurred subject.
    """
    height, width = weight_hw.shape
    sigma = min(height, width) / 40
    # The largest power of two that leaves the Gaussian two pixels.
    halvings = int(math.log2(max(1.0, sigma / 2)))
    factor = 1 << halvings
    # The rows and columns past the last whole block are left out: less than a block, spread over the frame.
    rows, columns = slice(height // factor * factor), slice(width // factor * factor)
    small = _reduced(image_hwc[rows, columns], halvings).astype(np.float32)
    weight = _reduced(weight_hw[rows, columns], halvings)
    # The fourth power, because a small pixel that is partly subject has its color too; never quite 0, so that the mean
    # exists inside a large subject.
    share = (1 - weight.astype(np.float32) / 255) ** 4 + np.float32(0.001)
    spread = sigma / factor
    total = cv2.GaussianBlur(small * share[..., np.newaxis], (0, 0), spread)
    mean = total / cv2.GaussianBlur(share, (0, 0), spread)[..., np.newaxis]
    blurred = np.rint(np.clip(mean, 0, 255)).astype(np.uint8)
    return cast(Image, cv2.resize(blurred, (width, height), dst=out, interpolation=cv2.INTER_LINEAR))


def _reduced(picture: Image, halvings: int) -> Image:
    """Means of blocks of pixels, by halves: the one whole factor that OpenCV has fast code for."""
    for _ in range(halvings):
        height, width = picture.shape[:2]
        picture = cast(Image, cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return picture
