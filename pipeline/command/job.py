"""One run of the command: sources, engine and outputs opened, run, and ended complete."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.command.appearance import make_appearance, read_look
from pipeline.command.freed_memory import give_back_freed_memory
from pipeline.command.memory_limit import MemoryLimit, limit_bytes
from pipeline.command.not_finite import NotFiniteLines
from pipeline.command.outputs import check_outputs, ended, has_window, open_outputs, open_page, output_specs, watched
from pipeline.command.progress import Progress
from pipeline.command.run_options import RunOptions
from pipeline.command.service import Health, Service
from pipeline.command.summary import Summary, print_written
from pipeline.command.watchers import open_watchers
from pipeline.engines import open_engine
from pipeline.errors import EngineHungError, SinkError, SourceError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.machine.memory import grows_at_most
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import shown
from pipeline.sources import open_sources
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import logger_of, write_line

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)

# From so many frames on, their rate counts more than how soon the first one is there.
_LONG_FRAMES = 8
# In so many frames what is faster has made up for finding it out.
_TUNED_FRAMES = 500
# After a power cut a camera may need minutes until it knows its users.
_BEGINS_S = 120.0
# Files, viewers and connections leave holes in the memory that malloc keeps. In months it would become all holes; this costs a few
# milliseconds.
_GIVE_BACK_EVERY_S = 300.0


def run_job(options: RunOptions) -> None:
    """Open what the options name, run it, and end it complete.

    What it says as it goes on is logged; where the results are is printed.

    Raises:
        EdgemaskError: something cannot be opened, or was lost on the way.
        StoppedError: a signal ended it; what was recorded is kept.
    """
    check_outputs(options)
    window = has_window(options.outputs, page=options.page is not None)
    look = read_look(options.look)
    lost: list[SinkError | SourceError] = []
    sinks: list[Sink] = []
    with ExitStack() as stack:
        sources = _open_sources(options, stack)
        engine = _open_engine(options, [source.info for source in sources], stack)
        for source in sources:  # what they hold depends on it: pages of a document, or channels of one picture
            source.pixels = engine.pixels
        info = _together([source.info for source in sources])
        appearance = make_appearance(options, look, engine, sources)
        health, timer = Health([source.telemetry for source in sources], sinks), StageTimer()
        service = stack.enter_context(Service(health))
        watchers = open_watchers(options, engine, sources, stack)
        summary = Summary(sources, info, timer, appearance.governor)
        try:
            with ended(sinks, live=info.live, on_truncated=options.on_truncated):
                open_outputs(sinks, options, sources, appearance, classes=engine.bundle.manifest.classes, window=window)
                if options.page is not None:
                    with uninterrupted():  # a page that is open must be in the list
                        sinks.append(open_page(options.page, watched(sources, engine, health, timer), appearance))
                service.ready(_status(options, info, window=window))
                most = options.max_frames and options.max_frames * len(sources)
                # A frame that is being written is written to its end.
                with Progress(info, most, quiet=options.quiet) as progress, uninterrupted() as signals:
                    run(
                        sources,
                        engine,
                        appearance.views,
                        sinks,
                        events=_Told(
                            timer,
                            watchers,
                            (service.pulse, MemoryLimit(sources, limit_bytes(options.memory_bytes))),
                            progress,
                            lost,
                            signals,
                        ),
                        drop_oldest=options.drop_oldest,
                        max_frames=options.max_frames,
                    )
                summary.ends()
        except StoppedError:  # the way in which live runs end
            summary.tell()
            for sink in sinks:
                if sink.written:
                    log.info(sink.written)
            if lost:
                raise lost[0] from None
            raise
        except EngineHungError as hung:
            summary.tell()
            _leave(sinks, hung)
        summary.tell()
    print_written(sinks, to_stderr="jsonl:-" in options.outputs.names)
    if lost:
        raise lost[0]


def _leave(sinks: Sequence[Sink], hung: EngineHungError) -> NoReturn:
    """End the process as it is: its outputs are complete, and nothing may close what the engine's thread still uses."""
    for sink in sinks:
        if sink.written:
            log.info(sink.written)
    write_line(f"error: {hung}")
    os._exit(hung.__cause__.status if isinstance(hung.__cause__, StoppedError) else 1)


class _Told(Events):
    """Shows how far the run is, says what is wrong with it, keeps what was lost, ends it on a signal, and tells who watches."""

    def __init__(
        self,
        timer: StageTimer,
        watchers: Sequence[Events],
        pulses: Sequence[Callable[[], None]],
        progress: Progress,
        lost: list[SinkError | SourceError],
        signals: Sequence[int],
    ) -> None:
        super().__init__(timer)
        self._pulses, self._progress, self._lost, self._signals = pulses, progress, lost, signals
        self._watchers = watchers
        self._not_finite = NotFiniteLines()
        self._give_back_due_s = time.monotonic() + _GIVE_BACK_EVERY_S

    def computed(self, frame: Frame) -> None:
        for watcher in self._watchers:
            watcher.computed(frame)

    def written(self, frame: Frame, dropped: int) -> None:
        self._progress(frame, dropped)
        self._not_finite(frame)
        for watcher in self._watchers:
            watcher.written(frame, dropped)

    def pulse(self) -> None:
        if self._signals:
            raise StoppedError(self._signals[0])
        for pulse in self._pulses:
            pulse()
        for watcher in self._watchers:
            watcher.pulse()
        if time.monotonic() >= self._give_back_due_s:
            self._give_back_due_s = time.monotonic() + _GIVE_BACK_EVERY_S
            give_back_freed_memory()

    def lost(self, error: SinkError | SourceError) -> None:
        for watcher in self._watchers:
            watcher.lost(error)
        if not self._lost:  # the first decides how the command ends; a disk may be full a thousand times
            self._lost.append(error)
        log.warning(f"error: {error}; the rest goes on")


def _open_sources(options: RunOptions, stack: ExitStack) -> list[Source]:
    with grows_at_most(limit_bytes(options.memory_bytes)):  # a file's header may claim anything, and nobody watches yet
        sources = open_sources(options.sources, replace(options.live, refused_s=_refused_s(options)))
    for source in sources:
        stack.callback(source.close)
        log.info(f"source: {source.info.name}, {source.info.description}")
        if source.info.left_out:
            log.info(f"{source.info.name}: left out of the outputs: {source.info.left_out}")
    return sources


def _refused_s(options: RunOptions) -> float:
    """How long a source is tried that refuses us or is not there: not at all for a person who waits and can mend the one address."""
    if len(options.sources) > 1 or "NOTIFY_SOCKET" in os.environ:
        return math.inf
    return 0.0 if sys.stderr.isatty() else _BEGINS_S


def _open_engine(options: RunOptions, infos: Sequence[SourceInfo], stack: ExitStack) -> Engine:
    model = options.model
    bundle = open_model(model.name, on_gpu=model.may_build_for_gpu, quiet=options.quiet)
    rebuild = partial(rebuild_plan, quiet=options.quiet) if model.may_build else None
    servers = model.servers and replace(model.servers, goes_on=any(info.live for info in infos))
    engine = stack.enter_context(
        open_engine(
            bundle,
            model.backend,
            overlap=_is_long(options, infos),
            rebuild=rebuild,
            servers=servers,
            tune=model.may_tune and _is_tuned(options, infos),
        )
    )
    leave_cores_to(engine)
    manifest = bundle.manifest
    height, width = manifest.network_size_hw
    log.info(f"model: {manifest.model}, {manifest.precision}, {height}×{width} inside, on {engine.description}")
    if not engine.counts:
        log.info("program: it does not count scores that are NaN or infinite, as new ones do: compile it again")
    if engine.advice:
        log.info(engine.advice)
    return engine


def _is_long(options: RunOptions, infos: Sequence[SourceInfo]) -> bool:
    """Whether more frames a second are worth that each takes longer: not for one picture, nor for a camera or a governor."""
    if options.masks.fps is not None or any(info.live for info in infos):
        return False
    counts = [count for count in (options.max_frames, *(info.frame_count for info in infos)) if count is not None]
    return not counts or min(counts) >= _LONG_FRAMES


def _is_tuned(options: RunOptions, infos: Sequence[SourceInfo]) -> bool:
    """Whether finding out what is the fastest comes back within the run, or will in the next: that of a camera, or of a long video."""
    counts = [info.frame_count for info in infos if not info.live]
    counts.append(options.max_frames)
    return all(count is None or count >= _TUNED_FRAMES for count in counts)


def _together(infos: Sequence[SourceInfo]) -> SourceInfo:
    """One description of all sources, for progress and summary."""
    if len(infos) == 1:
        return infos[0]
    counts = [info.frame_count for info in infos]
    return SourceInfo(
        name=", ".join(info.name for info in infos),
        description=f"{len(infos)} sources",
        frame_count=None if None in counts else sum(count or 0 for count in counts),
        live=any(info.live for info in infos),
    )


def _status(options: RunOptions, info: SourceInfo, *, window: bool) -> str:
    outputs = ", ".join(map(shown, output_specs(options, info)))
    return f"{info.name} → {outputs or ('window' if window else 'page')}"
