"""What is left of an engine's rate in the pipeline, and where does a frame's time go?

Engine alone and whole pipeline take turns, so that a machine that gets slower slows both; the ratio is that of each pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.bars import draw_bars, write_plot
from benchmarks.environment import write_result
from benchmarks.stand_in import Sleeper
from pipeline.command_line import OptionParser
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.frame import Image
from pipeline.look import Look
from pipeline.model_name import open_model
from pipeline.overlay import Renderer
from pipeline.run import run
from pipeline.sinks import open_sink
from pipeline.sources import open_source
from pipeline.stage_timer import StageTime

SLEEP_MS = 10.0
SIZE_1080P_WH = (1920, 1080)
# Frames that the stand-in gets for each frame of the network, so that both are measured for about as long.
_MORE_OF_STAND_IN = 8


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks latency`` takes."""
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument("--backend", default="auto", help="what runs the network (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="frames of a pass (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="pairs of passes (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the times of the stages")


def measure(options: argparse.Namespace) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read.
    """
    for name, value in (("--frames", options.frames), ("--rounds", options.rounds)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    bundle = open_model(options.model, print)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="edgemask.")))
        many = options.frames * _MORE_OF_STAND_IN
        large = folder / "1080p.mp4"
        _write_larger(options.clip, large, SIZE_1080P_WH, many)
        engine = stack.enter_context(open_engine(bundle, options.backend, overlap=True))
        sleeper = stack.enter_context(Sleeper(SLEEP_MS))
        rows = [
            _case("engine", engine, options.clip, options.frames, options.rounds),
            _case("sleep10", sleeper, str(large), many, options.rounds),
        ]
    print("\n".join(_table(rows)))
    ratios = {"pipeline_over_engine": rows[0]["ratio"], "pipeline_over_engine_sleep10": rows[1]["ratio"]}
    for name, value in ratios.items():
        print(f"{name}: {value:.4f}")
    if options.plot:
        bars = [
            (f"{row['engine'][:24]}: {stage['name']} {which}", stage[f"{which}_ms"])
            for row in rows
            for stage in row["stages"]
            for which in ("p50", "p95", "p99")
        ]
        write_plot(options.plot, draw_bars("ms per frame", bars))
    if options.json:
        write_result(
            Path(options.json),
            "latency",
            {"model": bundle.manifest.model, "rounds": options.rounds, "table": rows, "ratios": ratios},
        )


def _case(key: str, engine: Engine, clip: str, count: int, rounds: int) -> dict[str, Any]:
    with open_source(clip) as source:
        images = [frame.image for frame in islice(source, min(count, 48))]
    alone_hz: list[float] = []
    pipeline_hz: list[float] = []
    stages: list[StageTime] = []
    _alone_hz(engine, images, min(count, 3))  # warm
    for number in range(rounds):
        # Which of the two is first changes, for the second one finds a warmer machine.
        for which in ("alone", "pipeline") if number % 2 else ("pipeline", "alone"):
            if which == "alone":
                alone_hz.append(_alone_hz(engine, images, count))
            else:
                rate_hz, stages = _pipeline_hz(engine, clip, count)
                pipeline_hz.append(rate_hz)
    pairs = [pipeline / alone for pipeline, alone in zip(pipeline_hz, alone_hz, strict=True)]
    height, width = images[0].shape[:2]
    return {
        "key": key,
        "engine": engine.description,
        "size_wh": [width, height],
        "frames": count,
        "alone_fps": round(statistics.median(alone_hz), 2),
        "pipeline_fps": round(statistics.median(pipeline_hz), 2),
        "ratio": round(statistics.median(pairs), 4),
        "pairs": [round(pair, 4) for pair in pairs],
        "stages": [
            {
                "name": stage.name,
                "p50_ms": round(stage.p50_ms, 3),
                "p95_ms": round(stage.p95_ms, 3),
                "p99_ms": round(stage.p99_ms, 3),
            }
            for stage in stages
        ],
    }


def _alone_hz(engine: Engine, images: Sequence[Image], count: int) -> float:
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


def _pipeline_hz(engine: Engine, clip: str, count: int) -> tuple[float, list[StageTime]]:
    """The same from the clip to nowhere, decoded and rendered."""
    renderer = Renderer(Look(), engine.bundle.manifest.task)
    with open_source(clip) as source:
        sink = open_sink("null", source.info, renderer)
        start_s = time.perf_counter()
        result = run(source, engine, renderer, [sink], max_frames=count)
        elapsed_s = time.perf_counter() - start_s
        sink.close()
    return result.frames / elapsed_s, result.stages


def _write_larger(clip: str, path: Path, size_wh: tuple[int, int], count: int) -> None:
    """Write the clip at another size, H.264 as cameras give it, over and over up to so many frames."""
    with open_source(clip) as source:
        images = [np.asarray(cv2.resize(frame.image, size_wh), np.uint8) for frame in islice(source, 50)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        for index in range(count):
            # Forth and back: no cut, as in a video that goes on.
            at = index % (2 * len(images))
            image = images[at if at < len(images) else 2 * len(images) - 1 - at]
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| engine | frame | alone, FPS | pipeline, FPS | ratio | pairs |", "|---|---|---|---|---|---|"]
    for row in rows:
        size = "×".join(map(str, row["size_wh"]))
        pairs = ", ".join(f"{pair:.3f}" for pair in row["pairs"])
        lines.append(
            f"| {row['engine']} | {size} | {row['alone_fps']:.2f} | {row['pipeline_fps']:.2f} | {row['ratio']:.3f} | {pairs} |"
        )
    lines += ["", "| engine | stage | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|---|"]
    for row in rows:
        lines += [
            f"| {row['engine']} | {stage['name']} | {stage['p50_ms']:.2f} | {stage['p95_ms']:.2f} | {stage['p99_ms']:.2f} |"
            for stage in row["stages"]
        ]
    return lines
