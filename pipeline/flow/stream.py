"""Frames with masks for a program that does the rest itself: decode ─ thread ─ engine ─ thread ─ the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice

from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.flow.run import DEPTH, counted, infer
from pipeline.flow.take_turns import TakeTurns
from pipeline.frames.frame import Frame
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import NEWER


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
    drops = [source.info.live if drop_oldest is None else drop_oldest for source in sources]
    changed = threading.Condition()
    queues: list[Prefetch[Frame]] = []

    def stop_reading() -> None:
        for source in sources:
            if source.info.live:
                source.close()
        for queue in queues:
            queue.close()

    with ExitStack() as ending:
        ending.callback(engine.drain)
        ending.callback(stop_reading)
        for source, drop in zip(sources, drops, strict=True):
            source.pixels = engine.pixels
            ending.callback(source.telemetry.stop)
            queues.append(
                Prefetch(
                    counted(islice(source, max_frames), source.telemetry, source.info.live),
                    1 if drop else DEPTH,
                    drop_oldest=drop,
                    dropped=partial(source.telemetry.drop, NEWER),
                    changed=changed,
                    name="decode",
                )
            )
        turns = TakeTurns(queues)
        more = turns.ready if any(drops) or len(sources) > 1 else (lambda: True)
        masked = ending.enter_context(
            Prefetch(infer(turns, engine, StageTimer(), more), 1 if any(drops) else DEPTH, name="engine", join_s=None)
        )
        ending.callback(stop_reading)  # before the engine's thread, which ends when its frames do
        yield from masked
