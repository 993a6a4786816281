"""Measures what sensors tell while something runs: joules, the highest temperature, and what took clocks away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType

from benchmarks.shared.power_sensors import Sensor

# A Jetson's monitors average over some 10 ms, and NVIDIA's drivers give a new power about ten times a second.
EVERY_S = 0.1


@dataclass(frozen=True)
class Reading:
    """What one sensor told in a span of time.

    Attributes:
        seconds: the length of the span.
        energy_j: None where it never answered.
        peak_c: the highest temperature; None where nothing tells.
        throttled_by: what took clocks away at some moment, in alphabetical order.
    """

    seconds: float
    energy_j: float | None
    peak_c: float | None
    throttled_by: tuple[str, ...]

    @property
    def mean_w(self) -> float | None:
        """Watts in the mean."""
        return None if self.energy_j is None or self.seconds <= 0 else self.energy_j / self.seconds


class Meter:
    """Reads sensors at the beginning and the end of a ``with`` block, and on a thread all along.

    Args:
        sensors: what to read; all of them are here.
        every_s: seconds between two readings on the thread.

    Attributes:
        readings: after the block, of each sensor in their order.
    """

    def __init__(self, sensors: Sequence[Sensor], every_s: float = EVERY_S) -> None:
        self.readings: list[Reading] = []
        self._tracks = [_Track(sensor) for sensor in sensors]
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="power meter", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Meter:
        for track in self._tracks:
            track.read(thoroughly=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is not None:
            return
        if self._error is not None:
            raise self._error
        for track in self._tracks:
            track.read(thoroughly=True)
        self.readings = [track.reading() for track in self._tracks]

    def _watch(self) -> None:
        try:
            while not self._ended.wait(self._every_s):
                for track in self._tracks:
                    track.read()
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._error = error


@dataclass
class _Track:
    """What one sensor told so far."""

    sensor: Sensor
    told: list[tuple[float, float]] = field(default_factory=list)  # seconds and joules, or seconds and watts
    peak_c: float | None = None
    throttled_by: set[str] = field(default_factory=set)
    spans: list[float] = field(default_factory=list)  # when all was read, at the beginning and at the end
    counts: list[Mapping[str, int]] = field(default_factory=list)  # the same

    def read(self, thoroughly: bool = False) -> None:
        read = self.sensor.energy_j or self.sensor.power_w
        assert read is not None
        now_s = time.monotonic()
        value = _answer(read)
        if value is not None:
            self.told.append((now_s, value))
        if thoroughly:
            self.spans.append(now_s)
            self.counts.append(self.sensor.throttle_counts())
        temperature_c = self.sensor.temperature_c()
        if temperature_c is not None:
            self.peak_c = max(temperature_c, -1e9 if self.peak_c is None else self.peak_c)
        self.throttled_by |= self.sensor.holding_back()

    def reading(self) -> Reading:
        before, after = self.counts
        grown = {name for name, count in after.items() if count > before.get(name, count)}
        seconds = self.spans[1] - self.spans[0]
        mean_w = _mean_of_counter_w(self.told) if self.sensor.energy_j else mean_of_power_w(self.told)
        return Reading(
            seconds,
            None if mean_w is None else mean_w * seconds,
            self.peak_c,
            tuple(sorted(self.throttled_by | grown)),
        )


def mean_of_power_w(samples: Sequence[tuple[float, float]]) -> float | None:
    """Mean of sampled power over time: the area of the trapezoids between the samples by its length.

    Args:
        samples: (seconds, watts) in order of time; not all as far from each other.

    Returns:
        Watts; None without a sample.
    """
    if not samples:
        return None
    seconds = samples[-1][0] - samples[0][0]
    if seconds <= 0:
        return samples[-1][1]
    area_j = sum((after_s - at_s) * (w + after_w) / 2 for (at_s, w), (after_s, after_w) in pairwise(samples))
    return area_j / seconds


def _mean_of_counter_w(samples: Sequence[tuple[float, float]]) -> float | None:
    if len(samples) < 2 or samples[-1][0] <= samples[0][0]:
        return None
    return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])


def _answer(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except OSError:  # the driver does not answer at the moment
        return None
