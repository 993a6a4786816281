"""Text over a finished view: lines of numbers, the legend of the classes, the help.

The ``draw_`` functions change the view in place; it has to be the caller's own array, such as a `Renderer` returns.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import ShapeError
from pipeline.frames.frame import Image, describe
from pipeline.render.look import Color, subject_level
from pipeline.render.palette import Palette

LEGEND_LENGTH = 12
"""A legend names at most this many classes; one more line counts the others."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_COLOR: Color = (255, 255, 255)
_BOX_BRIGHTNESS = 0.35
# Below this scale the font's letters run together.
_MIN_SCALE = 0.35
# In pixels at scale 1, where capitals are 22 pixels high.
_LINE_STEP = 36
_PADDING = 12
_SQUARE = 22
# Letters that have a usual ASCII spelling which Unicode's decompositions do not know.
_SPELLINGS = str.maketrans(
    {
        "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d",
        "Đ": "D", "ı": "i", "×": "x", "÷": "/", "⁄": "/", "−": "-", "–": "-", "—": "-", "·": "-", "•": "-", "°": "deg",
        "μ": "u", "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "‘": "'", "’": "'", "“": '"', "”": '"',
    }
)  # fmt: skip


class LegendEntry(NamedTuple):
    """One line of a legend.

    Attributes:
        name: what to write, in ASCII.
        color: (b, g, r) of the square before it; None: no square.
        percent: share of the frame, 0 to 100.
    """

    name: str
    color: Color | None
    percent: float


def area_percent(mask_hw: Image, task: Task, threshold: float, n_classes: int) -> NDArray[np.float64]:
    """How much of the frame each class covers.

    Args:
        mask_hw: (H, W) uint8: probability × 255 ("binary") or class index ("classes").
        task: "binary" or "classes".
        threshold: for a binary mask, the probability, 0 to 1, from which a pixel is subject.
        n_classes: how many classes the network knows: 1 for "binary".

    Returns:
        (n_classes,) float64, 0 to 100, in the order of the network's classes: "binary" has the subject alone, "classes"
        begins with the background. Longer where a class map holds an index past the last class.

    Raises:
        ShapeError: the mask has another shape or dtype.
    """
    if mask_hw.ndim != 2 or mask_hw.dtype != np.uint8 or mask_hw.size == 0:
        raise ShapeError(f"mask: expected (H, W) uint8, got {describe(mask_hw)}")
    # OpenCV counts bytes four times faster than np.bincount, which first makes 64-bit integers of them.
    counts = cv2.calcHist([np.ascontiguousarray(mask_hw)], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    percent: NDArray[np.float64] = 100 * counts / mask_hw.size
    if task == "binary":
        return np.array([percent[subject_level(threshold) :].sum()])
    return percent[: max(n_classes, int(mask_hw.max()) + 1)]


def legend_entries(
    percent: Sequence[float] | NDArray[np.float64], classes: Sequence[str], palette: Palette, task: Task
) -> list[LegendEntry]:
    """The classes that are in the picture, largest first.

    Args:
        percent: share of the frame for each class, as `area_percent` gives it.
        classes: the classes' names in the same order; a class without a name, or whose name has no ASCII spelling, is
            written "class 7".
        palette: the colors; a class 0 that it leaves transparent is no entry.
        task: "binary" (the only class is drawn in the color of class 1) or "classes".

    Returns:
        At most `LEGEND_LENGTH` entries; then, if there are more classes, one "+n more" without colour.
    """
    offset = 1 if task == "binary" else 0
    entries = []
    for position, share in enumerate(percent):
        class_index = position + offset
        if share <= 0 or (class_index == 0 and palette.transparent_class_0):
            continue
        name = ascii_text(classes[position]) if position < len(classes) else ""
        if not re.search("[A-Za-z0-9]", name):
            name = f"class {class_index}"
        entries.append(LegendEntry(name, palette.color(class_index), float(share)))
    entries.sort(key=lambda entry: -entry.percent)
    rest = entries[LEGEND_LENGTH:]
    if rest:
        entries[LEGEND_LENGTH:] = [LegendEntry(f"+{len(rest)} more", None, sum(entry.percent for entry in rest))]
    return entries


def draw_legend(view: Image, entries: Sequence[LegendEntry]) -> None:
    """Write a legend into the bottom left corner, each line a square of color, a name and a share.

    Args:
        view: (H, W, 3) uint8 BGR; changed in place.
        entries: from `legend_entries`; none draws nothing.

    Raises:
        ShapeError: the view has another shape or dtype, or is read-only.
    """
    lines = [f"{entry.name}  {_percent_text(entry.percent)}" for entry in entries]
    _draw_box(view, lines, at="bottom left", squares=[entry.color for entry in entries])


def draw_hud(view: Image, lines: Sequence[str]) -> None:
    """Write lines into the top left corner.

    Args:
        view: (H, W, 3) uint8 BGR; changed in place.
        lines: short texts; what OpenCV's font does not have is spelled in ASCII (`ascii_text`). Where they do not fit,
            all become smaller; in a tiny view they are cut off. No line draws nothing.

    Raises:
        ShapeError: the view has another shape or dtype, or is read-only.
    """
    _draw_box(view, [ascii_text(line) for line in lines], at="top left")


def draw_help(view: Image, lines: Sequence[str]) -> None:
    """Write lines into the middle; otherwise like `draw_hud`."""
    _draw_box(view, [ascii_text(line) for line in lines], at="middle")


def ascii_text(text: str) -> str:
    """The text in the letters of OpenCV's fonts, those of ASCII; they draw a "?" for each byte of any other.

    Accents are dropped, common signs are spelled ("×" becomes "x", "ß" "ss"), and each run of letters without an ASCII
    spelling, such as a word in Chinese, becomes one "_".
    """
    decomposed = unicodedata.normalize("NFKD", text).translate(_SPELLINGS)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return re.sub(r"[^ -~]+", "_", re.sub(r"\s", " ", plain))


def _percent_text(percent: float) -> str:
    return "<0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def _draw_box(view: Image, lines: Sequence[str], at: str, squares: Sequence[Color | None] = ()) -> None:
    if view.ndim != 3 or view.shape[2] != 3 or view.dtype != np.uint8 or not view.flags.writeable:
        read_only = "" if view.flags.writeable else ", read-only"
        raise ShapeError(
            f"view: expected a writable (H, W, 3) uint8 array, got {describe(view)}{read_only}: copy it first"
        )
    if not lines or view.size == 0:
        return
    view_height, view_width = view.shape[:2]
    scale = max(_MIN_SCALE, min(view_height, view_width) / 1200)
    width, height = _box_size(lines, scale, bool(squares))
    if width > view_width or height > view_height:
        scale = max(_MIN_SCALE, scale * min(view_width / width, view_height / height))
        width, height = _box_size(lines, scale, bool(squares))
    margin = round(10 * scale)
    left = (view_width - width) // 2 if at == "middle" else margin
    top = {"top left": margin, "middle": (view_height - height) // 2}.get(at, view_height - height - margin)
    # A box too large for the view keeps its beginning.
    left, top = max(0, min(left, view_width - width)), max(0, min(top, view_height - height))
    box = slice(top, top + height), slice(left, left + width)
    # Drawn on a copy of the box, whatever the memory layout of the view; OpenCV cuts off what lies outside.
    patch = cv2.convertScaleAbs(np.ascontiguousarray(view[box]), alpha=_BOX_BRIGHTNESS)
    step, padding, square = round(_LINE_STEP * scale), round(_PADDING * scale), round(_SQUARE * scale)
    text_left = padding + (square + padding if squares else 0)
    for number, line in enumerate(lines):
        baseline = padding + number * step + round(0.75 * step)
        color = squares[number] if squares else None
        if color is not None:
            cv2.rectangle(patch, (padding, baseline - square), (padding + square, baseline), color, cv2.FILLED)
        cv2.putText(patch, line, (text_left, baseline), _FONT, scale, _TEXT_COLOR, _stroke(scale), cv2.LINE_AA)
    view[box] = patch


def _box_size(lines: Sequence[str], scale: float, squares: bool) -> tuple[int, int]:
    """Width and height in pixels."""
    text_width = max(cv2.getTextSize(line, _FONT, scale, _stroke(scale))[0][0] for line in lines)
    square_width = round(_SQUARE * scale) + round(_PADDING * scale) if squares else 0
    padding = round(_PADDING * scale)
    return text_width + square_width + 2 * padding, len(lines) * round(_LINE_STEP * scale) + 2 * padding


def _stroke(scale: float) -> int:
    return max(1, round(1.8 * scale))
