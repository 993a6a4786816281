"""What can be told to outputs, and how sizes and times are spelled on the command line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING

from pipeline.quick_dataclass import dataclass
from pipeline.sources.options import LiveOptions

if TYPE_CHECKING:
    from pipeline.frames.audited import Audited
    from pipeline.results.finder import Finder

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# More than any disk, and longer than any run: what is beyond is no size and no time to a clock of the system.
_MOST_BYTES, _MOST_S = 10**18, 10 * 365 * 86400
ENCODERS = ("auto", "nvenc", "x264")
RESULTS = ("polygons", "rle", "rle-counts", "yolo")
LABELS = ("coco", "yolo", "png")


def no_audit(source: str) -> None:
    """Of a run that has none."""


@dataclass(slots=True)
class RecordingSwitch:
    """Turns recordings of live sources off and on while a run goes on. Any thread may set ``on``.

    Attributes:
        on: what comes is recorded; else the file that is written is ended, and the next one begins when it is on again.
        recordings: how many obey it.
    """

    on: bool = True
    recordings: int = 0


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """Everything that an output may need beyond its name; each output takes what concerns it.

    Attributes:
        classes: names of the network's classes, for results as text.
        results: what results as text say of each region beside its box: some of `RESULTS`.
        labels: a folder holds labels for training in place of pictures: one of `LABELS`; None: pictures.
        finder: finds what is in frames, the same for all outputs of a run; None: each output has its own.
        audited: the last audit of a source, by its name, which JSON lines tell of; None where there is none yet.
        sound: a video gets the sound and subtitles of its file.
        encoder: "nvenc", "x264", or "auto": NVENC where a trial shows that it works.
        segment_s: a recording of a live source begins a new file after so many seconds; None: after an hour, which bounds the
            memory that the file's index takes.
        segment_bytes: likewise after so many bytes.
        keep_segments: delete the oldest files of this recording beyond so many; None: keep all.
        keep_bytes: likewise beyond so many bytes in all.
        keep_at_least_s: files of this recording younger than that are never deleted.
        min_free_bytes: what a recording leaves free on its disk.
        switch: turns a recording off and on; None: it is on.
        live: whom streams and events out connect to: ``tls_verify`` and ``follow_redirects`` as for sources.
        comment: one line of plain ASCII that PNG files and finished videos carry as their comment; empty: none.
    """

    classes: tuple[str, ...] = ("subject",)
    results: tuple[str, ...] = ()
    labels: str | None = None
    finder: Finder | None = None
    audited: Callable[[str], Audited | None] = no_audit
    sound: bool = True
    encoder: str = "auto"
    segment_s: float | None = None
    segment_bytes: int | None = None
    keep_segments: int | None = None
    keep_bytes: int | None = None
    keep_at_least_s: float = 0.0
    min_free_bytes: int = 200_000_000
    switch: RecordingSwitch | None = None
    live: LiveOptions = field(default_factory=LiveOptions)
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
    return round(_quantity(text, _BYTES, "a size such as 500k, 200M or 1.5G", _MOST_BYTES))


def byte_count_above_zero(text: str) -> int:
    """The same where 0 makes no sense."""
    count = byte_count(text)
    if count == 0:
        raise argparse.ArgumentTypeError(f"expected a size above 0 such as 500M or 2G, got {text}")
    return count


def words_of(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """What reads an option's value as some of these words with commas between them, for argparse."""

    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(text.split(",")))
        if unknown := [word for word in words if word not in choices]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(choices)}, got {unknown[0]!r}")
        return words

    return read


def duration_s(text: str) -> float:
    """An option's value as a time in seconds, for argparse: "30", "10m", "1h", "1d".

    Raises:
        ArgumentTypeError: it is none, or not above 0.
    """
    expected = "a time above 0 such as 30, 10m, 1h or 1d"
    seconds = _quantity(text, _SECONDS, expected, _MOST_S)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return seconds


def _quantity(text: str, units: dict[str, int], expected: str, most: int) -> float:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]?)", text, re.ASCII)
    value = float(match[1]) * units[match[2]] if match is not None and match[2] in units else math.inf
    if value > most:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return value
