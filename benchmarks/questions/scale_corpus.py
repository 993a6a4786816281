"""The part of ``python -m benchmarks scale`` that is about a corpus: workers, shards, Ray, and a rerun of what is done."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import EdgemaskError
from pipeline.own_process import HOME, module_command
from pipeline.sinks.pictures import write_picture
from pipeline.sources import open_source

CLIP = Path(HOME) / "samples" / "clip.mp4"

EXPLAINED = """
Seconds from the command to its end, the start of its processes included; the median of some runs, and all ways take turns.
corpus_two_workers_over_one: how many times as fast two workers are as one on this machine; a CPU's cores are shared by both.
corpus_ray_over_shards: the throughput of two workers on Ray over that of two shards at once; Ray's start counts.
corpus_rerun_share: what a run over a finished corpus takes, over the one that has done it."""


@dataclass(frozen=True, slots=True)
class CorpusTimes:
    """What was measured.

    Attributes:
        seconds: median by way.
        ratios: as in `EXPLAINED`.
        left_out: why a way was not measured, by way.
    """

    seconds: Mapping[str, float]
    ratios: Mapping[str, float]
    left_out: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "seconds": {way: round(seconds, 2) for way, seconds in self.seconds.items()},
            "left_out": dict(self.left_out),
        }

    def table(self) -> str:
        """For people."""
        rows = [f"| {way} | {seconds:.1f} |" for way, seconds in self.seconds.items()]
        rows += [f"| {way} | {why} |" for way, why in self.left_out.items()]
        return "\n".join(["| corpus | s |", "|---|---|", *rows])


def measure_corpus(model: str, pictures: int, runs: int) -> CorpusTimes:
    """Measure a corpus of pictures of the sample clip, in several ways.

    Args:
        model: a bundle, or the name of a network.
        pictures: how many.
        runs: how often each way is measured.

    Raises:
        EdgemaskError: a way fails.
    """
    ways: dict[str, Callable[[Path], float]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        _write_corpus(source, pictures)
        timed = partial(_timed, source, model)
        ways["one worker"] = timed
        ways["two workers"] = partial(timed, several=[["--workers", "2"]])
        ways["two shards at once"] = partial(timed, several=[["--shard", "0/2"], ["--shard", "1/2"]])
        if importlib.util.find_spec("ray") is not None:
            ways["Ray, two workers"] = partial(timed, several=[["--on", "ray", "--workers", "2"]])
        else:
            left_out["Ray, two workers"] = "Ray is not here: pip install 'edgemask[ray]'"
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
    return CorpusTimes(medians, {name: round(value, 3) for name, value in ratios.items()}, left_out)


def _write_corpus(folder: Path, pictures: int) -> None:
    folder.mkdir()
    with open_source(str(CLIP)) as clip:
        frames = [frame.image for frame, _ in zip(clip, range(pictures), strict=False)]
    for number in range(pictures):
        write_picture(folder / f"{number:05d}.jpg", frames[number % len(frames)])


def _timed(source: Path, model: str, output: Path, several: list[list[str]] | None = None) -> float:
    """Seconds until all of some commands that run at once have ended."""
    words = ["--source", str(source), "--output", str(output), "--model", model, "--quiet"]
    start_s = time.perf_counter()
    running = [
        subprocess.Popen([*module_command("pipeline.corpus"), *words, *more], stderr=subprocess.PIPE, text=True)
        for more in several or [[]]
    ]
    said = [process.communicate()[1] for process in running]
    elapsed_s = time.perf_counter() - start_s
    if any(process.returncode for process in running):
        raise EdgemaskError(f"corpus: expected a run without failures, got: {' '.join(' '.join(said).split())[-300:]}")
    return elapsed_s
