"""How far a run is: a bar with the time left on a terminal, else a line every few seconds, or for a camera every few minutes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NoReturn

from pipeline.frames.frame import Frame, SourceInfo

if TYPE_CHECKING:
    from tqdm import tqdm

    from pipeline.sources.base import Source

LINE_EVERY_S = 5.0
# A camera runs for months, and a journal keeps every line.
LIVE_LINE_EVERY_S = 600.0


class Progress:
    """Call it with each written frame; use it in a ``with`` block, which ends the bar's line.

    Args:
        info: the source; its number of frames, if known, gives the time left.
        max_frames: the run ends after so many.
        quiet: show nothing.
    """

    def __init__(self, info: SourceInfo, max_frames: int | None = None, *, quiet: bool = False) -> None:
        counts = [count for count in (info.frame_count, max_frames) if count is not None]
        self._total = min(counts) if counts else None
        self._fps = float(info.fps) if info.fps and not info.live else None
        self._quiet = quiet
        self._every_s = LIVE_LINE_EVERY_S if info.live else LINE_EVERY_S
        self._start_s = self._line_s = time.monotonic()
        self._frames = 0
        self._bar: tqdm[NoReturn] | None = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=" frames", dynamic_ncols=True, smoothing=0.1, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, frame: Frame, dropped: int) -> None:
        """Count one frame."""
        self._frames += 1
        if self._bar is not None:
            if self._fps:
                self._bar.set_postfix_str(f"{self.rate_hz / self._fps:.2f}× real time", refresh=False)
            elif dropped:
                self._bar.set_postfix_str(f"{dropped} dropped", refresh=False)
            self._bar.update(1)
        elif not self._quiet and time.monotonic() - self._line_s >= self._every_s:
            self._line_s = time.monotonic()
            sys.stderr.write(self.line(dropped) + "\n")
            sys.stderr.flush()

    def join(self, source: Source) -> None:
        """Of how many frames there are in all nothing is known any more."""
        self._total = None
        if self._bar is not None:
            self._bar.total = None

    def leave(self, source: Source) -> None:
        """Likewise."""
        self.join(source)

    @property
    def rate_hz(self) -> float:
        """Frames per second since the start."""
        return self._frames / max(time.monotonic() - self._start_s, 1e-9)

    def line(self, dropped: int) -> str:
        """The state of the run in one line."""
        parts = [
            f"{self._frames}/{self._total} frames" if self._total else f"{self._frames} frames",
            f"{self.rate_hz:.1f} FPS",
        ]
        if self._fps:
            parts.append(f"{self.rate_hz / self._fps:.2f}× real time")
        if self._total and self._frames:
            left_s = max(0, self._total - self._frames) / self.rate_hz  # a container may announce too few frames
            parts.append(f"{int(left_s // 60)}:{int(left_s % 60):02d} left")
        if dropped:
            parts.append(f"{dropped} dropped")
        return ", ".join(parts)
