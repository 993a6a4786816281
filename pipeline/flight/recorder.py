"""Keeps the last seconds of a run in memory, and has them written when something happens."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bundles.bundle import MANIFEST_NAME, Bundle, file_sha256
from pipeline.flight.folder import FlightFolder
from pipeline.flight.recording import SCHEMA, Written, encoded, write_recording
from pipeline.flight.redacted import redacted
from pipeline.flight.signs import Signs
from pipeline.flight.versions import versions
from pipeline.flow.events import Events
from pipeline.frames.frame import Frame
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import Snapshot, State
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.flight.options import FlightOptions
    from pipeline.sources.base import Source

log = logger_of(__name__)

AFTER_S = 1.0
"""How much of what comes after an event is recorded with it."""

_ASKED_TEXTS = {
    "signal": "asked for by SIGUSR1",
    "page": "asked for on the page",
    "api": "asked for over HTTP",
}
"""Kinds of events that somebody asked for."""

_EVERY_S, _ASKED_EVERY_S = 60.0, 5.0
_AN_HOUR, _HOUR_S = 10, 3600.0
_LOOK_EVERY_S = 0.5
# What the end of a run waits for a recording. Then it ends with the frames that are in it.
_END_S = 5.0
# How long a recording waits for one that another process writes to the same folder.
_LOCK_S = 30.0
_LOW_PRIORITY = 15
_STATE_NOTE = "the network keeps state between frames, and the recording begins without it: its first frames need not be the same again"


@dataclass(frozen=True, slots=True)
class About:
    """What is written of the run beside what it does.

    Attributes:
        options: of the run, already without passwords.
        secrets: what must not be seen in any message.
        stall_s: a live source is silent from so many seconds on.
        memory_bytes: what frames may take, those that are being written too.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    stall_s: float = 3.0
    memory_bytes: int = 256_000_000


@dataclass(frozen=True, slots=True)
class _Kept:
    """A frame with its own mask, when it was computed, and by which bundle."""

    frame: Frame
    computed_ns: int
    bundle: Bundle

    @property
    def size_bytes(self) -> int:
        return self.frame.pixels.nbytes + (0 if self.frame.mask is None else self.frame.mask.nbytes)


@dataclass(slots=True)
class _Pending:
    """A recording that begins with an event, and takes up others until it is written."""

    kind: str
    due_s: float
    events: list[dict[str, Any]]
    kept: list[_Kept] = field(default_factory=list)
    telemetry: list[dict[str, Any]] = field(default_factory=list)


class FlightRecorder(Events):
    """Watches a run. What it costs a frame is a copy of its mask and a look at a small picture; files are written by a thread.

    Args:
        options: where recordings go, and how much is in them.
        engine: computes the masks; its bundle may change.
        sources: of the run.
        about: what is written of the run.
        timer: has the times of the stages.

    Raises:
        SinkError: the folder cannot be made or written.
    """

    def __init__(
        self, options: FlightOptions, engine: Engine, sources: Sequence[Source], about: About, timer: StageTimer
    ) -> None:
        super().__init__(timer)
        self._folder = FlightFolder(Path(options.folder), options.size_bytes)
        self._engine, self._sources, self._about = engine, sources, about
        self._window_ns = round((options.before_s + AFTER_S) * 1e9)
        self._most_bytes = about.memory_bytes // 2  # the other half is being written
        task = engine.bundle.manifest.task
        self._signs: defaultdict[str, Signs] = defaultdict(lambda: Signs(task))
        self._rings: defaultdict[str, deque[_Kept]] = defaultdict(deque)
        self._ring_bytes = 0
        self._telemetry: deque[tuple[float, list[dict[str, Any]]]] = deque()
        self._stalled: set[str] = set()
        self._look_due_s = 0.0
        self._last_s: dict[str, float] = {}
        self._times_s: deque[float] = deque()
        self._lock = threading.Lock()
        self._pending: _Pending | None = None
        self._is_writing = self._is_ending = False
        self._end_due_s = math.inf
        self._asked_by_signal = False
        self._last: tuple[str, float] | None = None
        self._count = len(self._folder.recordings())
        self._jobs: queue.Queue[_Pending | None] = queue.Queue()
        # Pictures are encoded on a thread of low priority that does nothing else: one that holds the interpreter while others have the
        # cores would hold them all up.
        self._encoder = ThreadPoolExecutor(1, "flight-encode", _lower_priority)
        # A disk may take long, and no frame waits for it.
        self._writer = Prefetch(self._write_all(), 1, drop_oldest=True, name="flight", join_s=None)

    def event(self, kind: str, text: str, source: str = "") -> str:
        """Have the last seconds written, with what comes within the next one; from any thread.

        Args:
            kind: what it is, letters and "-": "audit", "api" …
            text: one line for people.
            source: whose it is; empty: the run's.

        Returns:
            Why nothing is written: too soon after another of its kind; empty where something is.
        """
        now_s = time.monotonic()
        with self._lock:
            if self._is_ending:
                return "flight: the run is ending"
            if too_often := self._too_often(kind, now_s):
                return too_often
            if self._pending is None and self._is_writing:
                return "flight: the recording of an earlier event is still being written: try again in a while"
            self._last_s[kind] = now_s
            said = redacted({"kind": kind, "text": text, "source": source}, self._about.secrets)
            said["time"] = _utc()
            if self._pending is None:
                self._times_s.append(now_s)
                self._pending = _Pending(kind, now_s + AFTER_S, [])
            self._pending.events.append(said)
            self._last = (f"{kind}: {said['text']}", now_s)
        return ""

    def asked_by_signal(self, *_: object) -> None:
        """Have them written as soon as the run comes round; all that may be done in a signal's handler."""
        self._asked_by_signal = True

    def computed(self, frame: Frame) -> None:
        """Keep the frame and its mask, and look for signs that something is wrong."""
        assert frame.mask is not None
        kept = _Kept(
            replace(frame, mask=frame.mask.copy(), view=None, alpha=None, found=None),
            time.monotonic_ns(),
            self._engine.bundle,
        )
        with self._lock:
            self._keep(kept)
        for kind, text in self._signs[frame.source].of(kept.frame):
            self.event(kind, text, frame.source)
        self._begin_if_due()

    def pulse(self) -> None:
        """Look at the sources, and begin the recording whose time has come."""
        if self._asked_by_signal:
            self._asked_by_signal = False
            self.event("signal", _ASKED_TEXTS["signal"])
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + _LOOK_EVERY_S
            self._look(now_s)
        self._begin_if_due()

    def on_page(self) -> Mapping[str, Any]:
        """The recorder's state, and what has a recording written."""
        return {"flight": self.state, "take_flight": self._take}

    def state(self) -> dict[str, Any]:
        """How many recordings there are, and what the last event of this run was; from any thread."""
        last = self._last
        return {
            "files": self._count,
            "last": last[0] if last else "",
            "last_s": round(time.monotonic() - last[1], 1) if last else None,
        }

    def close(self) -> None:
        """Write what is to be written, and end; what takes longer than a few seconds ends with the frames that are in it."""
        with self._lock:
            self._is_ending = True
        self._begin_if_due(at_once=True)
        self._end_due_s = time.monotonic() + _END_S
        self._jobs.put(None)
        self._writer.stop(None)
        self._encoder.shutdown()

    def _take(self, kind: str) -> str:
        return self.event(kind, _ASKED_TEXTS[kind])

    def _too_often(self, kind: str, now_s: float) -> str:
        every_s = _ASKED_EVERY_S if kind in _ASKED_TEXTS else _EVERY_S
        since_s = now_s - self._last_s.get(kind, -every_s)
        if since_s < every_s:
            return f"flight: one was asked for {since_s:.0f} s ago: expected {every_s:.0f} s between two"
        while self._times_s and now_s - self._times_s[0] >= _HOUR_S:
            self._times_s.popleft()
        if kind not in _ASKED_TEXTS and len(self._times_s) >= _AN_HOUR:
            return f"flight: {_AN_HOUR} were recorded within an hour"
        return ""

    def _keep(self, kept: _Kept) -> None:
        ring = self._rings[kept.frame.source]
        ring.append(kept)
        self._ring_bytes += kept.size_bytes
        while kept.computed_ns - ring[0].computed_ns > self._window_ns:
            self._ring_bytes -= ring.popleft().size_bytes
        while self._ring_bytes > self._most_bytes:
            oldest = min((ring for ring in self._rings.values() if ring), key=lambda ring: ring[0].computed_ns)
            self._ring_bytes -= oldest.popleft().size_bytes

    def _look(self, now_s: float) -> None:
        """Look at the sources' telemetry: keep it, and tell of one that stalls."""
        snapshots = [source.telemetry.snapshot() for source in self._sources]
        rows = redacted([_row(snapshot) for snapshot in snapshots], self._about.secrets)
        self._telemetry.append((now_s, [{"time": _utc(), **row} for row in rows]))
        while (now_s - self._telemetry[0][0]) * 1e9 > self._window_ns:
            self._telemetry.popleft()
        for source, snapshot in zip(self._sources, snapshots, strict=True):
            problem = self._stall(snapshot) if source.info.live else ""
            if not problem:
                self._stalled.discard(snapshot.name)
            elif snapshot.name not in self._stalled:
                self._stalled.add(snapshot.name)
                self.event("stall", problem, snapshot.name)

    def _stall(self, snapshot: Snapshot) -> str:
        if snapshot.state in (State.STALLED, State.RECONNECTING):
            return f"{snapshot.state.value}{f': {snapshot.problem}' if snapshot.problem else ''}"
        silent_s = 0.0 if snapshot.frame_s is None else snapshot.frame_s
        is_silent = snapshot.state is State.RUNNING and silent_s > 2 * self._about.stall_s
        return f"running, and no frame for {silent_s:.1f} s" if is_silent else ""

    def _begin_if_due(self, *, at_once: bool = False) -> None:
        """Give the pending recording to the thread that writes it, with the frames that are there now."""
        with self._lock:
            pending = self._pending
            if pending is None or not (at_once or time.monotonic() >= pending.due_s):
                return
            self._pending, self._is_writing = None, True
            pending.kept = sorted(
                (kept for ring in self._rings.values() for kept in ring), key=lambda kept: kept.computed_ns
            )
            pending.telemetry = [row for _, rows in self._telemetry for row in rows]
        self._jobs.put(pending)

    def _write_all(self) -> Iterator[None]:
        """On a thread of its own: write one recording after another, and yield behind each."""
        while (pending := self._jobs.get()) is not None:
            try:
                self._write(pending)
            except OSError as error:
                log.warning(
                    f"flight: {self._folder.folder}: {pending.kind} was not recorded ({error.strerror}): "
                    "the folder must have room, and no other process may hold it"
                )
            except Exception:  # nobody waits for this thread, and a run goes on without it
                log.exception(f"flight: {pending.kind} was not recorded")
            pending.kept.clear()
            self._is_writing = False
            yield

    def _write(self, pending: _Pending) -> None:
        first = pending.events[0]
        lock_due_s = time.monotonic() + _LOCK_S

        def may_wait() -> bool:
            return time.monotonic() < min(lock_due_s, self._end_due_s)

        with self._folder.new(pending.kind, may_wait) as (place, file, make_room):
            written = self._write_into(file, pending, make_room)
        self._count = len(self._folder.recordings())
        of = f" of {first['source']}" if first["source"] else ""
        log.warning(
            f"flight: {place}: {pending.kind}{of}: {first['text']}; {written.frames} frames, {written.seconds:.1f} s, "
            f"{written.size_bytes / 1e6:.1f} MB"
        )

    def _write_into(self, file: Any, pending: _Pending, make_room: Callable[[int], bool]) -> Written:
        shas: dict[int, str] = {}
        bundles = {id(kept.bundle): kept.bundle for kept in pending.kept} or {0: self._engine.bundle}
        for key, bundle in bundles.items():
            shas[key] = _manifest_sha256(bundle)
        frames = [
            (
                replace(kept.frame, source=redacted(kept.frame.source, self._about.secrets)),
                {
                    "captured": _utc(kept.frame.captured_ns),
                    "computed_after_ms": round((kept.computed_ns - kept.frame.captured_ns) / 1e6, 3),
                    "bundle": shas[id(kept.bundle)],
                },
            )
            for kept in pending.kept
        ]
        pending.kept.clear()  # those that are written are free, one by one
        return write_recording(
            file,
            self._facts(pending, {shas[key]: bundle for key, bundle in bundles.items()}),
            frames,
            lambda size_bytes: time.monotonic() < self._end_due_s and make_room(size_bytes),
            lambda array, name: self._encoder.submit(encoded, array, name).result(),
        )

    def _facts(self, pending: _Pending, bundles: Mapping[str, Bundle]) -> dict[str, Any]:
        secrets, engine = self._about.secrets, self._engine
        return {
            "schema": SCHEMA,
            "created": _utc(),
            "events": pending.events,
            "versions": versions(),
            "engine": {"description": engine.description, "in_flight": engine.in_flight, "batch": engine.batch},
            "note": _STATE_NOTE if engine.keeps_state else "",
            "bundles": {
                sha256: redacted({"folder": bundle.folder, "manifest": bundle.manifest.as_dict()}, secrets)
                for sha256, bundle in bundles.items()
            },
            "options": self._about.options,
            "sources": [
                redacted({"name": source.info.name, "description": source.info.description}, secrets)
                for source in self._sources
            ],
            "telemetry": pending.telemetry,
            "stages": [asdict(stage) for stage in self.timer.result()],
        }


def _lower_priority() -> None:
    with contextlib.suppress(OSError):  # of this thread alone, on Linux
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)


def _row(snapshot: Snapshot) -> dict[str, Any]:
    return {**asdict(snapshot), "state": snapshot.state.value}


def _manifest_sha256(bundle: Bundle) -> str:
    try:
        return file_sha256(bundle.folder / MANIFEST_NAME)
    except OSError:  # it was taken away since it was read
        return ""


def _utc(at_ns: int | None = None) -> str:
    """A moment of ``time.monotonic_ns()``, or now, by the clock."""
    now_s = time.time()
    if at_ns is not None:
        now_s -= (time.monotonic_ns() - at_ns) / 1e9
    return f"{datetime.fromtimestamp(now_s, timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z"
