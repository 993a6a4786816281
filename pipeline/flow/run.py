"""The data path, on one screen: decode ─ thread ─ engine ─ thread ─ render, write."""

from __future__ import annotations

import contextlib
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SinkError, SourceError
from pipeline.flow.take_turns import TakeTurns
from pipeline.frames.frame import Frame, Image
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTime, StageTimer
from pipeline.stages.telemetry import NEWER, State, Telemetry

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sinks.base import Sink

# Frames that may wait between two stages: enough to even out their jitter, few enough to keep memory and age small.
DEPTH = 2
# How often outputs and the watchdog are looked after while no frame comes.
IDLE_S = 0.1


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
    render: Callable[[Image, Image], Image],
    sinks: Sequence[Sink],
    *,
    composed: Callable[[], NDArray[np.float32] | None] | None = None,
    masks: Callable[[Iterable[Frame], Engine, StageTimer], Iterator[Frame]] | None = None,
    refine: Callable[[Frame], None] | None = None,
    decorate: Callable[[Frame, StageTimer], None] | None = None,
    progress: Callable[[Frame, int], None] | None = None,
    pulse: Callable[[], None] = lambda: None,
    lost: Callable[[SinkError | SourceError], None] = lambda _: None,
    timer: StageTimer | None = None,
    drop_oldest: bool | None = None,
    max_frames: int | None = None,
) -> RunResult:
    """Bring every frame of a source through the engine to all sinks.

    Sinks are written on the caller's thread (windows need the main one) and are neither closed nor discarded here, but for one
    that fails while a live source and other sinks go on: it is closed.

    Args:
        source: where frames come from; read on a thread of its own. Several share the engine in turn; the names in their ``info``
            must differ. What has become of their frames is in their telemetry.
        engine: frames to masks; runs on a thread of its own.
        render: (image, mask) to the view.
        sinks: every one gets every frame; the run ends when one says that it was stopped.
        composed: asked for the look of each submission (``pipeline.render.compose``), whose views the engine draws; where it gives
            None, or is None, and where ``refine`` gives a frame another mask, ``render`` draws.
        masks: adds its mask to each frame in place of ``infer``, such as ``Governor.masked``.
        refine: gives a frame another mask before it is rendered; never writes to the one that is there.
        decorate: draws onto the finished view.
        progress: told of each written frame and of the number dropped so far.
        pulse: called after each frame, and a few times a second while none comes.
        lost: told of an output or a source that failed while others go on.
        timer: gets the time of each stage; None: one of its own.
        drop_oldest: give the engine the newest frame and drop older ones; None: for live sources.
        max_frames: end a source after so many frames.

    Raises:
        EdgemaskError: from the source, the engine or a sink, after the frames before it were written.
    """
    sources = [source] if isinstance(source, Source) else list(source)
    for one in sources:
        one.pixels = engine.pixels
    timer = timer or StageTimer()
    failed: list[SinkError | SourceError] = []
    frames = 0

    def give_up(error: SinkError | SourceError) -> None:
        failed.append(error)
        lost(error)

    drops = [one.info.live if drop_oldest is None else drop_oldest for one in sources]
    telemetries = {one.info.name: one.telemetry for one in sources}
    queues: list[Prefetch[Frame]] = []

    def stop_reading() -> None:
        for one in sources:
            if one.info.live:  # may hang in a read, which this ends
                one.close()
        for waiting in queues:
            waiting.close()

    with ExitStack() as ending:
        for telemetry in telemetries.values():
            ending.callback(telemetry.stop)
        ending.callback(stop_reading)
        changed = threading.Condition()
        for one, drop in zip(sources, drops, strict=True):
            items = timed(counted(islice(one, max_frames), one.telemetry, one.info.live), timer, "decode")
            depth = 1 if drop else DEPTH  # one: the newest
            tell = _dropper(one.telemetry)
            queues.append(Prefetch(items, depth, drop_oldest=drop, dropped=tell, changed=changed, name="decode"))
        turns = TakeTurns(queues, give_up)
        more = turns.ready if any(drops) or len(sources) > 1 else (lambda: True)
        depth = 1 if any(drops) else DEPTH
        with_masks = infer(turns, engine, timer, more, composed) if masks is None else masks(turns, engine, timer)
        masked = Prefetch(with_masks, depth, name="engine", join_s=None)
        ending.enter_context(masked)
        ending.callback(stop_reading)  # before the engine's thread, which ends when its frames do
        left = list(sinks)
        while True:
            try:
                frame = masked.within(IDLE_S)
            except queue.Empty:
                for sink in left:
                    sink.idle()
                pulse()
                if any(sink.stopped for sink in left):
                    break
                continue
            if frame is None:
                break
            telemetry = telemetries.get(frame.source, sources[0].telemetry)
            with timer("render"):
                drawn_from = frame.mask
                if refine is not None:
                    refine(frame)
                assert frame.mask is not None
                if frame.view is None or frame.mask is not drawn_from:
                    frame.view = render(frame.image, frame.mask)
                if decorate is not None:
                    decorate(frame, timer)
            with timer("write"):
                left = _write(frame, left, give_up, any(one.info.live for one in sources))
            telemetry.went_out(frame.age_ms, stale=frame.stale, not_finite=frame.not_finite > 0)
            frames += 1
            if progress is not None:
                progress(frame, sum(one.dropped for one in queues))
            pulse()
            if any(sink.stopped for sink in left):
                break
    return RunResult(frames, sum(one.dropped for one in queues), timer.result(), tuple(failed))


def _write(frame: Frame, sinks: list[Sink], lost: Callable[[SinkError], None], live: bool) -> list[Sink]:
    """Write a frame; gives the sinks that are left. A recording whose disk is full must not end what others see."""
    left = list(sinks)
    for sink in sinks:
        try:
            sink.write(frame)
        except SinkError as error:
            if not live or len(left) == 1:
                raise
            left.remove(sink)
            lost(error)
            with contextlib.suppress(SinkError):
                sink.close()
    return left


def infer(
    frames: Iterable[Frame],
    engine: Engine,
    timer: StageTimer,
    more: Callable[[], bool] = lambda: True,
    composed: Callable[[], NDArray[np.float32] | None] | None = None,
) -> Iterator[Frame]:
    """Add its mask to each frame, and its view where the engine draws it, with as many frames in flight as the engine can hold.

    Args:
        frames: in order.
        engine: frames to masks; it gets frames of one size together, as many as it takes at once.
        timer: gets the time that submitting and collecting took, per frame: the mean of as many submissions as are in flight, for of
            two that are computed at once one is waited for, and the other is there then.
        more: whether the next frame is there; where it is not, no mask waits for it, as a camera's next frame may take long.
        composed: gives the look of each submission, or None for masks alone.
    """
    waiting: deque[tuple[list[Frame], float]] = deque()
    lately_ms: deque[float] = deque(maxlen=engine.in_flight)

    def finish() -> Iterator[Frame]:
        group, submit_ms = waiting.popleft()
        start_ns = time.perf_counter_ns()
        masks_nhw, views_nhwc, not_finite = engine.collect_all()
        lately_ms.append((submit_ms + (time.perf_counter_ns() - start_ns) / 1e6) / len(group))
        views: Iterable[Image | None] = repeat(None, len(group)) if views_nhwc is None else views_nhwc
        counts = repeat(0, len(group)) if not_finite is None else map(int, not_finite)
        for frame, mask, view, count in zip(group, masks_nhw, views, counts, strict=True):
            frame.mask, frame.view, frame.not_finite = mask, view, count
            timer.add("engine", statistics.fmean(lately_ms))
            yield frame

    try:
        for group in grouped(frames, engine.batch, more):
            start_ns = time.perf_counter_ns()
            pictures = [frame.as_pixels(engine.pixels) for frame in group]
            engine.submit(
                pictures[0][None] if len(group) == 1 else np.stack(pictures), None if composed is None else composed()
            )
            waiting.append((group, (time.perf_counter_ns() - start_ns) / 1e6))
            while waiting and (len(waiting) == engine.in_flight or not more()):
                yield from finish()
    except Exception:
        while waiting:  # an error comes after the frames before it
            yield from finish()
        raise
    while waiting:
        yield from finish()


def grouped(frames: Iterable[Frame], most: int, more: Callable[[], bool]) -> Iterator[list[Frame]]:
    """Successive frames of one size, up to ``most`` together, as long as the next one is there."""
    group: list[Frame] = []
    try:
        for frame in frames:
            if group and frame.size_hw != group[0].size_hw:
                yield group
                group = []
            group.append(frame)
            if len(group) == most or not more():
                yield group
                group = []
    except Exception:
        if group:  # an error comes after the frames before it
            yield group
        raise
    if group:
        yield group


def timed(frames: Iterable[Frame], timer: StageTimer, stage: str) -> Iterator[Frame]:
    """Pass frames on and time how long each took to come."""
    iterator = iter(frames)
    while True:
        with timer(stage):
            frame = next(iterator, None)
        if frame is None:
            return
        yield frame


def counted(frames: Iterable[Frame], telemetry: Telemetry, live: bool) -> Iterator[Frame]:
    """Pass frames on and count them; a source that is not live has ended with its last one."""
    for frame in frames:
        telemetry.came_in()
        yield frame
    if not live:
        telemetry.enter(State.ENDED)


def _dropper(telemetry: Telemetry) -> Callable[[], None]:
    return lambda: telemetry.drop(NEWER)
