"""python -m pipeline --source S --model M --output O: masks over pictures, videos and cameras."""

from __future__ import annotations

import os
import sys

# Read by OpenCV when it is first imported. A picture's header must not claim the machine's memory; its own warnings would
# stand beside our one line.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import argparse
import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.annotations import Annotations
from pipeline.build_half import rebuild_plan
from pipeline.command_line import StoppedError, run_command, uninterrupted
from pipeline.engines import open_engine
from pipeline.errors import OptionError, SourceError
from pipeline.frame import Image, SourceInfo
from pipeline.model_name import open_model
from pipeline.options import parse_options
from pipeline.overlay import Color, Look, Renderer
from pipeline.palette import load_palette
from pipeline.progress import Progress
from pipeline.run import RunResult, run
from pipeline.sinks import open_sink, sink_kind
from pipeline.sinks.base import Sink
from pipeline.sources import open_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _run(parse_options(arguments)))


def _run(options: argparse.Namespace) -> None:
    say: Callable[[str], None] = (lambda _: None) if options.quiet else (lambda line: print(line, file=sys.stderr))
    outputs = _outputs(options)
    for output in outputs:
        sink_kind(output)
    look = Look(
        options.render, options.alpha, options.threshold, load_palette(options.palette), _background(options.background)
    )
    with ExitStack() as stack:
        source = stack.enter_context(open_source(options.source))
        say(f"source: {source.info.name}, {source.info.description}")
        bundle = open_model(options.model, say)
        manifest = bundle.manifest
        engine = stack.enter_context(
            open_engine(bundle, options.backend, rebuild=rebuild_plan if options.rebuild == "auto" else None, say=say)
        )
        height, width = manifest.network_size_hw
        say(f"model: {manifest.model}, {manifest.precision}, {height}×{width} inside, on {engine.description}")
        renderer = Renderer(look, manifest.task)
        annotations = Annotations(manifest, engine.description, renderer, hud=options.hud, legend=options.legend)
        sinks: list[Sink] = []
        try:
            with uninterrupted():  # every output that is open must be in the list, also when the next cannot be
                for output in outputs:
                    sinks.append(open_sink(output, source.info, renderer))
            if options.show or not outputs:
                sinks += _window(options, source.info, renderer, annotations)
            start_s = time.monotonic()
            with Progress(source.info, options.max_frames, quiet=options.quiet) as progress:
                result = run(
                    source,
                    engine,
                    renderer,
                    sinks,
                    decorate=annotations,
                    progress=progress,
                    drop_oldest={"auto": None, "latest": True, "never": False}[options.drop],
                    max_frames=options.max_frames,
                )
            elapsed_s = time.monotonic() - start_s
            with uninterrupted():  # a video that is all written needs only its last bytes
                _end(sinks, keep=True)
        except BaseException as error:
            # A recording that was stopped, or whose camera failed, is worth keeping; half of a file's video is not.
            _end(sinks, keep=isinstance(error, StoppedError) or (source.info.live and isinstance(error, SourceError)))
            raise
    for line in _summary(result, elapsed_s, source.info):
        say(line)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8
    for sink in sinks:
        if sink.written:
            print(sink.written)


def _outputs(options: argparse.Namespace) -> list[str]:
    outputs: list[str] = list(options.output or [])
    if options.save is not None:
        stem = Path(options.source).stem
        outputs.append(options.save or f"{stem if stem.isidentifier() else 'source'}_{options.render}.mp4")
    return outputs


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


def _window(options: argparse.Namespace, info: SourceInfo, renderer: Renderer, annotations: Annotations) -> list[Sink]:
    from pipeline.display import display_problem

    problem = "--headless" if options.headless else display_problem()
    if problem is None:
        from pipeline.sinks.window import WindowSink

        return [WindowSink(info, renderer, annotations)]
    if not options.headless or not options.output:
        print(f"no window ({problem}): write with --output out.mp4 or a folder", file=sys.stderr)
    return []


def _end(sinks: Sequence[Sink], *, keep: bool) -> None:
    with ExitStack() as ending:  # all of them, also when one cannot be finished
        for sink in reversed(sinks):
            ending.callback(sink.close if keep else sink.discard)


def _summary(result: RunResult, elapsed_s: float, info: SourceInfo) -> list[str]:
    rate_hz = result.frames / max(elapsed_s, 1e-9)
    real_time = f", {rate_hz / float(info.fps):.2f}× real time" if info.fps and not info.live else ""
    dropped = f", {result.dropped} dropped" if result.dropped else ""
    lines = [f"{result.frames} frames in {elapsed_s:.1f} s, {rate_hz:.1f} FPS{real_time}{dropped}"]
    lines += [f"{stage.name:>8}  p50 {stage.p50_ms:8.1f} ms  p95 {stage.p95_ms:8.1f} ms" for stage in result.stages]
    return lines


if __name__ == "__main__":
    sys.exit(main())
