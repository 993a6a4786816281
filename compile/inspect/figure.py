"""Figures of matplotlib, without its global state, and texts that its fonts have letters for."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito's, told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#8e4585", "#d55e00", "#56b4e9"),
    "#999999",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, "#000000", "#b8a000")


def new_figure(width_px: int, height_px: int) -> Figure:
    """An empty figure that keeps its texts from overlapping; drawn by Agg, which needs no screen."""
    return Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, layout="constrained")


def bare(axes: Axes, grid: str) -> Axes:
    """Take the frame away above and to the right, and put faint lines behind what is drawn.

    Args:
        axes: changed in place.
        grid: lines at the ticks of "x", "y" or "both".

    Returns:
        The same axes.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#e4e4e4", linewidth=0.8)  # type: ignore[arg-type]
    return axes


def png_bytes(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def plain(text: str, longest: int = 60) -> str:
    """A text as a figure shows it: one line, at most so long, of letters that its font has, and none of it read as a formula."""
    text = "".join(letter if letter.isprintable() and ord(letter) < 0x370 else "?" for letter in text)
    if len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")
