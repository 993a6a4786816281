"""Which outputs the options name, and all of them opened: files, streams, a window, the page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from pipeline.annotations import Annotations
from pipeline.bundle import Manifest
from pipeline.command_line import uninterrupted
from pipeline.errors import BackendUnavailableError
from pipeline.frame import SourceInfo
from pipeline.overlay import Renderer
from pipeline.sinks import SinkOptions, open_sink, path_for_source
from pipeline.sinks.base import Sink
from pipeline.sinks.naming import file_name_of
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stage_timer import StageTimer


def output_specs(options: argparse.Namespace, info: SourceInfo) -> list[str]:
    """The outputs that are named, with the one of ``--save``."""
    specs: list[str] = list(options.output or [])
    if options.save is not None:
        stem = file_name_of(info.name.rsplit(".", 1)[0])
        specs.append(options.save or f"{stem}_{options.render}.mp4")
    return specs


def open_outputs(
    sinks: list[Sink],
    options: argparse.Namespace,
    sources: Sequence[Source],
    classes: tuple[str, ...],
    renderer: Renderer,
    annotations: Annotations,
    *,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    """Open the files, streams and windows that the options ask for.

    Args:
        sinks: gets them, one by one, so that those that are open can be closed when the next cannot be.
        options: of ``pipeline.options``.
        sources: each has outputs of its own; their names differ.
        classes: names of the network's classes.
        renderer: draws the views; its look is changed by keys.
        annotations: likewise.
        say: gets a line for each thing worth knowing.
        tell: the same, also when the user wants quiet.

    Raises:
        EdgemaskError: an output cannot be opened.
    """
    sink_options = SinkOptions(
        classes=classes,
        encoder=options.encoder,
        segment_s=options.segment_time,
        segment_bytes=options.segment_size,
        keep_segments=options.keep_files,
        keep_bytes=options.keep_size,
        min_free_bytes=options.min_free,
        say=say,
    )
    many = len(sources) > 1
    problem = _no_window(options)
    with uninterrupted():  # every output that is open must be in the list
        for source in sources:
            info = source.info
            own: list[Sink] = []
            for spec in output_specs(options, info):
                own.append(open_sink(path_for_source(spec, info.name, many), info, renderer, sink_options))
                sinks.append(OfSource(info.name, own[-1]) if many else own[-1])
            if problem is None:
                from pipeline.sinks.window import WindowSink

                window = WindowSink(
                    info, renderer, annotations, say=say, options=sink_options, telemetry=source.telemetry
                )
                sinks.append(OfSource(info.name, window) if many else window)
    if problem:
        tell(f"no window ({problem}): write with --output out.mp4 or a folder, or watch with --serve")


def _no_window(options: argparse.Namespace) -> str | None:
    """Why there is no window: None if there is one, empty if nobody needs to know."""
    from pipeline.display import display_problem

    if not options.show and (options.output or options.save is not None or options.serve is not None):
        return ""
    if options.headless:
        return "" if options.output or options.serve is not None else "--headless"
    return display_problem()


def open_page(
    options: argparse.Namespace,
    sources: Sequence[Source],
    manifest: Manifest,
    backend: str,
    renderer: Renderer,
    annotations: Annotations,
    *,
    healthy: Callable[[], str],
    timer: StageTimer,
    tell: Callable[[str], None],
) -> Sink:
    """Open the page that ``--serve`` asks for.

    Args:
        options: of ``pipeline.options``.
        sources: all are on it.
        manifest: of the bundle.
        backend: what runs it.
        renderer: its look is changed by the page.
        annotations: likewise.
        healthy: says what is wrong with the data path, for ``/healthz``.
        timer: times of the stages, for ``/metrics``.
        tell: gets its address.

    Raises:
        BackendUnavailableError: the page's packages are not here.
        EdgemaskError: it cannot be served there.
    """
    try:
        from pipeline.page.server import Limits
        from pipeline.page.sink import PageSink
    except ImportError as error:
        raise BackendUnavailableError(
            f"--serve: the page needs packages that are not here ({error}): install them with: pip install '.[page]'"
        ) from error
    from pipeline.version import version

    about = {"version": version(), "model": manifest.model, "precision": manifest.precision, "backend": backend}
    return PageSink(
        options.serve,
        {source.info.name: source.telemetry for source in sources},
        renderer,
        annotations,
        classes=manifest.classes,
        about=about,
        token=options.serve_token or os.environ.get("EDGEMASK_TOKEN") or None,
        names=options.serve_name or (),
        read_only=options.serve_read_only,
        healthy=healthy,
        timer=timer,
        limits=Limits(viewers=options.serve_viewers),
        say=tell,
    )
