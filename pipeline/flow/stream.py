"""Frames with masks for a program that does the rest itself: decode ─ thread ─ engine ─ thread ─ the caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.flow.inference import infer
from pipeline.flow.reading import Reading
from pipeline.frames.frame import Frame
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer


def masked_frames(
    sources: Sequence[Source], engine: Engine, *, max_frames: int | None = None, drop_oldest: bool | None = None
) -> Iterator[Frame]:
    """Every frame of some sources with its mask.

    Args:
        sources: each read on a thread of its own; they share the engine in turn. A live one is closed at the end, whose read may hang
            otherwise.
        engine: runs on a thread of its own; nothing is in flight in it at the end.
        max_frames: end a source after so many.
        drop_oldest: give the engine the newest frame and drop older ones; None: for live sources.

    Raises:
        OptionError: two sources have the same name, so that their frames could not be told apart.
        EdgemaskError: from the last source that was left or the engine, after the frames before it.
    """
    names = [source.info.name for source in sources]
    if len(set(names)) < len(names):
        raise OptionError(f"sources: expected names that differ, got {', '.join(names)}: open them with open_sources")
    timer = StageTimer()
    reading = Reading(sources, engine.pixels, drop_oldest)
    with ExitStack() as ending:
        ending.callback(engine.drain)
        ending.enter_context(reading)
        frames = infer(reading.start(max_frames, timer), engine, timer, reading.more)
        masked = ending.enter_context(Prefetch(frames, reading.depth, name="engine", join_s=None))
        ending.callback(reading.stop)  # before the engine's thread, which ends when its frames do
        yield from masked
