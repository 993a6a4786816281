"""Sources read ahead: what comes before the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from pipeline.errors import SourceError
from pipeline.flow.take_turns import TakeTurns
from pipeline.frames.frame import Frame
from pipeline.frames.pixels import Pixels
from pipeline.quick_dataclass import dataclass
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import NEWER, State, Telemetry, read_by

# Frames that may wait between two stages: enough to even out their jitter, few enough to keep memory and age small.
DEPTH = 2


class Reading:
    """The sources, each with a thread and a queue; use it in a ``with`` block, which ends them.

    Args:
        sources: their names differ. A live one is closed at the end, whose read may hang otherwise.
        pixels: what their frames should be.
        drop_oldest: of each keep the newest frame alone; None: of live ones.

    Attributes:
        depth: how many frames may wait after the engine.
    """

    def __init__(self, sources: Sequence[Source], pixels: Pixels, drop_oldest: bool | None) -> None:
        self._pixels, self._drop_oldest = pixels, drop_oldest
        # Replaced and not changed: the engine's thread reads it, and the run's changes it.
        self._first = sources[0].telemetry
        self._changed = threading.Condition()
        self._turns = TakeTurns((), self._changed)
        self._dropped = 0  # of those that have left
        self._now = [self._of(source) for source in sources]
        self.depth = 1 if any(one.drops for one in self._now) else DEPTH

    def _of(self, source: Source) -> _One:
        source.pixels = self._pixels
        return _One(source, source.info.live if self._drop_oldest is None else self._drop_oldest)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for one in self._now:
                one.source.telemetry.stop()

    def start(
        self, max_frames: int | None, timer: StageTimer, lost: Callable[[SourceError], None] = lambda _: None
    ) -> TakeTurns:
        """Begin to read.

        Args:
            max_frames: end a source after so many.
            timer: gets the time of "decode".
            lost: told of a source that has failed while others go on.

        Returns:
            The frames of all, in turn.
        """
        self._read = partial(self._ahead, max_frames=max_frames, timer=timer)
        self._turns = TakeTurns([self._read(one) for one in self._now], self._changed, lost)
        return self._turns

    def _ahead(self, one: _One, max_frames: int | None, timer: StageTimer) -> Prefetch[Frame]:
        items = timed(counted(one.source, max_frames), timer, "decode")
        depth = 1 if one.drops else DEPTH  # one: the newest
        tell = partial(one.source.telemetry.drop, NEWER)
        one.queue = Prefetch(items, depth, drop_oldest=one.drops, dropped=tell, changed=self._changed, name="decode")
        return one.queue

    def hold(self, *, on: bool) -> None:
        """The end of all sources is not the end of the frames, for another will join; from any thread."""
        with self._changed:
            self._turns.held = on
            self._changed.notify_all()

    def join(self, source: Source) -> None:
        """Read one more, whose name no other has; on the run's thread."""
        one = self._of(source)
        self._now = [*self._now, one]
        self._turns.add(self._read(one))

    def leave(self, source: Source) -> None:
        """Read a source no further; what the engine has got of it comes still. From any thread; a live one is closed."""
        one = self._one(source)
        if one is None or one.queue is None:
            return
        self._turns.remove(one.queue)
        one.queue.stop(0.0)
        if source.info.live:  # may hang in a read, which this ends
            source.close()

    def has_left(self, source: Source) -> bool:
        """Whether all frames of a source that leaves were written, and it is not read any more."""
        one = self._one(source)
        if one is None or one.queue is None:
            return True
        return one.queue.stop(0.0) and one.queue.given == source.telemetry.snapshot().frames_out

    def forget(self, source: Source) -> None:
        """A source that has left is none of these any more; on the run's thread."""
        one = self._one(source)
        if one is not None and one.queue is not None:
            self._dropped += one.queue.dropped
            self._now = [other for other in self._now if other is not one]
            source.telemetry.stop()

    def _one(self, source: Source) -> _One | None:
        return next((one for one in self._now if one.source is source), None)

    def more(self) -> bool:
        """Whether the next frame is there, so that no mask has to wait for it; a file alone is always taken to have it."""
        now = self._now
        if len(now) == 1 and not now[0].drops and not self._turns.held:
            return True
        return self._turns.ready()

    @property
    def dropped(self) -> int:
        """Frames that a newer one replaced."""
        return self._dropped + sum(one.queue.dropped for one in self._now if one.queue is not None)

    def telemetry(self, frame: Frame) -> Telemetry:
        """Of the source that a frame is from."""
        of_frame = (one.source.telemetry for one in self._now if one.source.info.name == frame.source)
        return next(of_frame, self._first)

    def stop(self) -> None:
        """End all threads; safe to call twice."""
        for one in self._now:
            if one.source.info.live:  # may hang in a read, which this ends
                one.source.close()
        for one in self._now:
            if one.queue is not None:
                one.queue.close()


@dataclass(slots=True)
class _One:
    """A source that is read; of one that drops the newest frame alone is kept."""

    source: Source
    drops: bool
    queue: Prefetch[Frame] | None = None


def timed(frames: Iterable[Frame], timer: StageTimer, stage: str) -> Iterator[Frame]:
    """Pass frames on and time how long each took to come."""
    iterator = iter(frames)
    while True:
        with timer(stage):
            frame = next(iterator, None)
        if frame is None:
            return
        yield frame


def counted(source: Source, max_frames: int | None) -> Iterator[Frame]:
    """A source's frames, counted; one that is not live has ended with its last one.

    Raises:
        SourceError: from the source, or it was given up.
    """
    telemetry = source.telemetry
    for frame in read_by(islice(source, max_frames), telemetry):
        telemetry.came_in(frame.size_bytes)
        yield frame
        if source.given_up:
            raise SourceError(source.given_up)
    if not source.info.live:
        telemetry.enter(State.ENDED)
