"""How long from the command to the first mask, beside what ONNX Runtime alone takes to import, load the program and run it once?

Processes of their own, in turn, from start to exit; the bundle is compiled already.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2

from benchmarks.shared.environment import write_result
from pipeline.builds.model_name import open_model
from pipeline.command.command_line import OptionParser
from pipeline.errors import OptionError
from pipeline.sources import open_source

# As short as it can be: what nobody who runs the program with ONNX Runtime can do without.
_RUNTIME = """
import sys
import numpy
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
frames = numpy.full((1, int(sys.argv[3]), int(sys.argv[2]), 3), 90, numpy.uint8)
assert session.run(None, {session.get_inputs()[0].name: frames})[0].dtype == numpy.uint8
"""


EXPLAINED = """
s: median time of a whole process, from its start to its exit. The last column: the same / that of a script that does nothing but
load the program into ONNX Runtime and run it once, which is the least that anybody can have."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks start`` is asked.

    Attributes:
        clip: a video.
        model: a bundle's folder or a published network's name.
        rounds: runs of each command.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    clip: str
    model: str
    rounds: int
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks start`` takes."""
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="runs of each command (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the times")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read.
    """
    if options.rounds < 1:
        raise OptionError(f"--rounds: expected 1 or more, got {options.rounds}")
    bundle = open_model(options.model)
    with open_source(options.clip) as source, TemporaryDirectory(prefix="edgemask.") as folder:
        frame = next(iter(source))
        picture = Path(folder) / "frame.png"
        picture.write_bytes(cv2.imencode(".png", frame.image)[1].tobytes())
        height, width = frame.size_hw
        program = str(bundle.program_path)
        pipeline = ("-m", "pipeline", "--model", str(bundle.folder), "--backend", "onnxruntime", "--quiet")
        commands: dict[str, tuple[str, ...]] = {
            "python": ("-c", "pass"),
            "help": ("-m", "pipeline", "--help"),
            "runtime": ("-c", _RUNTIME, program, str(width), str(height)),
            "video": (*pipeline, "--source", options.clip, "--max-frames", "1", "--output", "null"),
            "picture": (*pipeline, "--source", str(picture), "--render", "mask", "--output", f"{folder}/mask.png"),
        }
        runners = {name: _runner(command, Path(folder, "bytecode")) for name, command in commands.items()}
        times_s = _in_turn(runners, options.rounds)
    titles = {
        "python": "Python alone",
        "help": "python -m pipeline --help",
        "runtime": "ONNX Runtime alone: import, load, run once",
        "video": "first mask of a video",
        "picture": "mask of a picture, written",
    }
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "median_s": round(statistics.median(times), 4),
            "over_runtime": round(_median_ratio(times, times_s["runtime"]), 4),
        }
        for name, times in times_s.items()
    ]
    print("| command | s | of ONNX Runtime alone |\n|---|---|---|")
    for row in rows:
        print(f"| {titles[str(row['what'])]} | {row['median_s']:.3f} | {row['over_runtime']:.2f} |")
    print(EXPLAINED)
    found: dict[str, Any] = {
        "first_mask_over_runtime": next(row["over_runtime"] for row in rows if row["what"] == "video"),
        "help_s": next(row["median_s"] for row in rows if row["what"] == "help"),
    }
    for name, value in found.items():
        print(f"{name}: {value:g}")
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [(titles[str(row["what"])], float(row["median_s"])) for row in rows]
        write_plot(options.plot, bars("From the command to its end", "seconds", named))
    if options.json:
        write_result(
            Path(options.json),
            "start",
            {"model": bundle.manifest.model, "rounds": options.rounds, "table": rows, "ratios": found},
        )


def _runner(arguments: Sequence[str], bytecode: Path) -> Callable[[], None]:
    # Modules are compiled once, as those of an installed package are, whatever the environment says.
    environment = {**os.environ, "DISPLAY": "", "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def call() -> None:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode != 0:
            raise OptionError(f"{' '.join(arguments[:4])}: expected it to run, got {done.stderr.strip()[-200:]}")

    return call


def _in_turn(commands: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times_s: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):  # the first one reads files into memory, and compiles modules
        for name, command in commands.items():
            start_s = time.perf_counter()
            command()
            if number:
                times_s[name].append(time.perf_counter() - start_s)
    return times_s


def _median_ratio(times_s: Sequence[float], others_s: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(times_s, others_s, strict=True))
