"""How masks are shown: the mode, the colors, and how much of the subject a mask's value is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError
from pipeline.frames.frame import Image, describe
from pipeline.quick_dataclass import dataclass
from pipeline.render.modes import MODES
from pipeline.render.palette import DEFAULT_PALETTE, Palette

Color = tuple[int, int, int]

GREEN_SCREEN: Color = (0x40, 0xB1, 0x00)
"""The background of "cutout" when none is given: #00b140, the green that editing programs key out."""

EDGE_HALF_WIDTH = 0.1
"""A soft edge runs from no weight at this much below the threshold to full weight at this much above."""


@dataclass(frozen=True, eq=False)
class Look:
    """How masks are shown.

    Attributes:
        mode: one of ``pipeline.render.modes.MODES``.
        alpha: strength of the color, 0 (picture only) to 1 (color only), in "overlay", "side" and "heatmap".
        threshold: the probability, 0 to 1, from which a pixel of a binary mask is subject; class maps need none.
        palette: the colors; a binary mask is drawn in that of class 1.
        background: what "cutout" and "replace" put behind the subject: (b, g, r), or a picture (h, w, 3) uint8 BGR that
            is scaled to cover the frame (the look keeps a read-only copy), or None: green for "cutout", white for
            "replace".

    Raises:
        OptionError: a value is not what is described above.
    """

    mode: str = "overlay"
    alpha: float = 0.5
    threshold: float = 0.5
    palette: Palette = DEFAULT_PALETTE
    background: Color | Image | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            import difflib

            near = difflib.get_close_matches(self.mode, MODES, n=1)
            raise OptionError(
                f"render mode: expected {', '.join(MODES)}, got {self.mode!r}"
                + (f": did you mean {near[0]!r}?" if near else "")
            )
        for name, value in (("alpha", self.alpha), ("threshold", self.threshold)):
            # Written so that NaN is refused too.
            if not 0 <= value <= 1:
                raise OptionError(f"{name}: expected 0 to 1, got {value}")
        background = self.background
        if isinstance(background, np.ndarray):
            if background.ndim != 3 or background.shape[2] != 3 or background.dtype != np.uint8 or background.size == 0:
                raise OptionError(f"background picture: expected (h, w, 3) uint8 BGR, got {describe(background)}")
            if background.flags.writeable:
                background = background.copy()
                background.setflags(write=False)
                object.__setattr__(self, "background", background)
        elif background is not None and not (len(background) == 3 and all(0 <= value <= 255 for value in background)):
            raise OptionError(f"background color: expected (b, g, r) of 0 to 255, got {background}")


def soft_edge(threshold: float) -> NDArray[np.float64]:
    """(256,) float64, 0 to 1: how much of the subject each value of a binary mask is.

    A straight line through 0.5 at the threshold, `EDGE_HALF_WIDTH` to either side. Nearer to 0 and 1 it is shorter,
    so that probability 0 is always background and 1 always subject, except that threshold 0 makes everything subject.
    """
    probability = np.arange(256) / 255
    half_width = min(EDGE_HALF_WIDTH, threshold, 1 - threshold)
    if half_width == 0:
        return (probability >= threshold).astype(np.float64)
    return np.clip(0.5 + (probability - threshold) / (2 * half_width), 0, 1)


def subject_level(threshold: float) -> int:
    """The smallest value of a binary mask that is subject: value ÷ 255 reaches the threshold."""
    return math.ceil(threshold * 255)


def subject_weights(task: Task, threshold: float) -> NDArray[np.uint8]:
    """(256,) uint8: how much of the subject a mask value is, 0 to 255."""
    if task == "binary":
        return np.rint(255 * soft_edge(threshold)).astype(np.uint8)
    weights = np.full(256, 255, dtype=np.uint8)
    weights[0] = 0
    return weights


def background_color(look: Look) -> Color:
    """The color that stands behind the subject where there is no picture: the look's, or else the mode's own."""
    if look.background is None or isinstance(look.background, np.ndarray):
        return MODES[look.mode].background
    return look.background
