"""A picture of what the search for INT8 found: which layers harm the masks, and what each step of the search gained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from compile.inspect.int8_search import Int8Layer, Int8Search, Int8Step
from compile.inspect.table import shorten
from pipeline.bundle import Manifest
from pipeline.errors import OptionError
from pipeline.frame import Image

Color = tuple[int, int, int]

_WIDTH = 1600
_FINE = 2  # drawn so many times larger and averaged: OpenCV's letters are thin and uneven otherwise
_BARS = 25
_STEPS = 24  # the search makes 8 at most
_MARGIN = 32
_TOP = 112  # of both plots
_ROW = 26
_BELOW = 58  # for an axis: its numbers and its name
_LOWEST_PLOT = 340
_LEFT_END, _RIGHT_START = 790, 920
_LONGEST_NAME = 430
_TEXT, _SMALL, _SMALLEST = 0.48, 0.44, 0.34

_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_FAINT = (225, 225, 225)
# Told apart by every kind of colour vision.
_BLUE, _ORANGE, _GREEN, _PURPLE = (178, 114, 0), (30, 140, 235), (95, 140, 0), (150, 50, 120)


def write_plot(path: Path, manifest: Manifest, search: Int8Search | None) -> None:
    """Draw what a search found into a PNG file.

    Args:
        path: of the file; one that is there is replaced.
        manifest: of the bundle.
        search: what it tells of the search; None if it is not in INT8.

    Raises:
        OptionError: the bundle does not tell, or the file cannot be written.
    """
    if search is None:
        raise OptionError(
            f"--plot: expected a bundle in INT8, got one in {manifest.precision}: compile one with --precision int8 --strict"
        )
    if search.problem is not None:
        raise OptionError(f"--plot: expected layers and steps of the search for INT8, got none: {search.problem}")
    if not search.steps or all(layer.share_of_damage is None for layer in search.layers):
        raise OptionError(
            "--plot: expected layers and steps of the search for INT8, got empty lists: compile the bundle again"
        )
    content = cv2.imencode(".png", draw_search(manifest, search))[1].tobytes()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OptionError(
            f"--plot {path}: expected a file that can be written, cannot write it ({error.strerror}): choose another"
        ) from error


def draw_search(manifest: Manifest, search: Int8Search) -> Image:
    """Draw the layers that do most damage, and the steps.

    Args:
        manifest: of the bundle.
        search: with one step or more, and one layer or more whose damage is known.

    Returns:
        (H, 1600, 3) uint8 BGR; owned by the caller.
    """
    layers = [layer for layer in search.layers if layer.share_of_damage is not None][:_BARS]
    steps = search.steps[:_STEPS]
    final = _verified(manifest, search)
    legend_height = (len(steps) + (final is not None) + (len(search.steps) > len(steps)) + 1) * _ROW
    height = max(len(layers) * _ROW, _LOWEST_PLOT + _BELOW + legend_height)
    page = _Page.empty(_WIDTH, _TOP + height + _BELOW + 12)
    page.text(_title(manifest, search), (_MARGIN, 44), 0.68, fit=_WIDTH - 2 * _MARGIN)
    _draw_layers(page, layers, _TOP)
    plot_bottom = _TOP + height - legend_height - 6
    points = [(step.share_of_work, step.iou) for step in steps]
    _draw_steps(page, steps, final, (_TOP, plot_bottom))
    _draw_legend(page, search, len(points), final, plot_bottom + _BELOW + _ROW)
    return page.finished()


@dataclass(frozen=True, slots=True)
class _Verified:
    """The final verification: where it stands, and how many frames it had."""

    share: float
    iou: float
    frames: str


@dataclass(frozen=True, slots=True)
class _Page:
    """A sheet that is drawn larger than it will be; all places are in its final pixels, (x, y)."""

    pixels: Image

    @classmethod
    def empty(cls, width: int, height: int) -> _Page:
        return cls(np.full((height * _FINE, width * _FINE, 3), _PAPER, np.uint8))

    def finished(self) -> Image:
        height, width = self.pixels.shape[:2]
        return cv2.resize(self.pixels, (width // _FINE, height // _FINE), interpolation=cv2.INTER_AREA).astype(np.uint8)

    def text(
        self,
        text: str,
        place_xy: tuple[float, float],
        scale: float = _TEXT,
        color: Color = _INK,
        *,
        align: float = 0.0,
        fit: float | None = None,
        bold: bool = False,
    ) -> None:
        """Write on a base line: to the right of the place, to its left (``align=1``) or around it (``align=0.5``)."""
        text = _plain(text) if fit is None else _fitted(text, scale, fit)
        x = place_xy[0] - align * _text_width(text, scale)
        thickness = 3 if bold else 2
        place = _fine((x, place_xy[1]))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(self.pixels, text, place, font, scale * _FINE, color, thickness, cv2.LINE_AA)

    def upright(self, text: str, center_xy: tuple[float, float]) -> None:
        """Write from below to above."""
        width, height = math.ceil(_text_width(text, _TEXT)) + 4, 24
        strip = _Page.empty(width, height)
        strip.text(text, (2, 17))
        turned = np.rot90(strip.pixels)
        x, y = _fine((center_xy[0] - height / 2, center_xy[1] - width / 2))
        self.pixels[y : y + turned.shape[0], x : x + turned.shape[1]] = turned

    def line(self, start_xy: tuple[float, float], end_xy: tuple[float, float], color: Color = _INK) -> None:
        cv2.line(self.pixels, _fine(start_xy), _fine(end_xy), color, _FINE, cv2.LINE_AA)

    def box(self, start_xy: tuple[float, float], end_xy: tuple[float, float], color: Color) -> None:
        cv2.rectangle(self.pixels, _fine(start_xy), _fine(end_xy), color, cv2.FILLED)

    def dot(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        cv2.circle(self.pixels, _fine(center_xy), round(radius * _FINE), color, cv2.FILLED, cv2.LINE_AA)

    def ring(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        cv2.circle(self.pixels, _fine(center_xy), round(radius * _FINE), color, 2 * _FINE, cv2.LINE_AA)

    def diamond(self, center_xy: tuple[float, float], radius: float, color: Color) -> None:
        x, y = center_xy
        corners = [_fine(place) for place in ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))]
        cv2.fillPoly(self.pixels, [np.array(corners, np.int32)], color, cv2.LINE_AA)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], least: float, limit: float, start: float, end: float) -> _Axis:
        """With room on both sides; ``least`` is the shortest range, ``limit`` the largest value that can be."""
        room = max(0.12 * (max(values) - min(values)), least / 2)
        low, high = min(values) - room, max(values) + room
        return cls(low, max(min(high, limit), low + least), start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> Iterator[tuple[float, str]]:
        """Round values, about so many of them, and their texts."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        for index in range(math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6) + 1):
            yield index * step, f"{index * step:.{digits}f}"


def _draw_layers(page: _Page, layers: Sequence[Int8Layer], top: float) -> None:
    page.text("(a)  Layers that do most damage in INT8", (_MARGIN, top - 22), 0.56)
    names = [_plain(layer.name) for layer in layers]
    widest = max(_text_width(name, _SMALL) for name in names)
    scale = max(_SMALLEST, _SMALL * min(1.0, _LONGEST_NAME / max(widest, 1)))
    names = [_fitted(name, scale, _LONGEST_NAME) for name in names]
    start = _MARGIN + max(_text_width(name, scale) for name in names) + 10
    damage = [100 * (layer.share_of_damage or 0.0) for layer in layers]
    axis = _Axis(0.0, max(*damage, 1e-3), start, _LEFT_END - 64)
    bottom = top + len(layers) * _ROW
    for value, text in axis.ticks(6):
        page.line((axis.at(value), top), (axis.at(value), bottom + 5), _FAINT)
        page.text(text, (axis.at(value), bottom + 22), _SMALL, align=0.5)
    for row, (layer, name, value) in enumerate(zip(layers, names, damage, strict=True)):
        y = top + (row + 0.5) * _ROW
        page.text(name, (start - 10, y + 5), scale, align=1)
        page.box((start, y - 9), (max(axis.at(value), start + 1), y + 9), _color(layer.precision))
        page.text(f"{value:.1f} %" if value >= 0.05 or not value else "< 0.1 %", (axis.at(value) + 7, y + 5), _SMALL)
    page.line((start, top), (start, bottom))
    page.line((start, bottom), (axis.end, bottom))
    page.text("share of the damage to the masks (%)", ((start + axis.end) / 2, bottom + 46), align=0.5)
    # Bars become shorter downwards: below on the right there is room.
    if len(layers) > 4:
        for row, (precision, text) in enumerate((("int8", "INT8 in the bundle"), ("fp16", "FP16 in the bundle"))):
            y = bottom - 46 + row * 24
            page.box((_LEFT_END - 214, y - 11), (_LEFT_END - 194, y + 3), _color(precision))
            page.text(text, (_LEFT_END - 186, y + 1))


def _draw_steps(
    page: _Page, steps: Sequence[Int8Step], final: _Verified | None, top_bottom: tuple[float, float]
) -> None:
    top, bottom = top_bottom
    page.text("(b)  Steps of the search", (_RIGHT_START - 80, top - 22), 0.56)
    values = [(100 * step.share_of_work, step.iou) for step in steps]
    also = [(100 * final.share, final.iou)] if final is not None else []
    everything = [*values, *also]
    across = _Axis.around([x for x, _ in everything], 0.2, 100.0, _RIGHT_START, _WIDTH - _MARGIN)
    up = _Axis.around([y for _, y in everything], 0.002, 1.0, bottom, top)
    for value, text in across.ticks(6):
        page.line((across.at(value), top), (across.at(value), bottom + 5), _FAINT)
        page.text(text, (across.at(value), bottom + 22), _SMALL, align=0.5)
    for value, text in up.ticks(6):
        page.line((across.start - 5, up.at(value)), (across.end, up.at(value)), _FAINT)
        page.text(text, (across.start - 10, up.at(value) + 5), _SMALL, align=1)
    page.line((across.start, top), (across.start, bottom))
    page.line((across.start, bottom), (across.end, bottom))
    page.text("multiply-accumulates in INT8 (%)", ((across.start + across.end) / 2, bottom + 46), align=0.5)
    page.upright("IoU with the trained network", (across.start - 80, (top + bottom) / 2))
    places = [(across.at(x), up.at(y)) for x, y in everything]
    for place, step in zip(places, steps, strict=False):
        _mark_step(page, place, step.chosen)
    if final is not None:
        page.diamond(places[-1], 9, _PURPLE)
    limits = (across.start, top, across.end, bottom)
    for number, place in enumerate(_label_places(places[: len(steps)], places, limits), 1):
        page.text(str(number), (place[0], place[1] + 5), _TEXT, align=0.5)


def _draw_legend(page: _Page, search: Int8Search, count: int, final: _Verified | None, top: float) -> None:
    left, columns = _RIGHT_START - 60, [_WIDTH - _MARGIN - offset for offset in (160, 80, 0)]
    for head, x in zip(("in INT8", "noise", "IoU"), columns, strict=True):
        page.text(head, (x, top), _SMALL, align=1)
    page.line((left - 20, top + 8), (_WIDTH - _MARGIN, top + 8))
    y = top
    for number, step in enumerate(search.steps[:count], 1):
        y += _ROW
        _mark_step(page, (left, y - 5), step.chosen)
        page.text(str(number), (left + 32, y), _SMALL, align=1)
        what = f"{step.what} (chosen)" if step.chosen else step.what
        page.text(what, (left + 46, y), _SMALL, fit=columns[0] - 80 - left - 46)
        for text, x in zip(
            (f"{100 * step.share_of_work:.2f} %", f"{step.noise:.3f}", f"{step.iou:.4f}"), columns, strict=True
        ):
            page.text(text, (x, y), _SMALL, align=1)
    if len(search.steps) > count:
        y += _ROW
        page.text(f"and {len(search.steps) - count} more, not drawn", (left + 46, y), _SMALL)
    if final is not None:
        y += _ROW
        page.diamond((left, y - 5), 9, _PURPLE)
        page.text(f"final verification, on {final.frames} other frames", (left + 46, y), _SMALL)
        page.text(f"{100 * final.share:.2f} %", (columns[0], y), _SMALL, align=1)
        page.text(f"{final.iou:.4f}", (columns[2], y), _SMALL, align=1)


def _mark_step(page: _Page, place_xy: tuple[float, float], chosen: bool) -> None:
    page.dot(place_xy, 5, _GREEN if chosen else _INK)
    if chosen:
        page.ring(place_xy, 10, _GREEN)


def _label_places(
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float]],
    limits: tuple[float, float, float, float],
) -> Iterator[tuple[float, float]]:
    """A place for the number of each point, near it and as far as can be from all marks and other numbers."""
    taken = list(marks)
    left, top, right, bottom = limits
    for x, y in points:
        around = [(radius, math.radians(15 * turn)) for radius in (20, 26, 32) for turn in range(24)]
        places = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for radius, angle in around]
        inside = [place for place in places if left + 12 < place[0] < right and top < place[1] < bottom - 10]
        # Free is free: of all places with room enough the first one, which is nearest.
        best = max(inside or places, key=lambda place: min(18.0, *(math.dist(place, other) for other in taken)))
        taken.append(best)
        yield best


def _verified(manifest: Manifest, search: Int8Search) -> _Verified | None:
    iou = manifest.verification.get("iou_mean")
    if type(iou) not in (int, float) or not 0 <= iou <= 1 or search.share_of_work is None:
        return None
    return _Verified(search.share_of_work, float(iou), str(manifest.verification.get("frames", "?")))


def _title(manifest: Manifest, search: Int8Search) -> str:
    count = sum(layer.precision == "int8" for layer in search.layers)
    share = "" if search.share_of_work is None else f"{100 * search.share_of_work:.1f} % of the convolutions' work, "
    return f"{manifest.model} in INT8: {share}{count} of {len(search.layers)} layers"


def _color(precision: str) -> Color:
    return _BLUE if precision == "int8" else _ORANGE


def _plain(text: str) -> str:
    """What OpenCV has letters for."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _fitted(text: str, scale: float, width: float) -> str:
    text = text[:200]
    for length in range(len(text), 0, -1):
        shorter = _plain(shorten(text, length).replace("…", "..") if length < len(text) else text)
        if _text_width(shorter, scale) <= width:
            return shorter
    return ""


def _text_width(text: str, scale: float) -> float:
    return float(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale * _FINE, 2)[0][0]) / _FINE


def _fine(place_xy: tuple[float, float]) -> tuple[int, int]:
    return round(place_xy[0] * _FINE), round(place_xy[1] * _FINE)
