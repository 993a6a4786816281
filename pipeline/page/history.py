"""The last minutes of each source, a sample a second, so that a viewer who comes late sees the past."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pipeline.stages.telemetry import Snapshot

LENGTH = 300
"""Samples that are kept."""

Sample = tuple[float, float | None, float]
"""Frames written per second, age of the last one in milliseconds (None: none was written), frames dropped per second."""


class History:
    """A ring of samples for each source, all taken at the same times.

    Attributes:
        count: samples taken so far, those that are forgotten too.
    """

    def __init__(self, sources: int) -> None:
        self.count = 0
        self._samples: list[deque[Sample]] = [deque(maxlen=LENGTH) for _ in range(sources)]
        self._before: list[tuple[float, int, int]] | None = None

    def take(self, snapshots: Sequence[Snapshot], now_s: float) -> None:
        """Add a sample of each source, in the order of the sources; the first call only begins.

        Args:
            snapshots: as they are now.
            now_s: the time now, on any clock that does not jump.
        """
        now = [(now_s, snapshot.frames_out, sum(snapshot.dropped.values())) for snapshot in snapshots]
        before, self._before = self._before, now
        if before is None:
            return
        for ring, snapshot, (from_s, out_before, dropped_before), (to_s, out, dropped) in zip(
            self._samples, snapshots, before, now, strict=True
        ):
            elapsed_s = max(to_s - from_s, 1e-3)
            age_ms = round(snapshot.age_ms, 1) if out > out_before else None
            ring.append(
                (round((out - out_before) / elapsed_s, 2), age_ms, round((dropped - dropped_before) / elapsed_s, 2))
            )
        self.count += 1

    def become(self, kept: Sequence[int | None]) -> None:
        """Have other sources from now on; of a new one nothing is known of the past.

        Args:
            kept: for each the place that it had before; None: it is new.
        """
        length = min(self.count, LENGTH)
        nothing: Sample = (0.0, None, 0.0)
        self._samples = [
            deque([nothing] * length, maxlen=LENGTH) if place is None else self._samples[place] for place in kept
        ]
        if self._before is not None:
            taken_s = self._before[0][0] if self._before else 0.0
            self._before = [(taken_s, 0, 0) if place is None else self._before[place] for place in kept]

    def last(self) -> list[Sample | None]:
        """The newest sample of each source; None: there is none yet."""
        return [ring[-1] if ring else None for ring in self._samples]

    def all(self) -> list[list[Sample]]:
        """Every sample of each source, oldest first."""
        return [list(ring) for ring in self._samples]
