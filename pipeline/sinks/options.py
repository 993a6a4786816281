"""What can be told to outputs, and how sizes and times are spelled on the command line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
ENCODERS = ("auto", "nvenc", "x264")


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """Everything that an output may need beyond its name; each output takes what concerns it.

    Attributes:
        classes: names of the network's classes, for results as text.
        encoder: "nvenc", "x264", or "auto": NVENC where a trial shows that it works.
        segment_s: a recording of a live source begins a new file after so many seconds; None: after an hour, which bounds the
            memory that the file's index takes.
        segment_bytes: likewise after so many bytes.
        keep_segments: delete the oldest files of this recording beyond so many; None: keep all.
        keep_bytes: likewise beyond so many bytes in all.
        keep_at_least_s: files of this recording younger than that are never deleted.
        min_free_bytes: what a recording leaves free on its disk.
        comment: one line of plain ASCII that PNG files and finished videos carry as their comment; empty: none.
    """

    classes: tuple[str, ...] = ("subject",)
    encoder: str = "auto"
    segment_s: float | None = None
    segment_bytes: int | None = None
    keep_segments: int | None = None
    keep_bytes: int | None = None
    keep_at_least_s: float = 0.0
    min_free_bytes: int = 200_000_000
    comment: str = ""

    @property
    def numbered(self) -> bool:
        """Whether files of a recording carry numbers from the first one on."""
        return any(
            value is not None for value in (self.segment_s, self.segment_bytes, self.keep_segments, self.keep_bytes)
        )


DEFAULTS = SinkOptions()


def byte_count(text: str) -> int:
    """An option's value as a number of bytes, for argparse: "500k", "200M", "1.5G".

    Raises:
        ArgumentTypeError: it is none.
    """
    return round(_quantity(text, _BYTES, "a size such as 500k, 200M or 1.5G"))


def duration_s(text: str) -> float:
    """An option's value as a time in seconds, for argparse: "30", "10m", "1h", "1d".

    Raises:
        ArgumentTypeError: it is none, or not above 0.
    """
    expected = "a time above 0 such as 30, 10m, 1h or 1d"
    seconds = _quantity(text, _SECONDS, expected)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return seconds


def _quantity(text: str, units: dict[str, int], expected: str) -> float:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]?)", text)
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return float(match[1]) * units[match[2]]
