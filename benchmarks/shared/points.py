"""A plot of one number over another: a line through named points."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.frames.frame import Image

_WIDTH, _HEIGHT, _MARGIN = 900, 480, 70
_BLUE, _GREY, _LIGHT = (180, 90, 20), (120, 120, 120), (225, 225, 225)


def draw_points(title: str, of_x: str, points: dict[str, tuple[float, float]], lowest: float, highest: float) -> Image:
    """Draw points, in their order, with a line through them.

    Args:
        title: above them, what y is; ASCII.
        of_x: below them, what x is, from 0.
        points: by their names (x, y).
        lowest: y at the bottom.
        highest: y at the top; more than ``lowest``.

    Returns:
        (480, 900, 3) uint8 BGR.
    """
    image = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    widest = max((x for x, _ in points.values()), default=0) or 1.0

    def place(x: float, y: float) -> tuple[int, int]:
        right, up = x / widest, (y - lowest) / (highest - lowest)
        return (
            round(_MARGIN + right * (_WIDTH - 2 * _MARGIN)),
            round(_HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)),
        )

    for share in (0, 0.25, 0.5, 0.75, 1):
        y = lowest + share * (highest - lowest)
        cv2.line(image, place(0, y), place(widest, y), _LIGHT, 1)
        cv2.putText(image, f"{y:.3f}", (10, place(0, y)[1] + 5), font, 0.45, _GREY, 1, cv2.LINE_AA)
        x = share * widest
        cv2.putText(image, f"{x:.3g}", (place(x, 0)[0] - 12, _HEIGHT - _MARGIN + 22), font, 0.45, _GREY, 1, cv2.LINE_AA)
    cv2.putText(image, title, (_MARGIN, 36), font, 0.6, _GREY, 1, cv2.LINE_AA)
    cv2.putText(image, of_x, (_WIDTH // 2 - 20, _HEIGHT - 16), font, 0.5, _GREY, 1, cv2.LINE_AA)
    places = {name: place(x, y) for name, (x, y) in points.items()}
    cv2.polylines(image, [np.array(list(places.values()), np.int32)], False, _BLUE, 1, cv2.LINE_AA)
    for name, (x_px, y_px) in places.items():
        cv2.circle(image, (x_px, y_px), 5, _BLUE, -1, cv2.LINE_AA)
        cv2.putText(image, name, (x_px + 8, y_px - 8), font, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return image
