"""A picture of what the search for INT8 found: which layers harm the masks, and what each step of the search gained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.inspect.canvas import INK, SMALL, TEXT, Axis, Color, Page, fitted, plain, png_bytes, text_width
from compile.inspect.int8_search import Int8Layer, Int8Search, Int8Step, read_share
from compile.inspect.table import plural
from pipeline.bundles.bundle import Manifest
from pipeline.errors import OptionError
from pipeline.frames.frame import Image

_Box = tuple[float, float, float, float]

_WIDTH = 1600
_BARS = 25
_STEPS = 24  # the search makes 8 at most
_MARGIN = 32
_TOP = 112  # of both plots
_ROW = 26
_BELOW = 58  # for an axis: its numbers and its name
_LOWEST_PLOT = 340
_LEFT_END, _RIGHT_START = 790, 920
_LONGEST_NAME = 430
_SMALLEST = 0.34  # letters that can still be read

_FAINT = (225, 225, 225)
_GREY = (150, 150, 150)
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
    content = png_bytes(draw_search(manifest, search))
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
    page = Page.empty(_WIDTH, _TOP + height + _BELOW + 12)
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


def _draw_layers(page: Page, layers: Sequence[Int8Layer], top: float) -> None:
    page.text("(a)  Layers that do most damage in INT8", (_MARGIN, top - 22), 0.56)
    for offset, precision, text in ((216, "int8", "stays INT8"), (96, "fp16", "now FP16")):
        page.box((_LEFT_END - offset, top - 34), (_LEFT_END - offset + 20, top - 20), _color(precision))
        page.text(text, (_LEFT_END - offset + 27, top - 22), SMALL)
    names = [plain(layer.name) for layer in layers]
    widest = max(text_width(name, SMALL) for name in names)
    scale = max(_SMALLEST, SMALL * min(1.0, _LONGEST_NAME / max(widest, 1)))
    names = [fitted(name, scale, _LONGEST_NAME) for name in names]
    start = _MARGIN + max(text_width(name, scale) for name in names) + 10
    damage = [100 * (layer.share_of_damage or 0.0) for layer in layers]
    axis = Axis(0.0, max(*damage, 0.01), start, _LEFT_END - 64)
    bottom = top + len(layers) * _ROW
    for value, text in axis.ticks(6):
        page.line((axis.at(value), top), (axis.at(value), bottom + 5), _FAINT)
        page.text(text, (axis.at(value), bottom + 22), SMALL, align=0.5)
    for row, (layer, name, value) in enumerate(zip(layers, names, damage, strict=True)):
        y = top + (row + 0.5) * _ROW
        page.text(name, (start - 10, y + 5), scale, align=1)
        page.box((start, y - 9), (max(axis.at(value), start + 1), y + 9), _color(layer.precision))
        page.text(f"{value:.1f} %" if value >= 0.05 or not value else "< 0.1 %", (axis.at(value) + 7, y + 5), SMALL)
    page.line((start, top), (start, bottom))
    page.line((start, bottom), (axis.end, bottom))
    page.text("share of the damage to the masks (%)", ((start + axis.end) / 2, bottom + 46), align=0.5)


def _draw_steps(
    page: Page, steps: Sequence[Int8Step], final: _Verified | None, top_bottom: tuple[float, float]
) -> None:
    top, bottom = top_bottom
    page.text("(b)  Steps of the search", (_RIGHT_START - 80, top - 22), 0.56)
    values = [(100 * step.share_of_work, step.iou) for step in steps]
    also = [(100 * final.share, final.iou)] if final is not None else []
    everything = [*values, *also]
    across = Axis.around([x for x, _ in everything], 0.2, 100.0, _RIGHT_START, _WIDTH - _MARGIN)
    up = Axis.around([y for _, y in everything], 0.002, 1.0, bottom, top)
    for value, text in across.ticks(6):
        page.line((across.at(value), top), (across.at(value), bottom + 5), _FAINT)
        page.text(text, (across.at(value), bottom + 22), SMALL, align=0.5)
    for value, text in up.ticks(6):
        page.line((across.start - 5, up.at(value)), (across.end, up.at(value)), _FAINT)
        page.text(text, (across.start - 10, up.at(value) + 5), SMALL, align=1)
    page.line((across.start, top), (across.start, bottom))
    page.line((across.start, bottom), (across.end, bottom))
    page.text("multiply-accumulates in INT8 (%)", ((across.start + across.end) / 2, bottom + 46), align=0.5)
    page.upright("IoU with the trained network", (across.start - 80, (top + bottom) / 2))
    places = [(across.at(x), up.at(y)) for x, y in everything]
    _number_steps(page, places[: len(steps)], places, (across.start, top, across.end, bottom))
    for place, step in zip(places, steps, strict=False):
        _mark_step(page, place, step.chosen)
    if final is not None:
        page.diamond(places[-1], 9, _PURPLE)


def _draw_legend(page: Page, search: Int8Search, count: int, final: _Verified | None, top: float) -> None:
    left, columns = _RIGHT_START - 60, [_WIDTH - _MARGIN - offset for offset in (160, 80, 0)]
    page.text("steps, on the hardest calibration frames", (left - 20, top), SMALL)
    for head, x in zip(("in INT8", "noise", "IoU"), columns, strict=True):
        page.text(head, (x, top), SMALL, align=1)
    page.line((left - 20, top + 8), (_WIDTH - _MARGIN, top + 8))
    y = top
    for number, step in enumerate(search.steps[:count], 1):
        y += _ROW
        _mark_step(page, (left, y - 5), step.chosen)
        page.text(str(number), (left + 32, y), SMALL, align=1)
        what = f"{step.what} (chosen)" if step.chosen else step.what
        page.text(what, (left + 46, y), SMALL, fit=columns[0] - 80 - left - 46)
        for text, x in zip(
            (f"{100 * step.share_of_work:.2f} %", f"{step.noise:.3f}", f"{step.iou:.4f}"), columns, strict=True
        ):
            page.text(text, (x, y), SMALL, align=1)
    if len(search.steps) > count:
        y += _ROW
        page.text(f"and {len(search.steps) - count} more, not drawn", (left + 46, y), SMALL)
    if final is not None:
        y += _ROW
        page.diamond((left, y - 5), 9, _PURPLE)
        what = f"final verification, mean of {final.frames} frames"
        page.text(what, (left + 46, y), SMALL, fit=columns[0] - 80 - left - 46)
        page.text(f"{100 * final.share:.2f} %", (columns[0], y), SMALL, align=1)
        page.text(f"{final.iou:.4f}", (columns[2], y), SMALL, align=1)


def _mark_step(page: Page, place_xy: tuple[float, float], chosen: bool) -> None:
    page.dot(place_xy, 5, _GREEN if chosen else INK)
    if chosen:
        page.ring(place_xy, 10, _GREEN)


def _number_steps(
    page: Page, points: Sequence[tuple[float, float]], marks: Sequence[tuple[float, float]], limits: _Box
) -> None:
    """Write the number of each point near it; where others are as near, a line says whose it is."""
    numbers: list[tuple[float, float]] = []
    for number, (x, y) in enumerate(points, 1):
        others = [mark for mark in marks if mark != (x, y)]

        def cost(place: tuple[float, float], x: float = x, y: float = y, others: Sequence[Any] = others) -> float:
            away = math.dist(place, (x, y))
            crowded = sum(max(0.0, away + 6 - math.dist(place, other)) for other in others)
            covered = sum(max(0.0, 22 - math.dist(place, other)) for other in (*others, *numbers))
            to_the_left = (x - place[0]) / away + 1  # decides between equals
            return away + 2 * crowded + 10 * covered + to_the_left

        around = [(radius, math.radians(15 * turn)) for radius in (20, 28, 36, 48) for turn in range(24)]
        places = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for radius, angle in around]
        left, top, right, bottom = limits
        inside = [place for place in places if left + 12 < place[0] < right and top < place[1] < bottom - 10]
        best = min(inside or places, key=cost)
        away = math.dist(best, (x, y))
        if away > 20.5 or any(math.dist(best, other) < away + 6 for other in others):
            page.line((x, y), (best[0] - (best[0] - x) * 9 / away, best[1] - (best[1] - y) * 9 / away), _GREY)
        page.text(str(number), (best[0], best[1] + 5), TEXT, align=0.5)
        numbers.append(best)


def _verified(manifest: Manifest, search: Int8Search) -> _Verified | None:
    iou = read_share(manifest.verification.get("iou_mean"))
    if iou is None or search.share_of_work is None:
        return None
    return _Verified(search.share_of_work, iou, str(manifest.verification.get("frames", "?")))


def _title(manifest: Manifest, search: Int8Search) -> str:
    count = sum(layer.precision == "int8" for layer in search.layers)
    share = "" if search.share_of_work is None else f"{100 * search.share_of_work:.1f} % of the convolutions' work, "
    return f"{manifest.model} in INT8: {share}{count} of {plural(len(search.layers), 'layer')}"


def _color(precision: str) -> Color:
    return _BLUE if precision == "int8" else _ORANGE
