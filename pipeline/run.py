"""The data path, on one screen: decode ─ thread ─ engine ─ thread ─ render, write."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.frame import Frame, Image
from pipeline.prefetch import Prefetch
from pipeline.stage_timer import StageTime, StageTimer

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sinks.base import Sink
    from pipeline.sources.base import Source

# Frames that may wait between two stages: enough to even out their jitter, few enough to keep memory and age small.
DEPTH = 2


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did.

    Attributes:
        frames: written frames; ``frames + dropped`` were read.
        dropped: frames that a newer one replaced before the engine took them.
        stages: time per frame of each stage, in the order of the data path; they overlap, so they add up to more than
            the time of a frame.
    """

    frames: int
    dropped: int
    stages: list[StageTime]


def run(
    source: Source,
    engine: Engine,
    render: Callable[[Image, Image], Image],
    sinks: Sequence[Sink],
    *,
    decorate: Callable[[Frame, StageTimer], None] | None = None,
    progress: Callable[[Frame, int], None] | None = None,
    drop_oldest: bool | None = None,
    max_frames: int | None = None,
) -> RunResult:
    """Bring every frame of a source through the engine to all sinks.

    Sinks are written on the caller's thread (windows need the main one) and are neither closed nor discarded here.

    Args:
        source: where frames come from; read on a thread of its own.
        engine: frames to masks; runs on a thread of its own.
        render: (image, mask) to the view.
        sinks: every one gets every frame; the run ends when one says that it was stopped.
        decorate: draws onto the finished view.
        progress: told of each written frame and of the number dropped so far.
        drop_oldest: give the engine the newest frame and drop older ones; None: for live sources.
        max_frames: end after so many frames.

    Raises:
        EdgemaskError: from the source, the engine or a sink, after the frames before it were written.
    """
    timer = StageTimer()
    live = source.info.live if drop_oldest is None else drop_oldest
    frames = 0
    depth = 1 if live else DEPTH  # one: the newest
    decoded = Prefetch(timed(islice(source, max_frames), timer, "decode"), depth, drop_oldest=live, name="decode")
    more = decoded.ready if live else (lambda: True)
    masked = Prefetch(infer(decoded, engine, timer, more), depth, name="engine", join_s=None)
    with masked, decoded:  # left in reverse: the engine's thread ends when its frames do
        for frame in masked:
            with timer("render"):
                assert frame.mask is not None
                frame.view = render(frame.image, frame.mask)
                if decorate is not None:
                    decorate(frame, timer)
            with timer("write"):
                for sink in sinks:
                    sink.write(frame)
            frames += 1
            if progress is not None:
                progress(frame, decoded.dropped)
            if any(sink.stopped for sink in sinks):
                break
    return RunResult(frames, decoded.dropped, timer.result())


def infer(
    frames: Iterable[Frame], engine: Engine, timer: StageTimer, more: Callable[[], bool] = lambda: True
) -> Iterator[Frame]:
    """Add its mask to each frame, with as many frames in flight as the engine can hold.

    Args:
        frames: in order.
        engine: frames to masks.
        timer: gets the time that submitting and collecting took, per frame.
        more: whether the next frame is there; where it is not, no mask waits for it, as a camera's next frame may take long.
    """
    waiting: deque[tuple[Frame, float]] = deque()

    def finish() -> Frame:
        frame, submit_ms = waiting.popleft()
        start_ns = time.perf_counter_ns()
        frame.mask = engine.collect()[0]
        timer.add("engine", submit_ms + (time.perf_counter_ns() - start_ns) / 1e6)
        return frame

    try:
        for frame in frames:
            start_ns = time.perf_counter_ns()
            engine.submit(frame.image[None])
            waiting.append((frame, (time.perf_counter_ns() - start_ns) / 1e6))
            while waiting and (len(waiting) == engine.in_flight or not more()):
                yield finish()
    except Exception:
        while waiting:  # an error comes after the frames before it
            yield finish()
        raise
    while waiting:
        yield finish()


def timed(frames: Iterable[Frame], timer: StageTimer, stage: str) -> Iterator[Frame]:
    """Pass frames on and time how long each took to come."""
    iterator = iter(frames)
    while True:
        with timer(stage):
            frame = next(iterator, None)
        if frame is None:
            return
        yield frame
