"""The data path, on one screen: decode ─ thread ─ engine ─ thread ─ render, write."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.errors import EngineHungError, SinkError, SourceError
from pipeline.flow.events import Events
from pipeline.flow.reading import Reading
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame
from pipeline.quick_dataclass import dataclass
from pipeline.signals import StoppedError
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTime

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sinks.base import Sink

# How often outputs and the watchdog are looked after while no frame comes.
IDLE_S = 0.1
# How often an output that has failed is asked whether it can go on.
AGAIN_S = 5.0
# How long the end of a run waits for the engine after a signal. Who sends one waits ten seconds for the process.
HUNG_S = 6.0
_MOST_ERRORS = 100


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did.

    Attributes:
        frames: written frames; ``frames + dropped`` were read, unless the run was ended before its sources.
        dropped: frames that a newer one replaced before the engine took them.
        stages: time per frame of each stage, in the order of the data path; they overlap, so they add up to more than
            the time of a frame.
        lost: outputs and sources that failed while others went on.
    """

    frames: int
    dropped: int
    stages: list[StageTime]
    lost: tuple[SinkError | SourceError, ...] = ()


def run(
    source: Source | Sequence[Source],
    engine: Engine,
    views: Views,
    sinks: Sequence[Sink],
    *,
    events: Events | None = None,
    drop_oldest: bool | None = None,
    max_frames: int | None = None,
) -> RunResult:
    """Bring every frame of a source through the engine to all sinks.

    Sinks are written on the caller's thread (windows need the main one) and are neither closed nor discarded here, but for one
    that fails while a live source and other sinks go on: it is closed, or asked from time to time whether it can go on.

    Args:
        source: where frames come from; read on a thread of its own. Several share the engine in turn; the names in their ``info``
            must differ. What has become of their frames is in their telemetry.
        engine: frames to masks; runs on a thread of its own.
        views: what is done with a frame before, in and after the engine, up to its view.
        sinks: every one gets every frame; the run ends when one says that it was stopped.
        events: told of what happens; None: nobody is.
        drop_oldest: give the engine the newest frame and drop older ones; None: for live sources.
        max_frames: end a source after so many frames.

    Raises:
        EdgemaskError: from the source, the engine or a sink, after the frames before it were written.
        EngineHungError: a signal came, raised by ``events``, and the engine does not come back; it must not be closed.
    """
    sources = [source] if isinstance(source, Source) else list(source)
    events = events or Events()
    losses = _Losses(events)
    reading = Reading(sources, engine.pixels, drop_oldest)
    with ExitStack() as ending:
        ending.enter_context(reading)
        turns = reading.start(max_frames, events.timer, losses)
        masked = Prefetch(
            views.masked(turns, engine, events.timer, reading.more, events.computed),
            reading.depth,
            name="engine",
            join_s=None,
        )
        ending.push(_Ending(masked, events))
        ending.callback(reading.stop)  # before the engine's thread, which ends when its frames do
        writing = _Writing(sinks, losses, is_live=any(one.info.live for one in sources))
        events.begun(Lineup(reading, writing))
        frames = 0
        for frame in writing.until_stopped(masked, events):
            with events.timer("render"):
                views.finish(frame, events.timer)
            with events.timer("write"):
                writing.write(frame)
            reading.telemetry(frame).went_out(frame.age_ms, stale=frame.stale, not_finite=frame.not_finite > 0)
            frames += 1
            events.written(frame, reading.dropped)
    return RunResult(frames, reading.dropped, events.timer.result(), tuple(losses.errors))


class Lineup:
    """The sources and outputs of a run, which may become others while it goes on."""

    def __init__(self, reading: Reading, writing: _Writing) -> None:
        self._reading, self._writing = reading, writing

    def hold(self, *, on: bool) -> None:
        """Go on when all sources have ended, for another will join, or no more; from any thread."""
        self._reading.hold(on=on)

    def join(self, source: Source, sinks: Sequence[Sink]) -> None:
        """Read one more source, whose name differs, and write its frames to these outputs too; on the run's thread."""
        self._writing.add(sinks, is_live=source.info.live)
        self._reading.join(source)

    def leave(self, source: Source) -> None:
        """Read a source no further: the frames of it that are on their way to the engine or beyond are still written.

        From any thread; may wait for a live source to be closed.
        """
        self._reading.leave(source)

    def has_left(self, source: Source) -> bool:
        """Whether the last of those frames is written; from any thread."""
        return self._reading.has_left(source)

    def forget(self, source: Source, sinks: Sequence[Sink]) -> None:
        """Write no more to the outputs of a source that has left; on the run's thread, who ends them."""
        self._writing.remove(sinks)
        self._reading.forget(source)


class _Ending:
    """Ends the engine's thread at the end of a run.

    It is waited for: native code that still runs when the process ends may abort it, and what it uses must not be closed. But not
    after a signal, where it may be a GPU that is lost.
    """

    def __init__(self, masked: Prefetch[Frame], events: Events) -> None:
        self._masked, self._events = masked, events

    def __call__(self, _: object, error: BaseException | None, __: object) -> None:
        stopped = error if isinstance(error, StoppedError) else None
        try:
            while stopped is None and not self._masked.stop(IDLE_S):
                self._events.pulse()
        except StoppedError as late:
            stopped = late
        if stopped is not None and not self._masked.stop(HUNG_S):
            raise EngineHungError(
                f"engine: expected the masks in flight within {HUNG_S:g} s of a signal, got none"
            ) from stopped


class _Losses:
    """Call it with what failed while others go on."""

    def __init__(self, events: Events) -> None:
        self.errors: list[SinkError | SourceError] = []
        self._events = events

    def __call__(self, error: SinkError | SourceError) -> None:
        self._events.lost(error)
        if len(self.errors) < _MOST_ERRORS:  # a disk may be full a thousand times
            self.errors.append(_without_frames(error))


def _without_frames(error: SinkError | SourceError) -> SinkError | SourceError:
    """An error that may be kept for months: its traceback, and those of its causes, would keep a picture each."""
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


class _Writing:
    """The sinks that take frames. A recording whose disk is full must not end what others see, and goes on when there is room."""

    def __init__(self, sinks: Sequence[Sink], lost: Callable[[SinkError], None], *, is_live: bool) -> None:
        self._left = list(sinks)
        self._aside: list[Sink] = []
        self._lost = lost
        self._is_live = is_live
        self._again_due_s = 0.0

    def add(self, sinks: Sequence[Sink], *, is_live: bool) -> None:
        """Write to these too; the source whose frames they take may be live."""
        self._left += sinks
        self._is_live = self._is_live or is_live

    def remove(self, sinks: Sequence[Sink]) -> None:
        """Write no more to these."""
        for there in (self._left, self._aside):
            there[:] = [sink for sink in there if sink not in sinks]

    def until_stopped(self, frames: Prefetch[Frame], events: Events) -> Iterator[Frame]:
        """Frames until there are no more or a sink says that it was stopped; sinks and events are looked after meanwhile."""
        while True:
            try:
                frame = frames.within(IDLE_S)
            except queue.Empty:
                for sink in self._left:
                    sink.idle()
            else:
                if frame is None:
                    return
                yield frame
            events.pulse()
            self._try_again()
            if any(sink.stopped for sink in self._left):
                return

    def write(self, frame: Frame) -> None:
        """Write a frame to all of them."""
        for sink in list(self._left):
            try:
                sink.write(frame)
            except SinkError as error:
                if not self._is_live or not (sink.comes_back or len(self._left) > 1 or sink.written):
                    raise
                self._left.remove(sink)
                sink.failed = str(error)
                self._lost(error)
                if sink.comes_back:
                    self._aside.append(sink)
                    self._again_due_s = time.monotonic() + AGAIN_S
                    continue
                with contextlib.suppress(SinkError):
                    sink.close()
                if not self._left and not self._aside:
                    raise

    def _try_again(self) -> None:
        if not self._aside or time.monotonic() < self._again_due_s:
            return
        self._again_due_s = time.monotonic() + AGAIN_S
        for sink in list(self._aside):
            if sink.again():
                sink.failed = ""
                self._aside.remove(sink)
                self._left.append(sink)
