"""One run of the command: sources, engine and outputs opened, run, and ended complete."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.command.not_finite import NotFiniteLines, not_finite_summary
from pipeline.command.outputs import has_window, open_outputs, open_page, output_specs
from pipeline.command.progress import Progress
from pipeline.command.service import Health, Service
from pipeline.engines import open_engine
from pipeline.errors import EdgemaskError, OptionError, SinkError, SourceError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.run import run
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.masks.steady import Steady
from pipeline.render.annotations import Annotations
from pipeline.render.compose import composed_looks
from pipeline.render.look import Color, Look
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sinks import sink_kind
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import shown
from pipeline.sources import open_sources
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import NEWER, Snapshot
from pipeline.terminal import write_line

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Task
    from pipeline.masks.governor import Governor
    from pipeline.sources.base import Source
    from pipeline.sources.live import LiveOptions

# From so many frames on, their rate counts more than how soon the first one is there.
_LONG_FRAMES = 8


def run_job(options: argparse.Namespace) -> None:
    """Open what the options name, run it, and end it complete.

    Args:
        options: of ``pipeline.command.options``.

    Raises:
        EdgemaskError: something cannot be opened, or was lost on the way.
        StoppedError: a signal ended it; what was recorded is kept.
    """
    say: Callable[[str], None] = (lambda _: None) if options.quiet else write_line
    for spec in options.output or []:
        sink_kind(spec)
    window = has_window(options, write_line)
    look = Look(
        options.render, options.alpha, options.threshold, load_palette(options.palette), _background(options.background)
    )
    lost: list[EdgemaskError] = []

    def give_up(error: EdgemaskError) -> None:
        lost.append(error)
        write_line(f"error: {error}; the rest goes on")

    with ExitStack() as stack:
        sources = open_sources(options.source, _live_options(options, say))
        for source in sources:
            stack.callback(source.close)
            say(f"source: {source.info.name}, {source.info.description}")
        may_build = options.rebuild == "auto"
        on_gpu = may_build and options.backend in ("auto", *BUILT_FROM_PROGRAM)
        bundle = open_model(options.model, say, on_gpu=on_gpu, quiet=options.quiet)
        manifest = bundle.manifest
        engine = stack.enter_context(
            open_engine(
                bundle,
                options.backend,
                overlap=_is_long(options, [source.info for source in sources]),
                rebuild=partial(rebuild_plan, say=say, quiet=options.quiet) if may_build else None,
                say=say,
            )
        )
        leave_cores_to(engine)
        height, width = manifest.network_size_hw
        say(f"model: {manifest.model}, {manifest.precision}, {height}×{width} inside, on {engine.description}")
        if not engine.counts:
            say("program: it does not count scores that are NaN or infinite, as new ones do: compile it again")
        if engine.advice:
            say(engine.advice)
        renderer = Renderer(look, manifest.task)
        annotations = Annotations(manifest, engine.description, renderer, hud=options.hud, legend=options.legend)
        health, timer = Health([source.telemetry for source in sources]), StageTimer()
        service = stack.enter_context(Service(health))
        governor = _governor(options, manifest.task, sources, say)
        steady = Steady(options.smooth, options.refine_edges, manifest.task, renderer, sources)
        composed = composed_looks(options.compose, engine, renderer, steady=steady.changes or governor is not None)

        def summarise(elapsed_s: float) -> None:
            for line in _summary([source.telemetry.snapshot() for source in sources], timer, elapsed_s, info):
                say(line)
            for line in not_finite_summary([source.telemetry.snapshot() for source in sources]):
                write_line(line)
            if governor is not None:
                say(governor.reuse.line())

        start_s = time.monotonic()
        sinks: list[Sink] = []
        info = _together([source.info for source in sources])
        try:
            open_outputs(
                sinks,
                options,
                sources,
                manifest.classes,
                renderer,
                annotations,
                window=window,
                say=say,
            )
            if options.serve is not None:
                with uninterrupted():
                    page = open_page(
                        options,
                        sources,
                        manifest,
                        engine.description,
                        renderer,
                        annotations,
                        healthy=health.problem,
                        timer=timer,
                        tell=write_line,
                    )
                    sinks.append(page)
            service.ready(
                f"{info.name} → {', '.join(map(shown, output_specs(options, info))) or ('window' if window else 'page')}"
            )
            most = options.max_frames and options.max_frames * len(sources)
            not_finite = NotFiniteLines(write_line)
            with Progress(info, most, quiet=options.quiet) as progress:

                def went_out(frame: Frame, dropped: int) -> None:
                    progress(frame, dropped)
                    not_finite(frame)

                run(
                    sources,
                    engine,
                    renderer,
                    sinks,
                    masks=None if governor is None else governor.masked,
                    composed=composed,
                    refine=steady if steady.changes else None,
                    decorate=annotations,
                    progress=went_out,
                    pulse=service.pulse,
                    lost=give_up,
                    timer=timer,
                    drop_oldest={"auto": None, "latest": True, "never": False}[options.drop],
                    max_frames=options.max_frames,
                )
            elapsed_s = time.monotonic() - start_s
            with uninterrupted():  # a video that is all written needs only its last bytes
                _end(sinks, keep=True)
        except BaseException as error:
            # A recording that was stopped, or whose camera failed, is worth keeping; half of a file's video is not.
            _end(
                sinks,
                keep=isinstance(error, StoppedError) or (info.live and isinstance(error, (SourceError, SinkError))),
            )
            if isinstance(error, StoppedError):  # the way in which live runs end
                summarise(time.monotonic() - start_s)
                for sink in sinks:
                    if sink.written:
                        say(sink.written)
                if lost:
                    raise lost[0] from None
            raise
        summarise(elapsed_s)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8
    written = sys.stderr if "jsonl:-" in (options.output or []) else sys.stdout
    for sink in sinks:
        if sink.written:
            print(sink.written, file=written)
    if lost:
        raise lost[0]


def _live_options(options: argparse.Namespace, say: Callable[[str], None]) -> LiveOptions:
    from pipeline.sources.live import LiveOptions

    return LiveOptions(
        stall_s=options.stall,
        reconnect_s=options.reconnect,
        max_reconnects=options.max_reconnects,
        on_corrupt=options.on_corrupt,
        say=say,
    )


def _governor(
    options: argparse.Namespace, task: Task, sources: Sequence[Source], say: Callable[[str], None]
) -> Governor | None:
    if options.fps is None:
        return None
    from pipeline.masks.governor import Governor

    return Governor(options.fps, task, live=[source.info.name for source in sources if source.info.live], say=say)


def _is_long(options: argparse.Namespace, infos: Sequence[SourceInfo]) -> bool:
    """Whether more frames a second are worth that each takes longer: not for one picture, nor for a camera or a governor."""
    if options.fps is not None or any(info.live for info in infos):
        return False
    counts = [count for count in (options.max_frames, *(info.frame_count for info in infos)) if count is not None]
    return not counts or min(counts) >= _LONG_FRAMES


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


def _background(text: str | None) -> Color | Image | None:
    if text is None:
        return None
    if text.startswith("#"):
        return load_palette(text).color(1)  # the one colour that is given; 0 is background
    from pipeline.sources.pictures import read_picture

    try:
        return read_picture(Path(text))
    except SourceError as error:
        raise OptionError(f"--background: expected #rrggbb or a picture: {error}") from error


def _end(sinks: Sequence[Sink], *, keep: bool) -> None:
    with ExitStack() as ending:  # all of them, also when one cannot be finished
        for sink in reversed(sinks):
            ending.callback(sink.close if keep else sink.discard)


def _summary(snapshots: Sequence[Snapshot], timer: StageTimer, elapsed_s: float, info: SourceInfo) -> list[str]:
    frames = sum(snapshot.frames_out for snapshot in snapshots)
    newer = sum(snapshot.dropped.get(NEWER, 0) for snapshot in snapshots)
    rate_hz = frames / max(elapsed_s, 1e-9)
    real_time = f", {rate_hz / float(info.fps):.2f}× real time" if info.fps and not info.live else ""
    dropped = f", {newer} dropped" if newer else ""
    lines = [f"{frames} frames in {elapsed_s:.1f} s, {rate_hz:.1f} FPS{real_time}{dropped}"]
    lines += [f"{stage.name:>8}  p50 {stage.p50_ms:8.1f} ms  p95 {stage.p95_ms:8.1f} ms" for stage in timer.result()]
    return lines
