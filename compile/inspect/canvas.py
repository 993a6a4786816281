"""A sheet that plots are drawn on with OpenCV, and axes of round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from compile.inspect.table import shorten
from pipeline.frames.frame import Image

Color = tuple[int, int, int]
"""Blue, green, red."""

PAPER: Color = (255, 255, 255)
INK: Color = (40, 40, 40)
TEXT, SMALL = 0.48, 0.44
"""Sizes of letters, as OpenCV counts them."""

_FINE = 2  # drawn so many times larger and averaged: OpenCV's letters are thin and uneven otherwise


@dataclass(frozen=True, slots=True)
class Page:
    """A sheet that is drawn larger than it will be; all places are in its final pixels, (x, y)."""

    pixels: Image

    @classmethod
    def empty(cls, width: int, height: int) -> Page:
        """A white one."""
        return cls(np.full((height * _FINE, width * _FINE, 3), PAPER, np.uint8))

    def finished(self) -> Image:
        """What was drawn: (H, W, 3) uint8 BGR; owned by the caller."""
        height, width = self.pixels.shape[:2]
        return cv2.resize(self.pixels, (width // _FINE, height // _FINE), interpolation=cv2.INTER_AREA).astype(np.uint8)

    def text(
        self,
        text: str,
        place_xy: tuple[float, float],
        scale: float = TEXT,
        color: Color = INK,
        *,
        align: float = 0.0,
        fit: float | None = None,
    ) -> None:
        """Write.

        Args:
            text: only its ASCII characters are shown.
            place_xy: on the base line.
            scale: size of the letters.
            color: of the letters.
            align: 0 to the right of the place, 1 to its left, 0.5 around it.
            fit: the text is shortened to this width; None if it is as long as it is.
        """
        text = plain(text) if fit is None else fitted(text, scale, fit)
        x = place_xy[0] - align * text_width(text, scale)
        place, thickness = _fine((x, place_xy[1])), 2
        font = cv2.FONT_HERSHEY_SIMPLEX
        # Lines behind the letters stop short of them.
        cv2.putText(self.pixels, text, place, font, scale * _FINE, PAPER, thickness + 6, cv2.LINE_AA)
        cv2.putText(self.pixels, text, place, font, scale * _FINE, color, thickness, cv2.LINE_AA)

    def upright(self, text: str, center_xy: tuple[float, float]) -> None:
        """Write from below to above."""
        width, height = math.ceil(text_width(text, TEXT)) + 4, 24
        strip = Page.empty(width, height)
        strip.text(text, (2, 17))
        turned = np.rot90(strip.pixels)
        x, y = _fine((center_xy[0] - height / 2, center_xy[1] - width / 2))
        self.pixels[y : y + turned.shape[0], x : x + turned.shape[1]] = turned

    def line(self, start_xy: tuple[float, float], end_xy: tuple[float, float], color: Color = INK) -> None:
        """Draw a thin line."""
        cv2.line(self.pixels, _fine(start_xy), _fine(end_xy), color, _FINE, cv2.LINE_AA)

    def box(self, start_xy: tuple[float, float], end_xy: tuple[float, float], color: Color) -> None:
        """Fill a box between two corners."""
        cv2.rectangle(self.pixels, _fine(start_xy), _fine(end_xy), color, cv2.FILLED)

    def dot(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        """Fill a circle."""
        cv2.circle(self.pixels, _fine(center_xy), round(radius * _FINE), color, cv2.FILLED, cv2.LINE_AA)

    def ring(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        """Draw a circle."""
        cv2.circle(self.pixels, _fine(center_xy), round(radius * _FINE), color, 2 * _FINE, cv2.LINE_AA)

    def diamond(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        """Fill a square that stands on its corner."""
        x, y = center_xy
        corners = [_fine(place) for place in ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))]
        cv2.fillPoly(self.pixels, [np.array(corners, np.int32)], color, cv2.LINE_AA)


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from ``low`` to ``high``, none of them above ``limit``, on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    limit: float = math.inf

    @classmethod
    def around(cls, values: Sequence[float], least: float, limit: float, start: float, end: float) -> Axis:
        """With room on both sides; ``least`` is the shortest range."""
        room = max(0.12 * (max(values) - min(values)), least / 2)
        return cls(min(values) - room, max(values) + room, start, end, limit)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> Iterator[tuple[float, str]]:
        """Round values, about so many of them, and their texts."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        last = math.floor(min(self.high, self.limit) / step + 1e-6)
        for index in range(math.ceil(self.low / step - 1e-6), last + 1):
            yield index * step, f"{index * step:.{digits}f}"


def png_bytes(image: Image) -> bytes:
    """A picture as the content of a PNG file."""
    return cv2.imencode(".png", image)[1].tobytes()


def plain(text: str) -> str:
    """What OpenCV has letters for."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def fitted(text: str, scale: float, width: float) -> str:
    """What OpenCV has letters for, shortened to a width in pixels."""
    text = text[:200]
    for length in range(len(text), 0, -1):
        shorter = plain(shorten(text, length).replace("…", "..") if length < len(text) else text)
        if text_width(shorter, scale) <= width:
            return shorter
    return ""


def text_width(text: str, scale: float) -> float:
    """How many pixels a text takes."""
    return float(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale * _FINE, 2)[0][0]) / _FINE


def _fine(place_xy: tuple[float, float]) -> tuple[int, int]:
    return round(place_xy[0] * _FINE), round(place_xy[1] * _FINE)
