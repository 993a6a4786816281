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
        for one in sources:
            one.pixels = pixels
        self._sources = sources
        self._drops = [one.info.live if drop_oldest is None else drop_oldest for one in sources]
        self._telemetries = {one.info.name: one.telemetry for one in sources}
        self._queues: list[Prefetch[Frame]] = []
        self._turns: TakeTurns | None = None
        self.depth = 1 if any(self._drops) else DEPTH

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for one in self._sources:
                one.telemetry.stop()

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
        changed = threading.Condition()
        for one, drop in zip(self._sources, self._drops, strict=True):
            items = timed(counted(one, max_frames), timer, "decode")
            depth = 1 if drop else DEPTH  # one: the newest
            tell = partial(one.telemetry.drop, NEWER)
            self._queues.append(Prefetch(items, depth, drop_oldest=drop, dropped=tell, changed=changed, name="decode"))
        self._turns = TakeTurns(self._queues, lost)
        return self._turns

    def more(self) -> bool:
        """Whether the next frame is there, so that no mask has to wait for it; a file alone is always taken to have it."""
        if not any(self._drops) and len(self._sources) == 1:
            return True
        return self._turns is not None and self._turns.ready()

    @property
    def dropped(self) -> int:
        """Frames that a newer one replaced."""
        return sum(one.dropped for one in self._queues)

    def telemetry(self, frame: Frame) -> Telemetry:
        """Of the source that a frame is from."""
        return self._telemetries.get(frame.source, self._sources[0].telemetry)

    def stop(self) -> None:
        """End all threads; safe to call twice."""
        for one in self._sources:
            if one.info.live:  # may hang in a read, which this ends
                one.close()
        for waiting in self._queues:
            waiting.close()


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
        telemetry.came_in(frame.pixels.nbytes)
        yield frame
        if source.given_up:
            raise SourceError(source.given_up)
    if not source.info.live:
        telemetry.enter(State.ENDED)
