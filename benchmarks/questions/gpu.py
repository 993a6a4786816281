"""What does an NVIDIA GPU make of the frame program? Decoding, copies, PyTorch, TensorRT, and the pipeline against its engine alone."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.gpu.rows import Rows, Setup, ratios, read_rows, table
from benchmarks.gpu.smi import nvidia_smi
from benchmarks.shared.environment import write_result
from pipeline.command.command_line import OptionParser
from pipeline.errors import BackendUnavailableError, OptionError

PARTS = {
    # part: (module, function, seconds that it may take, runs without a GPU too). Each in a process of its own: an error of CUDA or a
    # crash stays in it, and PyTorch's CUDA libraries are not beside TensorRT's. The most telling first, for time may run out.
    "machine": ("benchmarks.questions.gpu", "measure_machine", 40, True),
    "decoding": ("benchmarks.gpu.decoding", "measure_decoders", 60, False),
    "copies": ("benchmarks.gpu.tensorrt_rtx", "measure_copies", 40, False),
    "rtx-current": ("benchmarks.gpu.tensorrt_rtx", "measure_current", 60, False),
    "device-frames": ("benchmarks.gpu.decoding", "measure_device_frames", 150, False),
    "torch": ("benchmarks.gpu.torch_program", "measure_eager_and_graphs", 90, True),
    "pipeline-torch": ("benchmarks.gpu.torch_engine", "measure_torch", 90, True),
    "pipeline-rtx": ("benchmarks.gpu.in_pipeline", "measure_tensorrt_rtx", 60, False),
    "auto": ("benchmarks.gpu.in_run", "measure_auto", 120, True),
    "swap": ("benchmarks.gpu.in_run", "measure_swap", 120, True),
    "audit": ("benchmarks.gpu.in_run", "measure_audit", 120, True),
    "rtx-sm80": ("benchmarks.gpu.tensorrt_rtx", "measure_sm80", 60, False),
    "torch-compile": ("benchmarks.gpu.torch_program", "measure_compiled", 150, True),
}
_PACKAGES = ("torch", "triton", "pycuda", "cuda-bindings", "tensorrt-rtx-cu13-bindings", "onnxruntime", "numpy", "av")
_SMI_FIELDS = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem"),
    *("power.limit", "pstate"),
)


EXPLAINED = """
decoding: frames per second of a video decoded by NVDEC (--decode cuda) and by FFmpeg on the CPU; stayed: frames that never came down;
          PSNR: of a video whose views NVENC took from the GPU's memory, beside one whose views came through the CPU.
run: the largest gap between two frames while another engine takes over; throughput with audits relative to that without.
frame program: ms on the GPU for a frame, frames and masks lying there; max: the largest difference from the CPU's mask, of 255.
pipeline: decoding, drawing and writing around an engine; ratio: its throughput relative to the engine alone, 1 is all of it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks gpu`` is asked.

    Attributes:
        data: the folder that ``benchmarks/gpu.sh prepare`` wrote.
        limit: begin nothing after so many seconds.
        device: "cuda", or "cpu" to try the code.
        quick: small frames and few runs, to try the code.
        part: this part alone, in this process; None: those of ``parts``, each in a process of its own.
        parts: these alone, in this order; None: all.
        rows: where a process of its own leaves its rows.
        json: a file for the result; None: no file.
    """

    data: str
    limit: float
    device: str
    quick: bool
    part: str | None
    parts: list[str] | None
    rows: Path | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks gpu`` takes."""
    parser.add_argument(
        "--data",
        default=".gpu",
        metavar="DIR",
        help="what benchmarks/gpu.sh prepare wrote: bundles, weights, clip (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=330,
        metavar="S",
        help="start no further part after this many seconds (default: %(default)s)",
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick", action="store_true", help=argparse.SUPPRESS
    )  # small frames, few runs: to try the code
    parser.add_argument("--part", choices=PARTS, help="run only this part, in this process")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", help=f"run these parts alone: {', '.join(PARTS)}"
    )
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # where a process of its own leaves its rows


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        BackendUnavailableError: there is no GPU.
        OptionError: what was to be prepared is not there.
    """
    if options.device == "cuda" and not nvidia_smi(("name",)):
        raise BackendUnavailableError(
            "gpu: expected an NVIDIA GPU, got none (nvidia-smi names none): run it on a machine that has one"
        )
    if not (Path(options.data) / "bundle-fp32").is_dir():
        raise OptionError(
            f"--data {options.data}: expected bundle-fp32, bundle-fp16, their weights and clip.mp4, got no bundle-fp32: "
            "make them with benchmarks/gpu.sh prepare"
        )
    if options.part is not None:
        rows = Rows(options.rows)
        module_name, function, _, _ = PARTS[options.part]
        with rows.item(options.part, "all of it"):
            setup = Setup(Path(options.data), options.device, options.quick)
            getattr(importlib.import_module(module_name), function)(setup, rows)
        if options.rows is None:
            print("\n".join(table(rows.rows)))
        return
    rows_of_all: list[dict[str, object]] = []
    end_s = time.monotonic() + options.limit
    for part in options.parts or PARTS:
        _, _, limit_s, anywhere = PARTS[part]
        if options.device == "cuda" or anywhere:
            rows_of_all += _in_process(part, min(limit_s, end_s - time.monotonic()), options)
            if options.json:  # after each part, so that a result is there whatever ends this one
                write_result(
                    Path(options.json),
                    "gpu",
                    {
                        "device": options.device,
                        "quick": options.quick,
                        "table": rows_of_all,
                        "ratios": ratios(rows_of_all),
                    },
                )
    print("\n".join(table(rows_of_all)))
    print(EXPLAINED)


def measure_machine(_: Setup, rows: Rows) -> None:
    """The GPU and the versions of what was measured."""
    with rows.item("machine", "gpu") as row:
        row.update(nvidia_smi(_SMI_FIELDS))
    with rows.item("machine", "versions") as row:
        row["python"] = platform.python_version()
        for package in _PACKAGES:
            try:
                row[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                row[package] = "none"
    with rows.item("machine", "cuda") as row:
        import torch

        row["cuda of torch"] = torch.version.cuda or "none"
        if torch.cuda.is_available():
            row["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            row["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))


def _in_process(part: str, limit_s: float, options: Options) -> list[dict[str, object]]:
    if limit_s < 5:
        return [
            {
                "part": part,
                "what": "all of it",
                "error": f"not begun: the limit of {options.limit:.0f} s is reached: --parts {part}",
            }
        ]
    with tempfile.TemporaryDirectory(prefix="edgemask.") as scratch:
        path = Path(scratch) / "rows"
        command = [sys.executable, "-m", "benchmarks", "gpu", "--part", part, "--rows", str(path)]
        command += ["--data", str(options.data), "--device", options.device, *(["--quick"] if options.quick else [])]
        search_path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        start_s = time.monotonic()
        log = Path(scratch) / "log"
        with log.open("wb") as errors:  # a file, for what a part leaves running would keep a pipe open
            try:
                status = subprocess.run(
                    command,
                    env={**os.environ, "PYTHONPATH": search_path},
                    stderr=errors,
                    timeout=limit_s,
                    check=False,
                ).returncode
                problem = f"ended with status {status}" if status else ""
            except subprocess.TimeoutExpired:
                problem = f"ended after {limit_s:.0f} s, its limit"
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        print(said, file=sys.stderr, end="\n" if said else "")
        if problem and said:
            problem += f": {said.splitlines()[-1]}"
        # The row of the whole part says whether it came to its end.
        found = [row for row in read_rows(path) if row["what"] != "all of it" or "error" in row]
        if problem:
            found.append({"part": part, "what": "all of it", "error": problem})
    return [{**row, "process": part} for row in found] + [
        {"part": "time", "what": part, "took_s": round(time.monotonic() - start_s, 1)}
    ]
