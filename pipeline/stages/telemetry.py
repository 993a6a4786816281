"""What is known of a source while it runs: its state, its frames and their age; for the HUD, the page and the metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import TypeVar

from pipeline.quick_dataclass import dataclass

_RATE_OVER_S = 3.0
_RATE_FRAMES = 400  # as many as come in that time, and a bound on memory
_AGES = 600
T = TypeVar("T")


class State(str, Enum):
    """Where a source stands; a source that cannot break off knows only RUNNING and ENDED."""

    CONNECTING = "connecting"
    RUNNING = "running"
    STALLED = "stalled"
    RECONNECTING = "reconnecting"
    ENDED = "ended"
    FAILED = "failed"


# Why a frame that was read was not written.
NEWER = "newer"
"""A newer one replaced it before the engine took it."""
CORRUPT = "corrupt"
"""It was damaged on the way."""
STOPPED = "stopped"
"""The run ended before it was written."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a source.

    Attributes:
        name: the source's name; never an address with a password.
        state: where it stands.
        state_s: seconds since it came there.
        problem: why it does not run, redacted; empty while it does.
        reconnects: how often a connection was begun again.
        frames_in: frames that were read, damaged ones too; ``frames_in = frames_out + dropped + in_flight``.
        frames_out: frames that were written.
        dropped: frames that were not, by reason (NEWER, CORRUPT, STOPPED).
        in_flight: frames on their way.
        rate_in_hz: frames read per second, over the last seconds.
        rate_out_hz: frames written per second, likewise.
        age_ms: age of the last frame when it was written: capture to shown; 0 before the first.
        age_p50_ms: its median over the last 600 frames.
        age_p99_ms: its 99th percentile over the same.
        frame_s: seconds since the last frame was written; None before the first.
        not_finite: frames written with scores that are NaN or infinite, whose masks are wrong.
        not_finite_s: for how long, up to the last frame, every one was so; None if the last one was not.
        frames_stale: frames that were written with a stale mask (``Frame.stale``).
        stale: the last one was.
    """

    name: str
    state: State
    state_s: float
    problem: str
    reconnects: int
    frames_in: int
    frames_out: int
    dropped: Mapping[str, int]
    in_flight: int
    rate_in_hz: float
    rate_out_hz: float
    age_ms: float
    age_p50_ms: float
    age_p99_ms: float
    frame_s: float | None
    not_finite: int
    not_finite_s: float | None
    frames_stale: int
    stale: bool


class Telemetry:
    """Counts one source's frames; any thread may write and read.

    Args:
        name: the source's name, already redacted.
        state: where it stands at first.

    Attributes:
        bytes_in: bytes of the frames that were read.
        threads: native numbers of the threads that read it now; replaced and not changed.
    """

    def __init__(self, name: str, state: State = State.RUNNING) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._state = state
        self._since_ns = time.monotonic_ns()
        self._problem = ""
        self._reconnects = self._frames_in = self._frames_out = self._frames_stale = 0
        self._stale = False
        self._dropped: Counter[str] = Counter()
        self._not_finite = 0
        self._not_finite_since_ns: int | None = None
        self._in_ns: deque[int] = deque(maxlen=_RATE_FRAMES)
        self._out_ns: deque[int] = deque(maxlen=_RATE_FRAMES)
        self._ages_ms: deque[float] = deque(maxlen=_AGES)
        self.bytes_in = 0
        self.threads: frozenset[int] = frozenset()

    @property
    def state(self) -> State:
        """Where the source stands."""
        return self._state

    def enter(self, state: State, problem: str = "") -> None:
        """Come into a state; staying in it keeps its time.

        Args:
            state: where the source stands now; each new RECONNECTING is counted.
            problem: why it does not run, already redacted.
        """
        with self._lock:
            self._problem = problem
            if state is self._state:
                return
            self._state, self._since_ns = state, time.monotonic_ns()
            self._reconnects += state is State.RECONNECTING

    def came_in(self, size_bytes: int = 0) -> None:
        """Count a frame that was read, whatever becomes of it."""
        with self._lock:
            self._frames_in += 1
            self.bytes_in += size_bytes
            self._in_ns.append(time.monotonic_ns())

    def went_out(self, age_ms: float, *, stale: bool = False, not_finite: bool = False) -> None:
        """Count a frame that was written, ``age_ms`` after its capture: with a stale mask, with scores that are not finite."""
        with self._lock:
            now_ns = time.monotonic_ns()
            self._frames_out += 1
            self._out_ns.append(now_ns)
            self._frames_stale += stale
            self._stale = stale
            self._ages_ms.append(age_ms)
            self._not_finite += not_finite
            if not not_finite:
                self._not_finite_since_ns = None
            elif self._not_finite_since_ns is None:
                self._not_finite_since_ns = now_ns

    def drop(self, reason: str, count: int = 1) -> None:
        """Count frames that will not be written: NEWER, CORRUPT or STOPPED."""
        with self._lock:
            self._dropped[reason] += count

    def reads(self, thread: int, *, ended: bool = False) -> None:
        """A thread reads the source from now on, or no more."""
        with self._lock:
            self.threads = self.threads - {thread} if ended else self.threads | {thread}

    def stop(self) -> None:
        """Count what is still on its way as dropped: the run has ended."""
        with self._lock:
            if left := self._in_flight:
                self._dropped[STOPPED] += left

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        with self._lock:
            now_ns = time.monotonic_ns()
            ages_ms = sorted(self._ages_ms)
            return Snapshot(
                self.name,
                self._state,
                (now_ns - self._since_ns) / 1e9,
                self._problem,
                self._reconnects,
                self._frames_in,
                self._frames_out,
                dict(self._dropped),
                self._in_flight,
                _rate_hz(self._in_ns, now_ns),
                _rate_hz(self._out_ns, now_ns),
                self._ages_ms[-1] if ages_ms else 0.0,
                ages_ms[len(ages_ms) // 2] if ages_ms else 0.0,
                ages_ms[min(len(ages_ms) - 1, int(0.99 * len(ages_ms)))] if ages_ms else 0.0,
                (now_ns - self._out_ns[-1]) / 1e9 if self._out_ns else None,
                self._not_finite,
                None if self._not_finite_since_ns is None else (self._out_ns[-1] - self._not_finite_since_ns) / 1e9,
                self._frames_stale,
                self._stale,
            )

    @property
    def _in_flight(self) -> int:
        return self._frames_in - self._frames_out - self._dropped.total()


def read_by(items: Iterable[T], telemetry: Telemetry) -> Iterator[T]:
    """Pass on what a source gives; the thread that asks for it counts as one that reads it."""
    thread = threading.get_native_id()
    telemetry.reads(thread)
    try:
        yield from items
    finally:
        telemetry.reads(thread, ended=True)


def _rate_hz(times_ns: deque[int], now_ns: int) -> float:
    """Frames per second over the last seconds; falls to 0 when none comes any more."""
    recent = [time_ns for time_ns in times_ns if now_ns - time_ns <= _RATE_OVER_S * 1e9]
    over_ns = max(now_ns, recent[-1]) - recent[0] if recent else 0
    return (
        (len(recent) - 1) / (over_ns / 1e9) if over_ns else 0.0
    )  # some clocks tick too seldom to tell two frames apart
