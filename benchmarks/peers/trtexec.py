"""NVIDIA's own programs on a bundle's plan, ``trtexec`` and ``tensorrt_rtx``, beside our engine with the same plan and our pipeline.

They measure the engine alone: copies to the GPU and back and the network, on numbers made up, nothing decoded, drawn or written. So
does our engine alone, on frames that lie in memory; our pipeline decodes and draws, and writes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.on_gpu import require_driver, require_plan
from benchmarks.peers.runs import Job
from benchmarks.shared.passes import Repeated, alone_hz, pipeline_pass, read_images
from benchmarks.shared.process import in_its_own_process
from pipeline.bundles.bundle import FRAMES, Bundle
from pipeline.bundles.plan import read_plan
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import open_engine
from pipeline.engines.gpu import find_gpu
from pipeline.engines.tensorrt_library import load_tensorrt
from pipeline.errors import BackendUnavailableError, PlanError
from pipeline.frames.pixels import frames_shape

SECONDS = 3.0
"""How long each measures, which is what NVIDIA's programs do unless they are told."""

_LIMIT_S = 300
# Our engine has graphs, and its frames and masks are copied. TensorRT 10 copies unless it is told not to, and has graphs only if it is
# told; 11 and TensorRT-RTX the other way round. Of each line the first that a version knows; waiting as NVIDIA's guides have it.
_OPTIONS = (
    ("--rtxCudaGraphStrategy=wholeGraph", "--useCudaGraph"),
    ("--includeDataTransfers",),
    ("--useSpinWait",),
)
_OPTION = re.compile(r"^\s+(--\w+)", re.MULTILINE)  # as --help lists them
# Lines begin with a date and a level in brackets. "H2D Latency" is another line.
_THROUGHPUT = re.compile(r"^(?:\[[^]]*\] *)*Throughput: ([0-9.e+]+) qps", re.MULTILINE)
_MEDIANS = re.compile(r"^(?:\[[^]]*\] *)*(Latency|GPU Compute Time): min = .*\bmedian = ([0-9.e+-]+) ms", re.MULTILINE)


@dataclass(frozen=True)
class Tool:
    """A program of NVIDIA's, the runtime whose plans it takes, and where it lies besides ``PATH``."""

    runtime: str
    places: tuple[str, ...]
    install: str


TOOLS: dict[str, Tool] = {
    "trtexec": Tool(
        "tensorrt",
        ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin"),  # JetPack's and Debian's package; NVIDIA's containers
        "sudo apt install libnvinfer-bin, or TensorRT's archive",
    ),
    "tensorrt_rtx": Tool("tensorrt-rtx", (), "TensorRT-RTX's archive, its bin folder on PATH"),
}
"""Programs by their names, which are the keys of their rows and ratios."""


@dataclass(frozen=True)
class Summary:
    """What such a program printed.

    Attributes:
        fps: its throughput; a query is one frame.
        compute_ms: of the GPU for a frame, median.
        latency_ms: the same with both copies, median.
    """

    fps: float
    compute_ms: float
    latency_ms: float


@dataclass(frozen=True)
class Rates:
    """Ours with the same plan, frames per second."""

    alone_hz: float
    pipeline_hz: float
    engine: str


def rows(job: Job, names: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each program: what it measured, or why it is not here."""
    for name in names:
        row: dict[str, Any] = {"tool": name, "label": name}
        try:
            yield {**row, **_in_turn(job, name, rounds)}
        except (BackendUnavailableError, PlanError) as error:
            yield {**row, "missing": str(error)}


def ratios(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Frames per second of our engine alone, and of our pipeline, by those of each program that was here."""
    measured = [row for row in found if "ours_over" in row]
    return {f"fps_over_{row['tool']}": row["ours_over"] for row in measured} | {
        f"pipeline_fps_over_{row['tool']}": row["pipeline_over"] for row in measured
    }


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows, with what they are above them."""
    yield "The engine alone, by NVIDIA's programs and by ours with the same plan: nothing decoded, drawn or written; and our pipeline"
    yield "| | its FPS | on the GPU, ms | with copies, ms | our engine | ours / its | our pipeline | ours / its |"
    yield "|---" * 8 + "|"
    for row in found:
        if "missing" in row:
            yield f"| {row['label']} | {row['missing']} |" + " |" * 6
            continue
        cells = [
            f"{row['fps']:.2f}",
            f"{row['compute_ms']:.3f}",
            f"{row['latency_ms']:.3f}",
            f"{row['engine_fps']:.2f}",
        ]
        cells += [f"{row['ours_over']:.3f}", f"{row['pipeline_fps']:.2f}", f"{row['pipeline_over']:.3f}"]
        yield f"| {row['label']} {row['version']} | " + " | ".join(cells) + " |"


def find_program(name: str) -> Path:
    """Where a program is: on ``PATH``, or where NVIDIA's packages put it.

    Raises:
        BackendUnavailableError: it is not here.
    """
    tool = TOOLS[name]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(tool.places))
    if found is None:
        where = " or in ".join(("on PATH", *tool.places))
        raise BackendUnavailableError(f"not here: no {name} {where}: install {tool.install}")
    return Path(found)


def command(program: Path, bundle: Bundle, entry: PlanEntry, size_hw: tuple[int, int]) -> list[str]:
    """What measures a plan with one frame of a size at a time.

    Args:
        program: where it is.
        bundle: the plan's.
        entry: the plan's, of the manifest.
        size_hw: (height, width) of the frames.

    Raises:
        BackendUnavailableError: the program does not start, or the plan composes.
    """
    manifest = bundle.manifest
    if manifest.composes:
        raise BackendUnavailableError(
            f"{program.name}: expected a bundle without views, which it would copy down with every frame and ours does not, "
            "got one of --compose device: give another --model"
        )
    known = set(_OPTION.findall(_call([str(program), "--help"]).stdout))
    options = [f"--loadEngine={bundle.folder / entry.file}"]
    smallest, _, largest = entry.profile
    if smallest != largest:  # else the plan has one shape, and takes no other
        options.append(f"--shapes={FRAMES}:{'x'.join(map(str, frames_shape(manifest.pixels, 1, size_hw)))}")
    if entry.version_compatible:
        options.append("--versionCompatible")  # the plan carries code of its own, which must be allowed to run
    if entry.dla_core is not None:
        options.append(f"--useDLACore={entry.dla_core}")
    for ways in _OPTIONS:
        options += [option for option in ways if option.partition("=")[0] in known][:1]
    return [str(program), *options]


def measured_by(arguments: Sequence[str]) -> Summary:
    """Run a program and read its summary.

    Raises:
        BackendUnavailableError: it fails, or prints none.
    """
    done = _call(arguments)
    name = Path(arguments[0]).name
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
        said = " | ".join(line.partition("[E]")[2].strip() for line in lines[:2]) or f"exit status {done.returncode}"
        raise BackendUnavailableError(f"{name}: expected it to run, got {said[:300]}")
    throughput, times = _THROUGHPUT.search(done.stdout), dict(_MEDIANS.findall(done.stdout))
    if throughput is None or len(times) != 2:
        raise BackendUnavailableError(
            f"{name}: expected throughput, latency and compute time in what it prints, got none"
        )
    return Summary(float(throughput[1]), float(times["GPU Compute Time"]), float(times["Latency"]))


def our_rates(job: Job, backend: str, seconds: float) -> Rates:
    """Our engine alone and our pipeline to nowhere, in this process."""
    with open_engine(job.bundle, backend) as engine:
        images = read_images(str(job.clip), pixels=engine.pixels)
        alone_hz(engine, images, engine.in_flight + 1)  # warm
        tried = max(3, round(alone_hz(engine, images, 3) * min(0.5, seconds)))
        count = max(3, round(alone_hz(engine, images, tried) * seconds))
        alone = alone_hz(engine, images, count)
        whole = pipeline_pass(engine, Repeated(str(job.clip), count)).hz
        return Rates(alone, whole, engine.description)


def _in_turn(job: Job, name: str, rounds: int) -> dict[str, Any]:
    tool = TOOLS[name]
    program = find_program(name)
    require_plan(job.bundle, tool.runtime)
    require_driver()
    entry, version = in_its_own_process(_plan_here, job.bundle, tool.runtime)
    arguments = command(program, job.bundle, entry, job.size_hw)
    theirs, ours = [], []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
        if number % 2:
            ours.append(in_its_own_process(our_rates, job, tool.runtime, SECONDS))
        theirs.append(measured_by(arguments))
        if not number % 2:
            ours.append(in_its_own_process(our_rates, job, tool.runtime, SECONDS))
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "version": version,
        "engine": ours[0].engine,
        "options": arguments[2:],  # after the plan's path
        "fps": round(statistics.median(one.fps for one in theirs), 4),
        "compute_ms": round(statistics.median(one.compute_ms for one in theirs), 4),
        "latency_ms": round(statistics.median(one.latency_ms for one in theirs), 4),
        "engine_fps": round(statistics.median(one.alone_hz for one in ours), 4),
        "pipeline_fps": round(statistics.median(one.pipeline_hz for one in ours), 4),
        "ours_over": round(statistics.median(one.alone_hz / other.fps for one, other in pairs), 4),
        "pipeline_over": round(statistics.median(one.pipeline_hz / other.fps for one, other in pairs), 4),
    }


def _plan_here(bundle: Bundle, runtime: str) -> tuple[PlanEntry, str]:
    """The entry of the plan that our engine takes on this machine, checked, and the runtime's version."""
    gpu = find_gpu()
    version = str(load_tensorrt(runtime).__version__)
    entry, _ = read_plan(bundle, runtime, version, gpu.sm, gpu.name)
    return entry, version


def _call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailableError(f"{Path(arguments[0]).name}: expected it to run, got {error}") from error
