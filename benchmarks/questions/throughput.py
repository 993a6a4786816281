"""How do frames per second go with the number of sources that share one engine, and with frames that it takes at once?

Sources are the clip, several times; a GPU's plan takes as many frames at once as it was compiled for (``--batch``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shared.clip_options import ClipOptions, add_clip_options
from benchmarks.shared.environment import write_result
from pipeline.builds.model_name import open_model
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.null import NullSink
from pipeline.sources import open_sources

EXPLAINED = """
FPS in all: frames of all sources together. The slowest: what the source gets that gets least. The last column: all together / the
first row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClipOptions):
    """What ``python -m benchmarks throughput`` is asked.

    Attributes:
        sources: how many at once, N,….
        frames: in all.
    """

    sources: str
    frames: int


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks throughput`` takes."""
    add_clip_options(parser, plot="draw the throughput")
    parser.add_argument(
        "--sources", default="1,2,4", metavar="N,…", help="numbers of sources at once (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=48, metavar="N", help="frames in all (default: %(default)s)")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read.
    """
    try:
        counts = [int(text) for text in options.sources.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or options.frames < max(counts):
        raise OptionError(
            f"--sources: expected numbers from 1, at most --frames, got {options.sources} and {options.frames}"
        )
    keep_freed_memory()  # as the command does
    bundle = open_model(options.model)
    rows: list[dict[str, Any]] = []
    with open_engine(bundle, options.backend, overlap=True) as engine:
        leave_cores_to(engine)  # as the command does
        _rate(engine, options.clip, 1, 3)  # warm
        for count in counts:
            rows.append(_rate(engine, options.clip, count, options.frames // count))
        description = engine.description
    print(f"{bundle.manifest.model}, {bundle.manifest.precision}, {description}, {engine.batch} frames at once")
    print("| sources | FPS in all | FPS of the slowest | of one source's |\n|---|---|---|---|")
    for row in rows:
        row["over_first"] = round(row["fps"] / rows[0]["fps"], 4)
        print(f"| {row['sources']} | {row['fps']:.2f} | {row['least_fps']:.2f} | {row['over_first']:.2f} |")
    print(EXPLAINED)
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [(f"{row['sources']} source{'s' * (row['sources'] > 1)}", row["fps"]) for row in rows]
        title = f"Throughput by the number of sources: {bundle.manifest.model}, {description}"
        write_plot(options.plot, bars(title, "frames per second in all", named))
    if options.json:
        write_result(
            Path(options.json),
            "throughput",
            {
                "model": bundle.manifest.model,
                "precision": bundle.manifest.precision,
                "backend": description,
                "batch": engine.batch,
                "table": rows,
                "ratios": {f"fps_{row['sources']}_over_{counts[0]}": row["over_first"] for row in rows},
            },
        )


def _rate(engine: Engine, clip: str, count: int, frames_each: int) -> dict[str, Any]:
    renderer = Renderer(Look(), engine.bundle.manifest.task)
    sources = open_sources([clip] * count)
    try:
        start_s = time.perf_counter()
        sinks = [NullSink("null", sources[0].info, renderer)]
        result = run(sources, engine, Views(renderer), sinks, max_frames=frames_each)
        elapsed_s = time.perf_counter() - start_s
        least = min(source.telemetry.snapshot().frames_out for source in sources)
    finally:
        for source in sources:
            source.close()
    return {
        "sources": count,
        "fps": round(result.frames / elapsed_s, 3),
        "least_fps": round(least / elapsed_s, 3),
    }
