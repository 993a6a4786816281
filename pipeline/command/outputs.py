"""Which outputs the options name, and all of them opened: files, streams, a window, the page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.command.appearance import Appearance
from pipeline.command.run_options import OnTruncated, OutputOptions, RunOptions
from pipeline.command.service import Health
from pipeline.command.watchers import drift_of
from pipeline.errors import EngineHungError, OptionError, SinkError, SourceError, TruncatedError
from pipeline.flow.events import Events
from pipeline.frames.frame import SourceInfo
from pipeline.page.options import PageOptions, Watched, not_watched
from pipeline.results.zone_options import WHOLE_FRAME
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sinks import SINKS, open_sink, path_for_source, sink_kind
from pipeline.sinks.base import Sink
from pipeline.sinks.naming import file_name_of
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.render.overlay import Renderer
    from pipeline.results.finder import Finder

log = logger_of(__name__)

# Of a file of which so much could be read, nobody wants to compute it again.
_LONG_S = 60.0


def check_outputs(options: RunOptions) -> None:
    """Refuse an output whose kind is not known, and labels without a folder, before anything is opened.

    Raises:
        SinkError: there is such an output.
        OptionError: there is no folder.
    """
    kinds = [SINKS[sink_kind(name)] for name in options.outputs.names]
    if options.recording.labels is not None and not any(kind.folders for kind in kinds):
        raise OptionError(
            f"--labels {options.recording.labels}: expected a folder that they go to, got none: give --output labels/"
        )


def make_finder(options: RunOptions, sources: Sequence[Source], renderer: Renderer, classes: tuple[str, ...]) -> Finder:
    """What finds regions and events in frames for all outputs; where one wants events and no zone is given, in the whole frame."""
    from pipeline.results.finder import Finder

    zones = options.zones
    if not zones.zones and any(SINKS[sink_kind(name)].takes_events for name in options.outputs.names):
        zones = replace(zones, zones=(WHOLE_FRAME,))
    return Finder(renderer, classes, [source.info for source in sources], zones)


def output_specs(options: RunOptions, info: SourceInfo) -> list[str]:
    """The outputs that are named, with the one of ``--save``."""
    specs = list(options.outputs.names)
    if options.outputs.save is not None:
        stem = file_name_of(info.name.rsplit(".", 1)[0])
        specs.append(options.outputs.save or f"{stem}_{options.look.mode}.mp4")
    return specs


def has_window(options: OutputOptions, *, page: bool) -> bool:
    """Whether views are shown in a window; asked before anything is opened, so that nothing is computed for nobody.

    Where the window that was asked for cannot be and there are other outputs, that is logged.

    Args:
        options: which outputs there are.
        page: there is the page too.

    Raises:
        OptionError: it cannot be, and there is no other output.
    """
    elsewhere = bool(options.names) or options.save is not None or page
    if elsewhere and not options.show:
        return False
    if options.headless:
        problem = "--headless"
    else:
        from pipeline.sinks.display import display_problem

        found = display_problem()
        if found is None:
            return True
        problem = found
    if not elsewhere:
        raise OptionError(
            f"expected an output, got none, and there is no window ({problem}): give --output out.mp4 or a folder, "
            "--serve for a page, or --output null to compute without writing"
        )
    log.warning(f"no window ({problem}): the other outputs go on")
    return False


def open_outputs(
    sinks: list[Sink],
    options: RunOptions,
    sources: Sequence[Source],
    appearance: Appearance,
    *,
    classes: tuple[str, ...],
    window: bool,
) -> None:
    """Open the files and streams that the options ask for, and windows.

    Args:
        sinks: gets them, one by one, so that those that are open can be closed when the next cannot be.
        options: which outputs, and how they are written.
        sources: each has outputs of its own; their names differ.
        appearance: draws the views; it is changed by keys.
        classes: names of the network's classes.
        window: each source gets one too, see `has_window`.

    Raises:
        EdgemaskError: an output cannot be opened.
    """
    finder = make_finder(options, sources, appearance.renderer, classes)
    sink_options = replace(options.recording, classes=classes, finder=finder, live=options.live)
    many = len(sources) > 1

    def add(sink: Sink, info: SourceInfo) -> None:
        sinks.append(OfSource(info.name, sink) if many else sink)

    with uninterrupted():  # every output that is open must be in the list
        for source in sources:
            info = source.info
            specs = output_specs(options, info)
            if info.beside and sink_options.sound and not any(sink_kind(spec) == "video" for spec in specs):
                log.info(f"{info.name}: left out of the outputs, as none is a video: {info.beside}")
            for spec in specs:
                add(open_sink(path_for_source(spec, info.name, many), info, appearance.renderer, sink_options), info)
            if window:
                make = SINKS.load(SINKS["window"], "--show: the window cannot be opened here")
                telemetry = source.telemetry
                add(
                    make(info, appearance.renderer, appearance.annotations, options=sink_options, telemetry=telemetry),
                    info,
                )


def watched(
    sources: Sequence[Source], engine: Engine, health: Health, timer: StageTimer, watchers: Sequence[Events]
) -> Watched:
    """The run as the page tells of it."""
    from pipeline.version import version

    drift = drift_of(watchers)
    manifest = engine.bundle.manifest
    about = {"model": manifest.model, "precision": manifest.precision, "backend": engine.description}
    return Watched(
        {source.info.name: source.telemetry for source in sources},
        manifest.classes,
        {"version": version(), **about},
        health.problem,
        timer,
        health.outputs,
        drift=not_watched if drift is None else drift.facts,
    )


def open_page(options: PageOptions, run: Watched, appearance: Appearance) -> Sink:
    """Open the page that ``--serve`` asks for.

    Args:
        options: where it is; without a token there, ``EDGEMASK_TOKEN`` is one.
        run: what it tells of.
        appearance: is changed by the page.

    Raises:
        BackendUnavailableError: the page's packages are not here.
        EdgemaskError: it cannot be served there.
    """
    make = SINKS.load(SINKS["page"], "--serve: the page needs packages that are not here")
    options = replace(options, token=options.token or os.environ.get("EDGEMASK_TOKEN") or None)
    page: Sink = make(options, run, appearance.renderer, appearance.annotations)
    return page


@contextmanager
def ended(sinks: Sequence[Sink], *, live: bool, on_truncated: OnTruncated = "auto") -> Iterator[None]:
    """End outputs with the body: complete, or without a result where it fails.

    A recording that was stopped, or whose camera failed, is worth keeping. Half of a file's video is not, but for one whose file
    itself ends too soon, under a name that says so.

    Args:
        sinks: those that are there at the end.
        live: a source is.
        on_truncated: whether the part of a file that is cut off is kept; "auto": from a minute on.

    Raises:
        TruncatedError: a file was cut off; with what was kept of it.
        SinkError: an output cannot be ended complete.
    """
    try:
        yield
        with uninterrupted():  # a video that is all written needs only its last bytes
            _end(sinks, keep=True)
    except TruncatedError as error:
        keep = on_truncated == "keep" or (on_truncated == "auto" and error.end_s > _LONG_S)
        for sink in sinks:
            if keep:
                sink.cut_off()
        _end(sinks, keep=keep)
        kept = ", ".join(sink.written for sink in sinks if sink.written)
        if keep and kept:
            raise TruncatedError(f"{error}; kept as {kept}", error.end_s) from error
        raise
    except BaseException as error:
        _end(
            sinks,
            keep=isinstance(error, (StoppedError, EngineHungError))
            or (live and isinstance(error, (SourceError, SinkError))),
        )
        raise


def _end(sinks: Sequence[Sink], *, keep: bool) -> None:
    with ExitStack() as ending:  # all of them, also when one cannot be finished
        for sink in reversed(sinks):
            ending.callback(sink.close if keep else sink.discard)
