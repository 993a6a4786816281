"""Does the shadow gate (--audit) make frames wait? Throughput with it over throughput without, the engine alone on one core.

The engine and all that hands frames over are confined to one core, the process that computes in FP32 may take any. Passes with and
without it alternate, and a ratio is of two that follow each other: what else the machine does is the same in both, mostly.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.environment import write_result
from benchmarks.shared.passes import read_images
from pipeline.audit.rate import Rate, parse_rate
from pipeline.audit.shadow_gate import ShadowGate
from pipeline.builds.model_name import open_model
from pipeline.command.command_line import OptionParser, whole_number
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines.base import Engine
from pipeline.engines.onnxruntime import OnnxRuntimeEngine
from pipeline.errors import OptionError
from pipeline.flow.inference import infer
from pipeline.frames.frame import Frame, Image
from pipeline.stages.stage_timer import StageTimer

_BEGINS_S = 120.0

EXPLAINED = """
FPS: frames per second of the engine, median of the passes; CPU: processor time of its process per frame. Ratios are medians of
pairs of passes: rate with over without, and processor time without over with, which other programs on the machine change less."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks audit`` is asked.

    Attributes:
        clip: a video.
        model: a bundle's folder or a published network's name; it must have its program in FP32.
        rate: as ``--audit`` takes it.
        frames: per pass.
        pairs: of passes.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    clip: str
    model: str
    rate: str
    frames: int
    pairs: int
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks audit`` takes."""
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", default="1/10", metavar="RATE", help="how often, as --audit takes it (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=whole_number(1), default=40, metavar="N", help="frames of a pass (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs", type=whole_number(1), default=15, metavar="N", help="pairs of passes (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the rates")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read, or the machine has one core.
    """
    rate = parse_rate(options.rate)
    if not isinstance(rate, Rate):
        raise OptionError(f"--rate: expected a rate such as 1/10 or 1/min, got {options.rate}")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise OptionError("audit: expected two cores or more, one of them for the audits, got one")
    keep_freed_memory()  # as the command does
    bundle = open_model(options.model)
    images = read_images(options.clip, bundle.manifest.pixels)
    gate = ShadowGate(bundle, rate)
    try:
        with _on_one_core(cores), OnnxRuntimeEngine(bundle, aside=True) as engine:
            _wait_for(gate, lambda: gate.newest("") is not None, engine, images)
            before = gate.state()
            pairs = [_pair(gate, engine, images, options.frames, index % 2 == 0) for index in range(options.pairs)]
            after = gate.state()
    finally:
        gate.close()
    audits, skipped = (after[name] - before[name] for name in ("total", "skipped"))
    _tell(options, pairs, audits, skipped)


class _Pass(NamedTuple):
    hz: float
    cpu_ms: float


def _pair(
    gate: ShadowGate, engine: Engine, images: Sequence[Image], frames: int, with_it_first: bool
) -> tuple[_Pass, _Pass]:
    """A pass without audits and one with them."""
    found = {with_it: _pass(gate, engine, images, frames, with_it) for with_it in (with_it_first, not with_it_first)}
    return found[False], found[True]


def _pass(gate: ShadowGate, engine: Engine, images: Sequence[Image], frames: int, with_it: bool) -> _Pass:
    _wait_for(gate, lambda: not gate.is_busy)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    _run(gate, engine, images, frames, gate.computed if with_it else lambda _: None)
    hz = frames / (time.perf_counter() - start_s)
    return _Pass(hz, (time.process_time() - start_cpu_s) / frames * 1e3)


def _run(
    gate: ShadowGate, engine: Engine, images: Sequence[Image], count: int, computed: Callable[[Frame], None]
) -> None:
    kind = engine.pixels
    frames = (Frame(images[index % len(images)], index, index / 25, "", "", format=kind) for index in range(count))
    for _ in infer(frames, engine, StageTimer(), computed=computed):
        gate.pulse()


def _wait_for(
    gate: ShadowGate, condition: Callable[[], bool], engine: Engine | None = None, images: Sequence[Image] = ()
) -> None:
    """Until it is so; with an engine, frames are handed over meanwhile."""
    end_s = time.monotonic() + _BEGINS_S
    while not condition():
        if time.monotonic() > end_s:
            raise OptionError(
                f"audit: expected an audit within {_BEGINS_S:.0f} s, got none: end what else runs on this machine"
            )
        if engine is not None:
            _run(gate, engine, images, 1, gate.computed)
        else:
            gate.pulse()
        time.sleep(0.01)


@contextmanager
def _on_one_core(cores: Sequence[int]) -> Iterator[None]:
    """All threads of this process on the first core; what it has started before stays where it is."""

    def move(to: Sequence[int]) -> None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), to)

    move(cores[:1])
    try:
        yield
    finally:
        move(cores)


def _tell(options: Options, pairs: Sequence[tuple[_Pass, _Pass]], audits: int, skipped: int) -> None:
    without, with_it = zip(*pairs, strict=True)
    table = [
        {
            "audit": name,
            "hz": round(statistics.median(one.hz for one in passes), 4),
            "cpu_ms": round(statistics.median(one.cpu_ms for one in passes), 4),
        }
        for name, passes in (("off", without), (options.rate, with_it))
    ]
    rates, times = [b.hz / a.hz for a, b in pairs], [a.cpu_ms / b.cpu_ms for a, b in pairs]
    ratios = {
        "rate_with_over_without": round(statistics.median(rates), 4),
        "cpu_without_over_with": round(statistics.median(times), 4),
    }
    print("| --audit | FPS | CPU ms |\n|---|---|---|")
    for row in table:
        print(f"| {row['audit']} | {row['hz']:.2f} | {row['cpu_ms']:.2f} |")
    print(EXPLAINED)
    print(f"audits: {audits} made, {skipped} skipped")
    for name, value in ratios.items():
        print(f"{name}: {value:g}")
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [(f"--audit {row['audit']}", float(row["hz"])) for row in table]
        write_plot(options.plot, bars("Throughput with and without the shadow gate", "frames per second", named))
    if options.json:
        result = {
            "model": options.model,
            "rate": options.rate,
            "frames": options.frames,
            "pairs": [{"rate": round(rate, 4), "cpu": round(cpu, 4)} for rate, cpu in zip(rates, times, strict=True)],
            "audits": audits,
            "skipped": skipped,
            "table": table,
            "ratios": ratios,
        }
        write_result(Path(options.json), "audit", result)
