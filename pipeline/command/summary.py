"""What is said of a run when it has ended."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.command.not_finite import not_finite_summary
from pipeline.frames.frame import SourceInfo
from pipeline.sinks.base import Sink
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import NEWER
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.masks.governor import Governor
    from pipeline.sources.base import Source

log = logger_of(__name__)


class Summary:
    """Counts the time from when it is made.

    Args:
        sources: their telemetry tells of the frames.
        info: all of them together.
        timer: the time of each stage.
        governor: if there is one.
    """

    def __init__(
        self, sources: Sequence[Source], info: SourceInfo, timer: StageTimer, governor: Governor | None
    ) -> None:
        self._sources, self._info, self._timer, self._governor = sources, info, timer, governor
        self._start_s = time.monotonic()
        self._left_frames = self._left_newer = 0  # of sources that have gone
        self._elapsed_s: float | None = None

    def join(self, source: Source) -> None:
        """One more source."""
        self._sources = [*self._sources, source]

    def leave(self, source: Source) -> None:
        """A source has gone; its frames count."""
        self._sources = [other for other in self._sources if other is not source]
        snapshot = source.telemetry.snapshot()
        self._left_frames += snapshot.frames_out
        self._left_newer += snapshot.dropped.get(NEWER, 0)

    def ends(self) -> None:
        """The last frame is written: what ends outputs now is not counted."""
        self._elapsed_s = time.monotonic() - self._start_s

    def tell(self) -> None:
        """Log all of it."""
        elapsed_s = time.monotonic() - self._start_s if self._elapsed_s is None else self._elapsed_s
        snapshots = [source.telemetry.snapshot() for source in self._sources]
        frames = self._left_frames + sum(snapshot.frames_out for snapshot in snapshots)
        newer = self._left_newer + sum(snapshot.dropped.get(NEWER, 0) for snapshot in snapshots)
        rate_hz, fps = frames / max(elapsed_s, 1e-9), self._info.fps
        real_time = f", {rate_hz / float(fps):.2f}× real time" if fps and not self._info.live else ""
        dropped = f", {newer} dropped" if newer else ""
        log.info(f"{frames} frames in {elapsed_s:.1f} s, {rate_hz:.1f} FPS{real_time}{dropped}")
        for stage in self._timer.result():
            log.info(f"{stage.name:>8}  p50 {stage.p50_ms:8.1f} ms  p95 {stage.p95_ms:8.1f} ms")
        for line in not_finite_summary(snapshots):
            log.warning(line)
        if self._governor is not None:
            for line in self._governor.lines():
                log.info(line)


def print_written(sinks: Sequence[Sink], *, to_stderr: bool) -> None:
    """Print where the results are; on standard error where a result itself is on standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8
    with contextlib.suppress(OSError):  # a terminal that was closed
        for sink in sinks:
            if sink.written:
                print(sink.written, file=sys.stderr if to_stderr else sys.stdout, flush=True)
