"""Milliseconds per stage, in memory that does not grow with the number of frames."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipeline.quick_dataclass import dataclass

# Buckets 1 % wide from 1 µs to about 20 minutes: a percentile is off by at most half of that.
_RATIO = 1.01
_FIRST_MS = 1e-3
_BUCKETS = 2100


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long one stage took per frame, in milliseconds."""

    name: str
    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class StageTimer:
    """Collects durations by stage, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        self._totals_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body as one pass of ``stage``; a body that raises is not counted."""
        start_ns = time.perf_counter_ns()
        yield
        self.add(stage, (time.perf_counter_ns() - start_ns) / 1e6)

    def add(self, stage: str, duration_ms: float) -> None:
        """Count one pass of ``stage`` that took ``duration_ms``."""
        bucket = int(math.log(max(duration_ms, _FIRST_MS) / _FIRST_MS, _RATIO))
        with self._lock:
            if stage not in self._counts:
                self._totals_ms[stage] = 0.0
                self._counts[stage] = np.zeros(_BUCKETS, np.int64)
            self._counts[stage][min(bucket, _BUCKETS - 1)] += 1
            self._totals_ms[stage] += duration_ms

    def result(self) -> list[StageTime]:
        """The stages in the order in which they were first timed."""
        stages = []
        for name, counts in list(self._counts.items()):
            count = int(counts.sum())
            if count == 0:
                continue
            p50_ms, p95_ms, p99_ms = (self._percentile_ms(counts, share) for share in (0.50, 0.95, 0.99))
            stages.append(StageTime(name, count, self._totals_ms[name] / count, p50_ms, p95_ms, p99_ms))
        return stages

    @staticmethod
    def _percentile_ms(counts: np.ndarray[tuple[int], np.dtype[np.int64]], share: float) -> float:
        bucket = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
        return float(_FIRST_MS * _RATIO ** (bucket + 0.5))
