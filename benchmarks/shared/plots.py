"""Plots of what was measured, by matplotlib: bars, groups of bars, lines and named points. Imported on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from compile.inspect.figure import BLUE, COLOURS, GREY, bare, new_figure, plain, png_bytes

WIDTH_PX = 1350
_BAR_PX, _AROUND_PX = 46, 190
# What fits beside each other below a plot, and how much of it a line's sample takes.
_LEGEND_CHARACTERS, _LEGEND_LINE = 140, 10


def bars(
    title: str, of_x: str, values: Sequence[tuple[str, float]], marks: Mapping[str, float] | None = None
) -> Figure:
    """One horizontal bar for each name, from 0.

    Args:
        title: above them.
        of_x: what the bars are long by, with its unit.
        values: (name, value), from top to bottom.
        marks: values with a dashed line of their own, such as a goal, by what they are.
    """
    figure = new_figure(WIDTH_PX, _AROUND_PX + _BAR_PX * max(2, len(values)) + 30 * bool(marks))
    axes = bare(figure.subplots(), "x")
    names = [plain(name) for name, _ in values]
    drawn = axes.barh(range(len(values)), [value for _, value in values], color=BLUE, height=0.7)
    for text in axes.bar_label(drawn, [f"{value:.4g}" for _, value in values], padding=4, fontsize=9):
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # lines of marks stop short of it
    axes.set_yticks(range(len(values)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    for (name, mark), colour in zip((marks or {}).items(), COLOURS[1:], strict=False):
        axes.axvline(mark, color=colour, linestyle="--", linewidth=1.3, label=f"{plain(name)} ({mark:g})")
    if marks:
        figure.legend(loc="outside lower right", frameon=False, fontsize=9, ncols=len(marks))
    _label(figure, title, of_x)
    return figure


def grouped_bars(title: str, of_x: str, groups: Mapping[str, Mapping[str, float]], *, log: bool = False) -> Figure:
    """Groups of horizontal bars, one colour for each name inside a group.

    Args:
        title: above them.
        of_x: what the bars are long by, with its unit.
        groups: by the group's name the values by theirs; a group need not have all.
        log: on a scale of powers of ten.
    """
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    count = max(1, len(series))
    figure = new_figure(WIDTH_PX, _AROUND_PX + 30 + (24 * count + 22) * max(1, len(groups)))
    axes = bare(figure.subplots(), "x")
    for index, name in enumerate(series):
        found = [(row, values[name]) for row, values in enumerate(groups.values()) if name in values]
        places = [row + (index - (count - 1) / 2) * 0.8 / count for row, _ in found]
        drawn = axes.barh(
            places,
            [value for _, value in found],
            0.8 / count,
            color=COLOURS[index % len(COLOURS)],
            label=plain(name),
            log=log,
        )
        axes.bar_label(drawn, [f"{value:.3g}" for _, value in found], padding=3, fontsize=7)
    axes.set_yticks(range(len(groups)), [plain(name) for name in groups])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    if log:
        axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=min(count, 4))
    _label(figure, title, of_x)
    return figure


def lines(
    title: str, of_x: str, of_y: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
) -> Figure:
    """Lines through points, in panels one above the other.

    Args:
        title: above all.
        of_x: what x is, with its unit.
        of_y: what y is, with its unit.
        panels: by what stands above a panel, its lines by their names, each of (x, y).
    """
    figure = new_figure(WIDTH_PX, 180 + 420 * len(panels))
    for number, (above, named) in enumerate(panels.items(), 1):
        axes = bare(figure.add_subplot(len(panels), 1, number), "both")
        for (name, points), colour in zip(named.items(), COLOURS * (1 + len(named) // len(COLOURS)), strict=False):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, color=colour, linewidth=1.5, label=plain(name), marker="." if len(xs) < 40 else "")
        axes.set_title(plain(above), fontsize=10, loc="left")
        axes.set_ylabel(of_y)
    names = list(figure.axes[0].lines) if figure.axes else []
    if len(names) > 1:
        longest = max(len(str(line.get_label())) for line in names)
        columns = max(1, min(len(names), 4, _LEGEND_CHARACTERS // (longest + _LEGEND_LINE)))
        figure.legend(handles=names, loc="outside lower center", frameon=False, fontsize=9, ncols=columns)
    _label(figure, title, of_x)
    return figure


def points(title: str, of_x: str, of_y: str, named: Mapping[str, tuple[float, float]]) -> Figure:
    """Points with their names, and a line through them in their order.

    Args:
        title: above them.
        of_x: what x is, with its unit; from 0.
        of_y: what y is, with its unit.
        named: (x, y) by the point's name.
    """
    figure = new_figure(WIDTH_PX, 720)
    axes = bare(figure.subplots(), "both")
    axes.plot([x for x, _ in named.values()], [y for _, y in named.values()], color=GREY, linewidth=1, zorder=1)
    axes.scatter([x for x, _ in named.values()], [y for _, y in named.values()], color=BLUE, s=36, zorder=2)
    for name, place in named.items():
        axes.annotate(plain(name), place, (6, 6), textcoords="offset points", fontsize=9)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlim(left=0)
    axes.set_ylabel(of_y)
    _label(figure, title, of_x)
    return figure


def write_plot(path: str | Path, figure: Figure) -> None:
    """Write a plot as PNG, in a folder that is made."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png_bytes(figure))


def _label(figure: Figure, title: str, of_x: str) -> None:
    """A title over the figure, and what x is below the lowest axes."""
    figure.suptitle(plain(title, 110), fontsize=11)
    figure.axes[-1].set_xlabel(of_x)
