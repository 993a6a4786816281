"""Which outputs the options name, and all of them opened: files, streams, a window, the page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from pipeline.bundles.bundle import Manifest
from pipeline.errors import BackendUnavailableError, OptionError
from pipeline.frames.frame import SourceInfo
from pipeline.render.annotations import Annotations
from pipeline.render.overlay import Renderer
from pipeline.signals import uninterrupted
from pipeline.sinks import SinkOptions, open_sink, path_for_source
from pipeline.sinks.base import Sink
from pipeline.sinks.naming import file_name_of
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer


def output_specs(options: argparse.Namespace, info: SourceInfo) -> list[str]:
    """The outputs that are named, with the one of ``--save``."""
    specs: list[str] = list(options.output or [])
    if options.save is not None:
        stem = file_name_of(info.name.rsplit(".", 1)[0])
        specs.append(options.save or f"{stem}_{options.render}.mp4")
    return specs


def has_window(options: argparse.Namespace, tell: Callable[[str], None]) -> bool:
    """Whether views are shown in a window; asked before anything is opened, so that nothing is computed for nobody.

    Args:
        options: of ``pipeline.command.options``.
        tell: gets a line if the window that was asked for cannot be, and there are other outputs.

    Raises:
        OptionError: it cannot be, and there is no other output.
    """
    elsewhere = bool(options.output) or options.save is not None or options.serve is not None
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
    tell(f"no window ({problem}): the other outputs go on")
    return False


def open_outputs(
    sinks: list[Sink],
    options: argparse.Namespace,
    sources: Sequence[Source],
    classes: tuple[str, ...],
    renderer: Renderer,
    annotations: Annotations,
    *,
    window: bool,
    say: Callable[[str], None],
) -> None:
    """Open the files and streams that the options ask for, and windows.

    Args:
        sinks: gets them, one by one, so that those that are open can be closed when the next cannot be.
        options: of ``pipeline.command.options``.
        sources: each has outputs of its own; their names differ.
        classes: names of the network's classes.
        renderer: draws the views; its look is changed by keys.
        annotations: likewise.
        window: each source gets one too, see `has_window`.
        say: gets a line for each thing worth knowing.

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
    with uninterrupted():  # every output that is open must be in the list
        for source in sources:
            info = source.info
            own: list[Sink] = []
            for spec in output_specs(options, info):
                own.append(open_sink(path_for_source(spec, info.name, many), info, renderer, sink_options))
                sinks.append(OfSource(info.name, own[-1]) if many else own[-1])
            if window:
                from pipeline.sinks.window import WindowSink

                shown = WindowSink(
                    info, renderer, annotations, say=say, options=sink_options, telemetry=source.telemetry
                )
                sinks.append(OfSource(info.name, shown) if many else shown)


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
        options: of ``pipeline.command.options``.
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
