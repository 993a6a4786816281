"""Does anything grow over many frames: memory, threads, open files, the age of frames?

A camera that is faster than the engine, the whole data path to outputs that keep nothing. With --hours: the command as users run it,
with three cameras that are not well, recordings, JSON lines and a page with visitors; each figure's slope is fitted.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.environment import write_result
from benchmarks.shared.stand_in import Sleeper
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.errors import OptionError
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.masks.steady import Steady
from pipeline.registry import Choices
from pipeline.render.look import Look
from pipeline.render.modes import MODES
from pipeline.render.overlay import Renderer
from pipeline.sinks.base import Sink
from pipeline.sinks.null import NullSink
from pipeline.sources.base import Source

WARM_UP = 1000
_EVERY = 100


EXPLAINED = """
Memory, threads and open files of the process, by frames; 99 of 100 frames were written at most "age p99" after they came.
soak_growth_mb: how much the memory grew after the first frames; a leak grows with the frames, the rest does not."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks soak`` is asked.

    Attributes:
        hours: run the command for so many hours; then only ``plot`` and ``json`` count of the others.
        frames: written frames.
        size: of the frames, WxH.
        engine_ms: what the stand-in engine takes.
        render: how frames are drawn.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    hours: float | None
    frames: int
    size: str
    engine_ms: float
    render: str
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks soak`` takes."""
    parser.add_argument(
        "--hours",
        type=float,
        metavar="N",
        help="run the command for so many hours (1/60 or more); --frames, --size, --engine-ms and --render are not for this",
    )
    parser.add_argument(
        "--frames", type=int, default=20_000, metavar="N", help="frames to write (default: %(default)s)"
    )
    parser.add_argument("--size", default="640x360", metavar="WxH", help="size of the frames (default: %(default)s)")
    parser.add_argument(
        "--engine-ms",
        type=float,
        default=1.0,
        metavar="MS",
        help="milliseconds that the stand-in backend takes per frame (default: %(default)s)",
    )
    parser.add_argument("--render", default="overlay", choices=Choices(MODES), help="(default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw memory over frames, or all figures over hours")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        OptionError: a number is none.
        SourceError: the command that runs for hours has ended by itself.
    """
    if options.hours is not None:
        from benchmarks.questions.soak_hours import measure_hours  # packages that only this needs

        measure_hours(options.hours, options.plot, options.json)
        return
    try:
        width, height = (int(part) for part in options.size.split("x"))
    except ValueError as error:
        raise OptionError(f"--size: expected WxH, got {options.size}") from error
    if options.frames < 2 * _EVERY:
        raise OptionError(f"--frames: expected {2 * _EVERY} or more, got {options.frames}")
    keep_freed_memory()  # as the command does
    source = _Camera((height, width), options.frames)
    samples = _Samples(source, options.frames)
    renderer = Renderer(Look(mode=options.render), "binary")
    start_s = time.perf_counter()
    with Sleeper(options.engine_ms) as engine:
        views = Views(renderer, refine=Steady("on", False, "binary", renderer, [source]))
        run(source, engine, views, [NullSink("null", source.info, renderer), samples])
    elapsed_s = time.perf_counter() - start_s
    snapshot = source.telemetry.snapshot()
    rows = samples.rows
    warm = next((row for row in rows if row["frames"] >= min(WARM_UP, options.frames // 2)), rows[0])
    growth_mb = max(row["resident_mb"] for row in rows if row["frames"] >= warm["frames"]) - warm["resident_mb"]
    print("| frames | resident MB | threads | open files | age p99 ms |\n|---|---|---|---|---|")
    for row in rows[:: max(1, len(rows) // 10)]:
        print(
            f"| {row['frames']} | {row['resident_mb']:.2f} | {row['threads']} | {row['open_files']} | {row['age_p99_ms']:.1f} |"
        )
    print(
        f"{options.frames} frames in {elapsed_s:.0f} s; {snapshot.frames_in} in = {snapshot.frames_out} out + "
        f"{sum(snapshot.dropped.values())} dropped"
    )
    print(f"soak_growth_mb: {growth_mb:.3f}")
    print(EXPLAINED)
    if options.plot:
        from benchmarks.shared.plots import lines, write_plot

        line = [(row["frames"], row["resident_mb"]) for row in rows]
        write_plot(options.plot, lines("Memory over a long run", "frames", "resident MB", {"": {"memory": line}}))
    if options.json:
        write_result(
            Path(options.json),
            "soak",
            {
                "size_wh": [width, height],
                "frames": options.frames,
                "seconds": round(elapsed_s, 1),
                "dropped": dict(snapshot.dropped),
                "table": rows,
                "ratios": {"soak_growth_mb": round(growth_mb, 3)},
            },
        )


class _Camera(Source):
    """New frames without end until so many were written; faster than the engine, so that frames are dropped all the time."""

    def __init__(self, size_hw: tuple[int, int], count: int) -> None:
        self.info = SourceInfo("camera", "made up", size_hw, live=True)
        self._texture = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
        self._count = count
        self.done = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self.done.is_set():
            # New memory for each, as from a decoder.
            yield Frame(np.roll(self._texture, index, axis=1), index, index / 60, "camera", f"{index:06d}")
            index += 1
            time.sleep(0.0005)

    def close(self) -> None:
        self.done.set()


class _Samples(Sink):
    """Takes stock every 100 frames."""

    def __init__(self, source: _Camera, count: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._source, self._count, self._frames = source, count, 0

    def write(self, frame: Frame) -> None:
        self._frames += 1
        self.stopped = self._frames >= self._count
        if self._frames % _EVERY == 0:
            gc.collect()
            self.rows.append(
                {
                    "frames": self._frames,
                    "resident_mb": round(resident_bytes() / 1e6, 3),
                    "threads": threading.active_count(),
                    "open_files": len(os.listdir("/proc/self/fd")),
                    "age_p99_ms": round(self._source.telemetry.snapshot().age_p99_ms, 2),
                }
            )


def resident_bytes() -> int:
    """Memory of this process that lies in the machine's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
