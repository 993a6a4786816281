"""The part of ``python -m benchmarks scale`` that is about a corpus: workers, shards, Ray, and a rerun of what is done."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.shared.measured import Measured
from pipeline.command.command_line import OptionParser
from pipeline.errors import EdgemaskError, OptionError
from pipeline.own_process import HOME, module_command
from pipeline.sinks.pictures import write_picture
from pipeline.sources import open_source

CLIP = Path(HOME) / "samples" / "clip.mp4"

_LABELS = {
    "corpus_two_workers_over_one": "corpus: two workers over one",
    "corpus_ray_over_shards": "corpus: Ray over two shards",
    "corpus_rerun_share": "corpus: time of the rerun",
}

EXPLAINED = """
Seconds from the command to its end, the start of its processes included; the median of some runs, and all ways take turns.
corpus_two_workers_over_one: how many times as fast two workers are as one on this machine; a CPU's cores are shared by both.
corpus_ray_over_shards: the throughput of two workers on Ray over that of two shards at once; Ray's start counts.
corpus_rerun_share: what a run over a finished corpus takes, over the one that has done it."""


def add_options(parser: OptionParser) -> None:
    """Add what this part takes."""
    parser.add_argument(
        "--pictures", type=int, default=40, metavar="N", help="pictures of the corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=3,
        metavar="N",
        help="how often each way to do it is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--ray", metavar="DIR", help="where tests/install-ray has put Ray (default: where make test puts it)"
    )


def measure(model: str, pictures: int, runs: int, ray: str | None = None) -> Measured:
    """Measure a corpus of pictures of the sample clip, in several ways.

    Args:
        model: a bundle, or the name of a network.
        pictures: how many.
        runs: how often each way is measured.
        ray: where Ray is installed, if it is not in this environment; None: where ``make test`` puts it.

    Raises:
        EdgemaskError: a way fails, or a number is below 1.
    """
    for name, value in (("--pictures", pictures), ("--runs", runs)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    ways: dict[str, Callable[[Path], float]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        _write_corpus(source, pictures)
        timed = partial(_timed, source, model)
        ways["one worker"] = timed
        ways["two workers"] = partial(timed, several=[["--workers", "2"]])
        ways["two shards at once"] = partial(timed, several=[["--shard", "0/2"], ["--shard", "1/2"]])
        with_ray = _environment_with_ray(ray)
        if with_ray is not None:
            ways["Ray, two workers"] = partial(timed, several=[["--on", "ray", "--workers", "2"]], environment=with_ray)
        else:
            left_out["Ray, two workers"] = (
                "Ray is not here: pip install 'edgemask[ray]', or tests/install-ray DIR and --ray DIR"
            )
        seconds: dict[str, list[float]] = {}
        for number in range(runs):
            for way, run in ways.items():
                output = Path(folder, f"out-{number}-{way}")
                seconds.setdefault(way, []).append(run(output))
            seconds.setdefault("again, all done", []).append(timed(Path(folder, f"out-{number}-one worker")))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    ratios = {
        "corpus_two_workers_over_one": medians["one worker"] / medians["two workers"],
        "corpus_rerun_share": medians["again, all done"] / medians["one worker"],
    }
    if "Ray, two workers" in medians:
        ratios["corpus_ray_over_shards"] = medians["two shards at once"] / medians["Ray, two workers"]
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    rows = [(way, f"{taken_s:.1f}") for way, taken_s in medians.items()] + list(left_out.items())
    table = [{"way": way, "seconds": round(taken_s, 2)} for way, taken_s in medians.items()]
    return Measured(
        ["| corpus | s |", "|---|---|", *(f"| {way} | {what} |" for way, what in rows), EXPLAINED, *_told(ratios)],
        table + [{"way": way, "left_out": why} for way, why in left_out.items()],
        ratios,
        [(label, ratios[name]) for name, label in _LABELS.items() if name in ratios],
    )


def _environment_with_ray(folder: str | None) -> Mapping[str, str] | None:
    """The environment of a command that finds Ray; None where it is not installed."""
    # One of our own on this machine, and not the cluster that somebody else works on, which Ray would find.
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    if folder is None:
        if importlib.util.find_spec("ray") is not None:
            return environment
        folder = os.environ.get("EDGEMASK_TEST_RAY") or str(Path(sys.prefix) / "ray")
    if not Path(folder, "ray").is_dir():
        return None
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))
    return {**environment, "PYTHONPATH": path}


def _told(ratios: dict[str, float]) -> list[str]:
    return [f"{name}: {value:g}" for name, value in ratios.items()]


def _write_corpus(folder: Path, pictures: int) -> None:
    folder.mkdir()
    with open_source(str(CLIP)) as clip:
        frames = [frame.image for frame, _ in zip(clip, range(pictures), strict=False)]
    for number in range(pictures):
        write_picture(folder / f"{number:05d}.jpg", frames[number % len(frames)])


def _timed(
    source: Path,
    model: str,
    output: Path,
    several: list[list[str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Seconds until all of some commands that run at once have ended."""
    words = ["--source", str(source), "--output", str(output), "--model", model, "--quiet"]
    start_s = time.perf_counter()
    running = [
        subprocess.Popen(
            [*module_command("pipeline.corpus"), *words, *more],
            stdout=subprocess.DEVNULL,  # Ray's own words, as it ends
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for more in several or [[]]
    ]
    said = [process.communicate()[1] for process in running]
    elapsed_s = time.perf_counter() - start_s
    if any(process.returncode for process in running):
        raise EdgemaskError(f"corpus: expected a run without failures, got: {' '.join(' '.join(said).split())[-300:]}")
    return elapsed_s
