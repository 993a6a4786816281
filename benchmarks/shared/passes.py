"""What benchmarks of the pipeline run: an engine alone, and all of the pipeline to nowhere, each timed over so many frames."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from pipeline.engines.base import Engine
from pipeline.errors import SourceError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, Image
from pipeline.frames.pixels import Pixels
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTime

# Frames that lie in memory for an engine alone.
MOST_IN_MEMORY = 48


class Repeated(Source):
    """A video over and over, decoded anew each time, up to so many frames."""

    def __init__(self, spec: str, count: int) -> None:
        with open_source(spec) as source:
            self.info = replace(source.info, frame_count=count)
        self._spec = spec
        self._count = count

    def __iter__(self) -> Iterator[Frame]:
        left = self._count
        while left > 0:
            before = left
            with open_source(self._spec) as source:
                source.pixels = self.pixels
                for frame in islice(source, left):
                    yield frame
                    left -= 1
            if left == before:
                raise SourceError(f"{self._spec}: expected frames, got none")


def read_images(spec: str, pixels: Pixels, count: int = MOST_IN_MEMORY) -> list[Image]:
    """The first frames of a source as an engine takes them, at most so many.

    Raises:
        EdgemaskError: it cannot be read or has none.
    """
    with open_source(spec) as source:
        source.pixels = pixels
        images = [frame.as_pixels(pixels) for frame in islice(source, count)]
    if not images:
        raise SourceError(f"{spec}: expected frames, got none")
    return images


def alone_hz(engine: Engine, images: Sequence[Image], count: int) -> float:
    """Frames per second of the engine with frames that lie in memory, as many in flight as it takes."""
    start_s = time.perf_counter()
    submitted = 0
    for index in range(count):
        engine.submit(images[index % len(images)][None])
        submitted += 1
        if submitted == engine.in_flight:
            engine.collect()
            submitted -= 1
    for _ in range(submitted):
        engine.collect()
    return count / (time.perf_counter() - start_s)


class Pass(NamedTuple):
    """What a pass through the whole pipeline took.

    Attributes:
        hz: frames per second, to the last file closed.
        stages: the time of each.
        frames: how many.
    """

    hz: float
    stages: list[StageTime]
    frames: int


def pipeline_pass(engine: Engine, source: Source, count: int | None = None, output: str = "null") -> Pass:
    """The same from a source to an output, decoded and rendered.

    Args:
        engine: frames to masks.
        source: where frames come from; not closed here.
        count: at most so many frames; None: all of them.
        output: as the command takes it; nowhere by default.
    """
    leave_cores_to(engine)  # as the command does
    renderer = Renderer(Look(), engine.bundle.manifest.task)
    sink = open_sink(output, source.info, renderer)
    start_s = time.perf_counter()
    try:
        result = run(source, engine, Views(renderer), [sink], max_frames=count)
        sink.close()
    except BaseException:
        sink.discard()
        raise
    return Pass(result.frames / (time.perf_counter() - start_s), result.stages, result.frames)
