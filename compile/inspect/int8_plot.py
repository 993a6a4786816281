"""A plot of what the search for INT8 found: which layers harm the masks, and what each step of the search gained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from compile.inspect.figure import BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, bare, new_figure, plain, png_bytes
from compile.inspect.int8_search import Int8Layer, Int8Search, Int8Step, read_share
from compile.inspect.table import plural
from pipeline.bundles.bundle import Manifest
from pipeline.errors import OptionError

WIDTH_PX = 2100
_BARS = 25
_STEPS = 24  # the search makes 8 at most
_ROW_PX = 36
_LONGEST_NAME = 42
_COLOURS = {"int8": BLUE, "fp16": ORANGE}

_Point = tuple[float, float]


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


def draw_search(manifest: Manifest, search: Int8Search) -> Figure:
    """Draw the layers that do most damage, the steps, and a table of the steps.

    Args:
        manifest: of the bundle.
        search: with one step or more, and one layer or more whose damage is known.
    """
    layers = [layer for layer in search.layers if layer.share_of_damage is not None][:_BARS]
    verified = _verified(manifest, search)
    rows = _table_rows(search, manifest, verified)
    height_px = 200 + max(len(layers) * _ROW_PX, 560 + (len(rows) + 1) * _ROW_PX)
    figure = new_figure(WIDTH_PX, height_px)
    grid = figure.add_gridspec(2, 2, height_ratios=[height_px - 130 - (len(rows) + 1) * _ROW_PX, len(rows) * _ROW_PX])
    figure.suptitle(_title(manifest, search), fontsize=12)
    _draw_layers(figure.add_subplot(grid[:, 0]), layers)
    _draw_table(figure.add_subplot(grid[1, 1]), rows)
    _draw_steps(figure.add_subplot(grid[0, 1]), search.steps[:_STEPS], verified)
    return figure


def _draw_layers(axes: Axes, layers: Sequence[Int8Layer]) -> None:
    bare(axes, "x").set_title("(a) Layers that do most damage in INT8", loc="left", fontsize=11)
    damage = [100 * (layer.share_of_damage or 0.0) for layer in layers]
    colours = [_COLOURS.get(layer.precision, GREY) for layer in layers]
    bars = axes.barh(range(len(layers)), damage, color=colours)
    told = [f"{value:.1f} %" if value >= 0.05 or not value else "< 0.1 %" for value in damage]
    axes.bar_label(bars, told, padding=4, fontsize=8)
    axes.set_yticks(range(len(layers)), [plain(layer.name, _LONGEST_NAME) for layer in layers], fontsize=8)
    axes.set_ylim(max(len(layers), 8) - 0.4, -0.6)  # few bars are not made wide
    axes.set_xlim(0, 1.15 * max(*damage, 0.01))
    axes.set_xlabel("share of the damage to the masks (%)")
    handles = [Patch(color=BLUE, label="stays INT8"), Patch(color=ORANGE, label="now FP16")]
    axes.legend(handles=handles, loc="lower right", fontsize=9)


def _draw_steps(axes: Axes, steps: Sequence[Int8Step], verified: _Point | None) -> None:
    bare(axes, "both").set_title("(b) Steps of the search", loc="left", fontsize=11)
    places = [(100 * step.share_of_work, step.iou) for step in steps]
    chosen = [place for place, step in zip(places, steps, strict=True) if step.chosen]
    others = [place for place, step in zip(places, steps, strict=True) if not step.chosen]
    for found, colour, size, marker, label in (
        (others, "#333333", 30, "o", "tried"),
        (chosen, GREEN, 90, "o", "chosen"),
        ([verified] if verified else [], PURPLE, 70, "D", "final verification"),
    ):
        if found:
            xs, ys = [x for x, _ in found], [y for _, y in found]
            axes.scatter(xs, ys, color=colour, s=size, marker=marker, label=label, zorder=3)
    everything = [*places, *([verified] if verified else [])]
    axes.set_xlim(_range([x for x, _ in everything], least=0.2))
    axes.set_ylim(_range([y for _, y in everything], least=0.002))
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel("multiply-accumulates in INT8 (%)")
    axes.set_ylabel("IoU with the trained network")
    axes.legend(fontsize=9, loc="best")
    _number(axes, places, everything)


def _number(axes: Axes, places: Sequence[_Point], everything: Sequence[_Point]) -> None:
    """Write the numbers of the points beside them, on the side where most room is."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays it out: only now it is known where points lie
    taken = [tuple(axes.transData.transform(place)) for place in everything]
    numbers: dict[_Point, list[str]] = {}
    for number, place in enumerate(places, 1):
        numbers.setdefault(place, []).append(str(number))
    for place, found in numbers.items():
        x, y = axes.transData.transform(place)
        around = [(28 * math.cos(turn * math.pi / 4), 28 * math.sin(turn * math.pi / 4)) for turn in range(8)]
        dx, dy = max(around, key=lambda way: min(math.dist((x + way[0], y + way[1]), other) for other in taken))
        taken.append((x + dx, y + dy))
        text = ", ".join(found[:3]) + ("…" if len(found) > 3 else "")
        align = "left" if dx > 1 else "right" if dx < -1 else "center"
        offset = (dx * 72 / DPI, dy * 72 / DPI)
        axes.annotate(text, place, offset, textcoords="offset points", ha=align, va="center")


def _draw_table(axes: Axes, rows: Sequence[Sequence[str]]) -> None:
    axes.set_axis_off()
    table = axes.table(
        rows,
        colLabels=["", "on the hardest calibration frames", "in INT8", "noise", "IoU"],
        colWidths=[0.05, 0.62, 0.12, 0.1, 0.11],
        cellLoc="left",
        colLoc="left",
        edges="horizontal",
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#e4e4e4")


def _table_rows(search: Int8Search, manifest: Manifest, verified: _Point | None) -> list[list[str]]:
    rows = []
    for number, step in enumerate(search.steps[:_STEPS], 1):
        what = plain(step.what, 44) + (" (chosen)" if step.chosen else "")
        rows.append([str(number), what, f"{100 * step.share_of_work:.2f} %", f"{step.noise:.3f}", f"{step.iou:.4f}"])
    if len(search.steps) > _STEPS:
        rows.append(["", f"and {len(search.steps) - _STEPS} more, not drawn", "", "", ""])
    if verified is not None:
        frames = plain(str(manifest.verification.get("frames", "?")), 10)
        what = f"final verification, mean of {frames} frames"
        rows.append(["◆", what, f"{verified[0]:.2f} %", "", f"{verified[1]:.4f}"])
    return rows


def _verified(manifest: Manifest, search: Int8Search) -> _Point | None:
    """Where the final verification stands: percent of the work in INT8, and the IoU."""
    iou = read_share(manifest.verification.get("iou_mean"))
    return None if iou is None or search.share_of_work is None else (100 * search.share_of_work, iou)


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range with room on both sides, at least so long."""
    room = max(0.15 * (max(values) - min(values)), least / 2)
    return min(values) - room, max(values) + room


def _title(manifest: Manifest, search: Int8Search) -> str:
    count = sum(layer.precision == "int8" for layer in search.layers)
    share = "" if search.share_of_work is None else f"{100 * search.share_of_work:.1f} % of the layers' work, "
    return f"{plain(manifest.model)} in INT8: {share}{count} of {plural(len(search.layers), 'layer')}"
