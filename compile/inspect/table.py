"""Rows and columns of text, of one width, with nothing in them that a terminal would obey."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

# A name in a bundle may hold a terminal's commands, or turn the direction of what is written.
_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
LISTED = 8
"""How many names of a list are shown."""

SHOWN = 10
"""How many layers are shown."""

_LABEL = 12
_GAP = 2


def clean(value: Any) -> str:
    """Anything as text of one line that a terminal only shows."""
    return _COMMANDS.sub(" ", str(value))


def field(label: str, text: str, width: int) -> Iterator[str]:
    """A label and what belongs to it, wrapped."""
    # One word too long for a line, a path, say, stays whole.
    first, *others = textwrap.wrap(
        clean(text), width - _GAP - _LABEL, break_on_hyphens=False, break_long_words=False
    ) or [""]
    yield f"{' ' * _GAP}{label:<{_LABEL}}{first}".rstrip()
    for line in others:
        yield " " * (_GAP + _LABEL) + line


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Rows under column heads.

    Args:
        columns: heads; numbers stand under those that begin with ``>``, to the right.
        rows: a text for each column; the first is shortened to make the others fit.
        width: of a line, in characters.
    """
    heads = [column.removeprefix(">") for column in columns]
    cells = [heads, *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    widths[0] = min(widths[0], max(12, width - sum(_GAP + other for other in widths[1:]) - _GAP))
    for row in cells:
        texts = [shorten(cell, wide) for cell, wide in zip(row, widths, strict=True)]
        aligned = [
            text.rjust(wide) if column.startswith(">") else text.ljust(wide)
            for text, wide, column in zip(texts, widths, columns, strict=True)
        ]
        yield (" " * _GAP + (" " * _GAP).join(aligned)).rstrip()


def shorten(text: str, width: int) -> str:
    """A text of at most ``width`` characters: its beginning and its end, which tell names apart."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def size_text(size_bytes: Any) -> str:
    """A size such as "2.37 MB"; whatever is no number as it is."""
    if not isinstance(size_bytes, int):
        return clean(size_bytes)
    if size_bytes < 1000:
        return f"{size_bytes} B"
    scaled, unit = next(
        ((size_bytes / scale, unit) for scale, unit in ((1e9, "GB"), (1e6, "MB")) if size_bytes >= scale),
        (size_bytes / 1e3, "kB"),
    )
    return f"{scaled:.3g} {unit}" if scaled < 100 else f"{scaled:.0f} {unit}"


def work_text(multiply_accumulates: int | None, unknown: int = 0) -> str:
    """Multiply-accumulates such as "19.8 G", with "+ ?" where some are unknown."""
    if multiply_accumulates is None:
        return "?"
    more = " + ?" if unknown else ""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if multiply_accumulates >= scale:
            return f"{multiply_accumulates / scale:.3g} {unit}{more}"
    return f"{multiply_accumulates}{more}" if multiply_accumulates or unknown else "–"


def percent(part: float, whole: float) -> str:
    """A share such as "97.5 %"."""
    return f"{100 * part / whole:.1f} %" if part and whole else "–"


def number_text(value: Any, digits: int) -> str:
    """A number with so many digits behind the point; anything else as it is."""
    return f"{value:.{digits}f}" if isinstance(value, float) else clean(value)


def plural(count: int, noun: str) -> str:
    """A count and what is counted, such as "1 layer" or "2,000 layers"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], limit: int | None) -> str:
    """Names, at most so many of them, and how many more."""
    shown = names if limit is None else names[:limit]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
