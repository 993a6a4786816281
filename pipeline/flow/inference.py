"""Frames through an engine: as many together and in flight as it can hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ServerAwayError
from pipeline.frames.frame import Frame, Image
from pipeline.frames.on_device import FramesOnDevice, OnDevice
from pipeline.masks.memory import Memories
from pipeline.stages.stage_timer import StageTimer

if TYPE_CHECKING:
    from pipeline.engines.base import Engine

Looks = Callable[[], "NDArray[np.float32] | None"]
"""Asked for the look of each submission (``pipeline.render.compose``); gives None where the engine is to give masks alone."""


def infer(
    frames: Iterable[Frame],
    engine: Engine,
    timer: StageTimer,
    more: Callable[[], bool] = lambda: True,
    looks: Looks | None = None,
    computed: Callable[[Frame], None] = lambda _: None,
) -> Iterator[Frame]:
    """Add its mask to each frame, and its view where the engine draws it, with as many frames in flight as the engine can hold.

    Args:
        frames: in order.
        engine: frames to masks; it gets frames of one size together, as many as it takes at once.
        timer: gets the time that submitting and collecting took, per frame: the mean of as many submissions as are in flight, for of
            two that are computed at once one is waited for, and the other is there then.
        more: whether the next frame is there; where it is not, no mask waits for it, as a camera's next frame may take long.
        looks: those in which the engine draws views; None: masks alone.
        computed: told of each frame that has its mask; not of one that no server has computed.
    """
    memories = Memories(engine)
    waiting: deque[tuple[list[Frame], float]] = deque()
    lately_ms: deque[float] = deque(maxlen=engine.in_flight)

    def finish() -> Iterator[Frame]:
        group, submit_ms = waiting.popleft()
        start_ns = time.perf_counter_ns()
        try:
            masks_nhw, drawn, not_finite = engine.collect_all()
        except ServerAwayError:  # the picture goes on, and says that the mask is not its own
            yield from (unmasked(frame) for frame in group)
            return
        lately_ms.append((submit_ms + (time.perf_counter_ns() - start_ns) / 1e6) / len(group))
        views: Iterable[Image | OnDevice | None] = repeat(None, len(group)) if drawn is None else drawn
        counts = repeat(0, len(group)) if not_finite is None else map(int, not_finite)
        for frame, mask, view, count in zip(group, masks_nhw, views, counts, strict=True):
            frame.mask, frame.not_finite = mask, count
            frame.take_view(view)
            timer.add("engine", sum(lately_ms) / len(lately_ms))
            computed(frame)
            yield frame

    try:
        for group in grouped(frames, engine, more):
            start_ns = time.perf_counter_ns()
            engine.submit(
                together(group, engine),
                None if looks is None else looks(),
                memories.of(group[0]),  # who keeps state takes one frame at a time
            )
            waiting.append((group, (time.perf_counter_ns() - start_ns) / 1e6))
            while waiting and (len(waiting) >= engine.in_flight or not more()):
                yield from finish()
    except Exception:
        while waiting:  # an error comes after the frames before it
            yield from finish()
        raise
    while waiting:
        yield from finish()


def together(group: Sequence[Frame], engine: Engine) -> NDArray[np.uint8] | FramesOnDevice:
    """Frames of one size as an engine takes them: on the GPU where all of them lie there and it takes them from there."""
    there = [frame.device for frame in group if frame.device is not None]
    if len(there) == len(group) and engine.takes_device:
        return FramesOnDevice(tuple(there))
    pictures = [frame.as_pixels(engine.pixels) for frame in group]
    return pictures[0][None] if len(group) == 1 else np.stack(pictures)


def unmasked(frame: Frame) -> Frame:
    """A frame with an empty mask that is marked, for nobody computed one."""
    frame.mask, frame.stale = np.zeros(frame.size_hw, np.uint8), True
    return frame


def grouped(frames: Iterable[Frame], engine: Engine, more: Callable[[], bool]) -> Iterator[list[Frame]]:
    """Successive frames of one size, as many together as the engine takes, as long as the next one is there.

    The engine may become another one when the first frame of a group is there, and is the same then until the group is submitted.
    """
    group: list[Frame] = []
    try:
        for frame in frames:
            if group and frame.size_hw != group[0].size_hw:
                yield group
                group = []
            if not group:
                engine.renew()
            group.append(frame)
            if len(group) == engine.batch or not more():
                yield group
                group = []
    except Exception:
        if group:  # an error comes after the frames before it
            yield group
        raise
    if group:
        yield group
