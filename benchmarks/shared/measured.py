"""What a part of a question has measured."""

from __future__ import annotations

from typing import Any, NamedTuple


class Measured(NamedTuple):
    """A part of the question, as it is printed, drawn and written.

    Attributes:
        lines: a table, and what explains it.
        table: the same for JSON.
        ratios: by name.
        bars: (name, ratio) for the plot.
    """

    lines: list[str]
    table: list[dict[str, Any]]
    ratios: dict[str, float]
    bars: list[tuple[str, float]]
