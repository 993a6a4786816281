"""What is left of an engine's rate in the pipeline, and where does a frame's time go?

Engine alone and whole pipeline take turns, so that a machine that gets slower slows both; the ratio is that of each pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.shared.clip_options import ClipOptions, add_clip_options
from benchmarks.shared.environment import write_result
from benchmarks.shared.passes import MOST_IN_MEMORY, alone_hz, pipeline_pass, read_images
from benchmarks.shared.stand_in import Sleeper
from pipeline.builds.model_name import open_model
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.frames.pixels import frames_nhw
from pipeline.sources import open_source
from pipeline.stages.stage_timer import StageTime

SLEEP_MS = 10.0
SIZE_1080P_WH = (1920, 1080)
# Frames that the stand-in gets for each frame of the network, so that both are measured for about as long.
_MORE_OF_STAND_IN = 8


EXPLAINED = """
ratio: throughput of the pipeline relative to the engine alone, the median of the pairs; 1 is all of it. p50, p95, p99: half, 95 and
99 of 100 frames take at most so long in that stage. Stages overlap, so that the slowest decides the rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClipOptions):
    """What ``python -m benchmarks latency`` is asked.

    Attributes:
        frames: of a pass.
        rounds: pairs of passes.
    """

    frames: int
    rounds: int


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks latency`` takes."""
    add_clip_options(parser, plot="draw the times of the stages")
    parser.add_argument("--frames", type=int, default=24, metavar="N", help="frames per pass (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="pairs of passes (default: %(default)s)")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read.
    """
    for name, value in (("--frames", options.frames), ("--rounds", options.rounds)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    keep_freed_memory()  # as the command does
    bundle = open_model(options.model)
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
    print(EXPLAINED)
    ratios = {"pipeline_over_engine": rows[0]["ratio"], "pipeline_over_engine_sleep10": rows[1]["ratio"]}
    for name, value in ratios.items():
        print(f"{name}: {value:.4f}")
    if options.plot:
        from benchmarks.shared.plots import grouped_bars, write_plot

        groups = {
            f"{row['engine']}: {stage['name']}": {which: stage[f"{which}_ms"] for which in ("p50", "p95", "p99")}
            for row in rows
            for stage in row["stages"]
        }
        write_plot(options.plot, grouped_bars("Time of each stage of the pipeline", "ms per frame", groups, log=True))
    if options.json:
        write_result(
            Path(options.json),
            "latency",
            {"model": bundle.manifest.model, "rounds": options.rounds, "table": rows, "ratios": ratios},
        )


def _case(key: str, engine: Engine, clip: str, count: int, rounds: int) -> dict[str, Any]:
    images = read_images(clip, engine.pixels, min(count, MOST_IN_MEMORY))
    alone: list[float] = []
    pipeline: list[float] = []
    stages: list[StageTime] = []
    alone_hz(engine, images, min(count, 3))  # warm
    for number in range(rounds):
        # Which of the two is first changes, for the second one finds a warmer machine.
        for which in ("alone", "pipeline") if number % 2 else ("pipeline", "alone"):
            if which == "alone":
                alone.append(alone_hz(engine, images, count))
            else:
                with open_source(clip) as source:
                    rate_hz, stages, _ = pipeline_pass(engine, source, count)
                pipeline.append(rate_hz)
    pairs = [whole / engine_only for whole, engine_only in zip(pipeline, alone, strict=True)]
    nhw = frames_nhw(engine.pixels, (1, *images[0].shape))
    assert nhw is not None  # the engine took them
    return {
        "key": key,
        "engine": engine.description,
        "size_wh": [nhw[2], nhw[1]],
        "frames": count,
        "alone_fps": round(statistics.median(alone), 2),
        "pipeline_fps": round(statistics.median(pipeline), 2),
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
