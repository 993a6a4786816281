"""A plot of named numbers: one horizontal bar each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.frames.frame import Image

_WIDTH, _ROW, _HEAD, _LABEL = 900, 30, 56, 330
_COLOUR = (180, 90, 20)


def draw_bars(title: str, bars: Sequence[tuple[str, float]], marks: Sequence[float] = ()) -> Image:
    """Draw bars from 0 to the largest value.

    Args:
        title: above them, with the unit; ASCII.
        bars: (name, value).
        marks: values with a line of their own, such as a goal.

    Returns:
        (H, 900, 3) uint8 BGR.
    """
    image = np.full((_HEAD + _ROW * len(bars) + 20, _WIDTH, 3), 255, np.uint8)
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40)
    cv2.putText(image, title, (16, 32), font, 0.6, black, 1, cv2.LINE_AA)
    highest = max((value for _, value in bars), default=0) or 1.0
    scale = (_WIDTH - _LABEL - 110) / max(highest, *marks, 1e-12)
    for row, (name, value) in enumerate(bars):
        top = _HEAD + row * _ROW
        cv2.putText(image, name, (16, top + 19), font, 0.45, black, 1, cv2.LINE_AA)
        right = _LABEL + round(scale * value)
        cv2.rectangle(image, (_LABEL, top + 5), (max(right, _LABEL + 1), top + 23), _COLOUR, -1)
        cv2.putText(image, f"{value:.4g}", (right + 8, top + 19), font, 0.45, black, 1, cv2.LINE_AA)
    for mark in marks:
        x = _LABEL + round(scale * mark)
        cv2.line(image, (x, _HEAD - 4), (x, len(image) - 12), (60, 60, 200), 1)
    return image


def write_plot(path: str, image: Image) -> None:
    """Write a plot as PNG, in a folder that is made."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode(".png", image)[1].tobytes())
