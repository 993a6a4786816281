"""How far a corpus is, and what has become of it."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from pipeline.command.progress import LINE_EVERY_S
from pipeline.corpus.crew import Result
from pipeline.terminal import write_line

if TYPE_CHECKING:
    from tqdm import tqdm

# More workers than these are told together.
_MOST_ROWS = 8


class Progress:
    """Call it with each result; use it in a ``with`` block, which ends the bar's line.

    Args:
        sources: how many the corpus has.
        there: how many of them were done before.
        quiet: show nothing.

    Attributes:
        failed: how many have failed.
    """

    def __init__(self, sources: int, there: int, *, quiet: bool = False) -> None:
        self.failed = 0
        self._sources, self._there, self._done = sources, there, 0
        self._quiet = quiet
        self._start_s = self._line_s = time.monotonic()
        self._first_s: float | None = None  # when the first source had ended: what came before was the workers' start
        self._frames: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._sources, initial=self._there, unit=" sources", dynamic_ncols=True, file=sys.stderr
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, result: Result) -> None:
        """Count a result."""
        self._frames[result.worker] += result.frames
        self._seconds[result.worker] += result.seconds
        self.failed += result.state == "failed"
        self._done += result.state == "done"
        self._there += result.state == "there"
        if result.key and self._first_s is None:
            self._first_s = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self._rate_hz:.1f} FPS" + (f", {self.failed} failed" if self.failed else ""), False
            )
            self._bar.update(result.state != "working")
        elif not self._quiet and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            write_line(self.line())

    @property
    def _rate_hz(self) -> float:
        return sum(self._frames.values()) / max(time.monotonic() - self._start_s, 1e-9)

    def line(self) -> str:
        """How far the corpus is, in one line: the time left is that of as many sources at the rate so far."""
        ended = self._there + self._done + self.failed
        parts = [f"{ended}/{self._sources} sources", f"{self._rate_hz:.1f} FPS"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self._first_s is not None and (since := self._done + self.failed - 1) > 0:
            left_s = (self._sources - ended) * (time.monotonic() - self._first_s) / since
            parts.append(f"{int(left_s // 3600)}:{int(left_s // 60) % 60:02d}:{int(left_s) % 60:02d} left")
        return ", ".join(parts)

    def report(self) -> Iterator[str]:
        """What has become of it, line by line."""
        frames = sum(self._frames.values())
        yield (
            f"{self._done} done, {self._there} there already, {self.failed} failed; {frames} frames in "
            f"{time.monotonic() - self._start_s:.1f} s"
        )
        rates_hz = {name: self._frames[name] / seconds for name, seconds in self._seconds.items() if seconds}
        yield from _rows(rates_hz, self._frames)


def _rows(rates_hz: Mapping[str, float], frames: Mapping[str, int]) -> Iterator[str]:
    if len(rates_hz) <= _MOST_ROWS:
        for name in sorted(rates_hz):
            yield f"{name}: {frames[name]} frames, {rates_hz[name]:.1f} FPS"
        return
    rates = sorted(rates_hz.values())
    yield f"{len(rates)} workers: {rates[0]:.1f} to {rates[-1]:.1f} FPS, half of them above {statistics.median(rates):.1f}"
