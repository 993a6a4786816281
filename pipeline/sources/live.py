"""What every live source does: its own deadlines, connections made again, and frames that go on counting over all of them.

CONNECTING ──frame── RUNNING ──no frame── STALLED ──still none── RECONNECTING ──frame── RUNNING
                        └────────── broken off, ended ──────────────┘
"""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.frames.on_device import OnDevice
from pipeline.frames.pixels import Pixels
from pipeline.redaction import redact
from pipeline.sources.base import Source
from pipeline.sources.options import LiveOptions
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.telemetry import CORRUPT, State, Telemetry, read_by
from pipeline.terminal import logger_of

log = logger_of(__name__)

# A reader that hangs in a library ends by the library's own time-out. Until then no more than so many are left behind.
MAX_ABANDONED = 2
_JOIN_S = 0.3  # long enough to take leave of a peer that answers
_LIFE_EVERY_S = 0.5


class LostError(Exception):
    """A connection could not be made or broke off, and the next one may do better. Its text is redacted."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a connection gives.

    Attributes:
        pixels: uint8, as ``Frame.pixels``; owned by the receiver. None when nothing can be seen: a sign of life, or all damaged.
        pts_s: the peer's time stamp in seconds, from any start; None when it has none that can be trusted.
        corrupt: it was damaged on the way.
        format: of ``pixels``: "bgr" or "nv12".
        captured_ns: ``time.monotonic_ns()`` when it was complete.
        sample_aspect: the shape of a pixel, width to height.
        device: where it lies on a GPU; then ``pixels`` stand for it alone. See ``Frame.device``.
    """

    pixels: Image | None
    pts_s: float | None = None
    corrupt: bool = False
    format: Pixels = "bgr"
    captured_ns: int = field(default_factory=time.monotonic_ns)
    sample_aspect: Fraction = Fraction(1)
    device: OnDevice | None = None


class Connection(ABC):
    """One connection to a live source. Made without waiting; whatever may block happens in its iterator, on a thread."""

    @abstractmethod
    def __iter__(self) -> Iterator[Picture]:
        """Connect, give pictures, and disconnect at the end.

        Raises:
            LostError: it broke off, or could not be made this time.
            SourceError: it can never be made: what is wrong stays wrong.
        """

    def cancel(self) -> None:
        """Make a blocked iterator end soon, where that can be done; called from any thread, perhaps more than once."""
        return

    def processes(self) -> Sequence[int]:
        """The numbers of processes that read in its place; from any thread."""
        return ()


class LiveSource(Source):
    """A source that comes and goes. Opening it neither waits nor needs the peer; ``close`` may come from any thread.

    Args:
        info: what is known before the first frame.
        connect: makes a connection, without waiting.
        options: deadlines and policies.
    """

    def __init__(self, info: SourceInfo, connect: Callable[[], Connection], options: LiveOptions | None = None) -> None:
        self.info = info
        self._connect = connect
        self._options = options or LiveOptions()
        self._stem = ""  # of frames' names
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._open: tuple[Connection, Prefetch[Picture]] | None = None
        self._left: list[Prefetch[Picture]] = []
        self._clock = StreamClock()
        self._index = 0
        self._attempts = 0
        self._start_s = self._lost_s = 0.0

    @cached_property
    def telemetry(self) -> Telemetry:
        """Begins as CONNECTING."""
        return Telemetry(self.info.name, State.CONNECTING)

    def __iter__(self) -> Iterator[Frame]:
        self._start_s = time.monotonic()
        self._stem = re.sub(r"[^\w.-]+", "_", self.info.name)  # which it may have been given since
        try:
            while not self._closed.is_set():
                try:
                    yield from self._frames()
                except LostError as error:
                    self._back_off(str(error))
            if self.given_up:
                raise SourceError(self.given_up)
        except Exception as error:
            self._enter(State.FAILED, redact(str(error)))
            raise
        finally:
            self.close()

    def close(self) -> None:
        """End, whatever the source is waiting for."""
        with self._lock:
            if not self._closed.is_set():
                self._closed.set()
                if self.telemetry.state is not State.FAILED:
                    self.telemetry.enter(State.ENDED)
            left, self._open = self._open, None
        self._leave(left)

    def give_up(self, problem: str) -> None:
        """The same, and whatever it is waiting for."""
        super().give_up(problem)
        self.close()

    def processes(self) -> Sequence[int]:
        """Those of its connection."""
        with self._lock:
            return self._open[0].processes() if self._open is not None else ()

    def _frames(self) -> Iterator[Frame]:
        """The frames of one connection."""
        options = self._options
        while self._abandoned() >= MAX_ABANDONED:
            if self._closed.wait(0.1):
                return
        with self._lock:
            if self._closed.is_set():
                return
            connection = self._connect()
            reader = Prefetch(read_by(connection, self.telemetry), 1, name="live", join_s=_JOIN_S)
            self._open = connection, reader
        self._clock.restart()
        started_s = sign_s = frame_s = time.monotonic()
        frames, silence_s = 0, options.connect_s
        try:
            while True:
                now_s = time.monotonic()
                wait_s = sign_s + silence_s - now_s
                if wait_s <= 0:
                    raise LostError(f"nothing came for {silence_s:g} s")
                if self.telemetry.state is State.RUNNING:
                    if now_s >= frame_s + options.stall_s:
                        self._enter(State.STALLED, f"no frame for {options.stall_s:g} s")
                    else:
                        wait_s = min(wait_s, frame_s + options.stall_s - now_s)
                try:
                    picture = reader.within(wait_s)
                except queue.Empty:
                    continue
                except SourceError as error:
                    if not self._index and time.monotonic() - self._start_s >= options.refused_s:
                        raise
                    raise LostError(str(error).removeprefix(f"{self.info.name}: ")) from error
                if picture is None:
                    if self._closed.is_set():
                        return
                    raise LostError("the stream ended")
                silence_s = options.read_s
                frame = self._frame(picture)
                if frame is not None:
                    started_s = started_s if frames else time.monotonic()
                    frames += 1
                    self._enter(State.RUNNING)
                    yield frame
                    frame_s = time.monotonic()  # the time that the consumer took is not the source's
                    if frame_s - started_s >= options.steady_s:
                        self._attempts = 0
                sign_s = time.monotonic()
        finally:
            with self._lock:
                left, self._open = self._open, None
            self._leave(left)

    def _frame(self, picture: Picture) -> Frame | None:
        dropped = picture.corrupt and (self._options.on_corrupt == "drop" or picture.pixels is None)
        if picture.pixels is None and not dropped:
            return None  # a sign of life
        index = self._index
        self._index += 1
        if dropped or picture.pixels is None:
            self.telemetry.came_in()
            self.telemetry.drop(CORRUPT)
            return None
        pts_s = self._clock(picture.captured_ns, picture.pts_s)
        name = f"{self._stem}_{index:06d}"
        return Frame(
            picture.pixels,
            index,
            pts_s,
            self.info.name,
            name,
            picture.format,
            picture.captured_ns,
            sample_aspect=picture.sample_aspect,
            device=picture.device,
        )

    def _back_off(self, problem: str) -> None:
        """Wait before the next attempt, a random time so that a hundred boxes do not come back in step."""
        options = self._options
        self._attempts += 1
        if options.max_reconnects is not None and self._attempts > options.max_reconnects:
            raise SourceError(f"{self.info.name}: {problem}; gave up after {options.max_reconnects} reconnections")
        self._enter(State.RECONNECTING, problem)
        ceiling_s = min(options.backoff_max_s, options.backoff_s * 2.0 ** min(self._attempts - 1, 30))
        self._closed.wait(random.uniform(0, ceiling_s))

    def _enter(self, state: State, problem: str = "") -> None:
        with self._lock:
            before = self.telemetry.state
            if self._closed.is_set() and state is not State.FAILED:
                return
            self.telemetry.enter(state, problem)
        if state is before or state is State.FAILED:  # a failure is raised
            return
        if state is State.RECONNECTING and before is not State.RECONNECTING:
            self._lost_s = time.monotonic()
        again = f" again after {time.monotonic() - self._lost_s:.1f} s" if before is State.RECONNECTING else ""
        log.info(f"{self.info.name}: {state.value}{again}{f': {problem}' if problem else ''}")

    def _leave(self, opened: tuple[Connection, Prefetch[Picture]] | None) -> None:
        if opened is None:
            return
        connection, reader = opened
        connection.cancel()
        reader.close()
        self._left.append(reader)

    def _abandoned(self) -> int:
        self._left = [reader for reader in self._left if not reader.ready()]  # closed: ready once its thread has ended
        return len(self._left)


class StreamClock:
    """Presentation times that strictly increase over all connections.

    Inside a connection the peer's time stamps pace the frames, since they are free of the network's jitter; the time of arrival
    holds them: it corrects their drift, and takes over where they are missing, jump, fall behind or run ahead, and after a
    reconnection. A clock that does so again and again is not asked any more.
    """

    _JUMP_S = 1.0
    # So often in one connection the stamps may leave the time of arrival by more than a jump; then their clock is wrong.
    _STRIKES = 3
    _GAIN = 0.02
    _LEAST_S = 0.001

    def __init__(self) -> None:
        self._start_ns = 0
        self._last_s: float | None = None
        self._stamp_s: float | None = None
        self._strikes = 0
        self._before_ns = 0

    def restart(self) -> None:
        """Another connection: its stamps have nothing to do with those before."""
        self._stamp_s = None
        self._strikes = 0

    def __call__(self, captured_ns: int, stamp_s: float | None) -> float:
        """The time of a frame in seconds from the first one's; for each frame once, in order."""
        before_s, self._stamp_s = self._stamp_s, stamp_s
        before_ns, self._before_ns = self._before_ns, captured_ns
        if self._last_s is None:
            self._start_ns = captured_ns
            self._last_s = 0.0
            return 0.0
        arrival_s = (captured_ns - self._start_ns) / 1e9
        pts_s = arrival_s
        if before_s is not None and stamp_s is not None:
            is_trusted = self._strikes < self._STRIKES
            step_s = stamp_s - before_s if is_trusted else (captured_ns - before_ns) / 1e9
            late_s = arrival_s - self._last_s - step_s
            if is_trusted and abs(late_s) >= self._JUMP_S:
                self._strikes += 1
            elif 0 < step_s < self._JUMP_S:
                pts_s = self._last_s + step_s + max(-step_s / 2, min(step_s / 2, self._GAIN * late_s))
        self._last_s = max(pts_s, self._last_s + self._LEAST_S)
        return self._last_s


class LifeSigns:
    """Tells a connection when to say that data comes although no picture does yet: before the first key frame."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Whether the last sign was long enough ago; then it counts as given."""
        now_s = time.monotonic()
        if now_s - self._last_s < _LIFE_EVERY_S:
            return False
        self._last_s = now_s
        return True
