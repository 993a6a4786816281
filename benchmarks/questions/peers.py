"""How many frames per second, beside rembg, supervision, loops with OpenCV and PyTorch, and trtexec: one clip, one network, in turn.

Ours is run with each output that others write: PNG masks and cut-outs as a command and in a process, and a video. The network is
compiled with the contract "official", which is what the others compute. FPS are end to end: reading, network, drawing, writing; of a
command also its start. What a GPU computes is compared with ours on the GPU, and only where the bundle has a plan for it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import trtexec as peers_trtexec
from benchmarks.peers.commands import rembg_command, rembg_loop
from benchmarks.peers.loops import opencv_dnn, opencv_onnxruntime, openvino, supervision
from benchmarks.peers.on_gpu import ALL_OURS, ON_GPU, TORCH_COMPILE, TORCH_TENSORRT
from benchmarks.peers.runs import Job, Run, Runner
from benchmarks.shared.bundles import read_or_compile
from benchmarks.shared.environment import write_result
from calibration.metrics.agreement import iou
from compile.networks.zoo import fetch
from pipeline.bundles.bundle import cache_folder
from pipeline.command.command_line import OptionParser
from pipeline.engines import ENGINES, open_engine
from pipeline.engines.measured import MeasuredEngine
from pipeline.errors import BackendUnavailableError, OptionError
from pipeline.frames.frame import Frame
from pipeline.machine.gpu_sign import is_seen
from pipeline.sources import open_source


@dataclass(frozen=True)
class Peer:
    """A tool: what the table calls it, the package it is in, which of ours writes the same, and how it runs."""

    label: str
    package: str
    ours: str
    runner: Runner


PEERS: dict[str, Peer] = {
    "rembg": Peer("rembg b -om", "rembg", "command_masks", partial(rembg_command, options=("-om",))),
    "rembg_cutouts": Peer("rembg b", "rembg", "command_cutouts", partial(rembg_command, options=())),
    "rembg_remove": Peer("rembg.remove(only_mask=True)", "rembg", "masks", rembg_loop),
    "supervision": Peer("OpenCV, ONNX Runtime, MaskAnnotator", "supervision", "video", supervision),
    "opencv": Peer("OpenCV, ONNX Runtime, numpy", "opencv-python", "video", opencv_onnxruntime),
    "opencv_dnn": Peer("OpenCV, cv2.dnn, numpy", "opencv-python", "video", opencv_dnn),
    "openvino": Peer("OpenCV, OpenVINO (its default), numpy", "openvino", "video", openvino),
    "openvino_fp32": Peer("OpenCV, OpenVINO (FP32), numpy", "openvino", "video", partial(openvino, precision="f32")),
    "torch_tensorrt": Peer("OpenCV, Torch-TensorRT, numpy", "torch-tensorrt", ON_GPU, TORCH_TENSORRT),
    "torch_compile": Peer("OpenCV, torch.compile, numpy", "torch", ON_GPU, TORCH_COMPILE),
}
"""Other tools by the key of their row and of their ratio."""

KEYS = (*PEERS, *peers_trtexec.TOOLS)

GOAL_OVER_REMBG = 1.3


EXPLAINED = """
FPS: end to end, from the start to the last file closed. Once it runs: from the first finished frame to the last. CPU ms: processor
time of a frame, which other work on the machine changes least. ours / its: above 1 edgemask is faster. IoU with ours: how much the
masks have in common, 1 is all."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks peers`` is asked.

    Attributes:
        clip: a video.
        model: a bundle's folder or a published network's name.
        network: the same network for the others, ONNX.
        frames: of each run.
        rounds: runs of each.
        backend: what ours runs on a CPU; None: what --backend auto finds out there.
        only: keys of the tools, KEY,…; None: all.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    clip: str
    model: str
    network: str | None
    frames: int
    rounds: int
    backend: str | None
    only: str | None
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks peers`` takes."""
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument(
        "--network",
        metavar="FILE.onnx",
        help="the same network as ONNX, for the other tools (default: the published file of --model)",
    )
    parser.add_argument("--frames", type=int, default=50, metavar="N", help="frames per run (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="runs of each command (default: %(default)s)"
    )
    parser.add_argument(
        "--backend",
        choices=[name for name, kind in ENGINES.own.items() if not kind.gpu and not kind.remote],
        help="what ours runs on the CPU (default: what --backend auto finds out to be the fastest there)",
    )
    parser.add_argument("--only", metavar="KEY,…", help=f"some of {', '.join(KEYS)} (default: all)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip cannot be read or is too short, the bundle is none for binary masks, or a tool fails.
    """
    for name, value in (("--frames", options.frames), ("--rounds", options.rounds)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    keys = _keys(options.only)
    with tempfile.TemporaryDirectory(prefix="edgemask.") as scratch:
        job = _job(options, Path(scratch))
        print(f"edgemask runs on {(backend := _found_out(job))}", file=sys.stderr)
        peers = [key for key in keys if key in PEERS]
        runs, missing = _in_turn(job, peers, options.rounds, Path(scratch))
        programs = [key for key in keys if key in peers_trtexec.TOOLS]
        engines = list(peers_trtexec.rows(job, programs, options.rounds))
    rows = [*_our_rows(runs, missing), *(_row(key, runs, missing) for key in peers)]
    manifest = job.bundle.manifest
    contract = manifest.contract["name"]
    height, width = job.size_hw
    print(
        f"{manifest.model}, {manifest.precision}, contract {contract}, {job.frames} frames of {job.clip.name} "
        f"({width}×{height}), median of {options.rounds} rounds"
    )
    if rows:
        print("\n".join(_table(rows)))
        print(EXPLAINED)
    if engines:
        print("\n".join(peers_trtexec.table(engines)))
    found = ratios(rows) | peers_trtexec.ratios(engines)
    for name, number in found.items():
        print(f"{name}: {number:g}")
    if shutil.which("nvidia-smi"):
        print("TensorRT and PyTorch on this machine's GPU: python -m benchmarks gpu")
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [(row["label"], row["ours_over"]) for row in rows if "ours_over" in row]
        marks = {"as fast": 1.0, "goal beside rembg": GOAL_OVER_REMBG}
        title = f"Throughput of edgemask beside other tools, end to end: {manifest.model}, {manifest.precision}"
        write_plot(options.plot, bars(title, "our frames per second / theirs", named, marks))
    if options.json:
        write_result(
            Path(options.json),
            "peers",
            {
                "clip": job.clip.name,
                "frames": job.frames,
                "rounds": options.rounds,
                "model": manifest.model,
                "contract": contract,
                "network_size_hw": manifest.network_size_hw,
                "precision": manifest.precision,
                "backend": backend,
                "table": rows,
                "engines": engines,
                "ratios": found,
            },
        )


def _found_out(job: Job) -> str:
    """What ours runs on, in words; where it is to find that out, after it has done so on the clip, as it would in a long run."""
    with open_engine(job.bundle, job.backend, overlap=True, tune=True) as engine:
        for frame in _again_and_again(job.clip):
            if not isinstance(engine, MeasuredEngine) or engine.is_done:
                break
            engine(frame.as_pixels(engine.pixels)[None])
        return engine.description


def _again_and_again(clip: Path) -> Iterator[Frame]:
    while True:
        with open_source(str(clip)) as source:
            yield from source


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Our FPS by those of each tool that was here, end to end, once both run and of processor time; and the IoU with rembg's masks."""
    measured = [row for row in rows if "ours_over" in row]
    found = {f"fps_over_{row['tool']}": row["ours_over"] for row in measured}
    found |= {f"running_fps_over_{row['tool']}": row["ours_over_running"] for row in measured}
    found |= {f"cpu_over_{row['tool']}": row["ours_over_cpu"] for row in measured}
    for row in measured:
        if row["tool"] == "rembg":
            found |= {"iou_with_rembg": row["iou_mean"], "iou_with_rembg_worst": row["iou_worst"]}
    return found


def _in_turn(job: Job, keys: Sequence[str], rounds: int, scratch: Path) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """The runs of each tool and each of ours that is compared, and what tools that are not here say.

    Each of ours is followed by those that write the same, in every second round the other way round. Round 0 is short and not
    counted: it finds out who is here, and rembg compiles code in its first run.
    """
    runs: dict[str, list[Run]] = {}
    missing: dict[str, str] = {}
    used = [name for name in ALL_OURS if any(PEERS[key].ours == name for key in keys)]
    for number in range(rounds + 1):
        given = job if number else _short(job)
        for ours in used:
            group: list[tuple[str, Runner]] = [(_ours_key(ours), ALL_OURS[ours][1])]
            group += [(key, PEERS[key].runner) for key in keys if PEERS[key].ours == ours]
            group = [(key, runner) for key, runner in group if key not in missing]
            for key, runner in group if number % 2 else group[::-1]:
                print(f"round {number} of {rounds}: {key}", file=sys.stderr)
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    try:
                        with redirect_stdout(sys.stderr):  # the table goes to standard output; tools talk
                            done = runner(given, Path(folder))
                    except BackendUnavailableError as error:
                        if key not in PEERS and ours != ON_GPU:
                            raise
                        missing[key] = str(error)
                        continue
                if len(done.masks) != given.frames:
                    raise OptionError(
                        f"--frames: expected a clip of {given.frames} frames or more, got {len(done.masks)} from {key}"
                    )
                if number:
                    runs.setdefault(key, []).append(done)
        if _ours_key(ON_GPU) in missing:  # with nothing to compare, nothing is measured
            for key in keys:
                if PEERS[key].ours == ON_GPU:
                    missing.setdefault(key, "not compared: ours on a GPU is not here")
    return runs, missing


def _short(job: Job) -> Job:
    return replace(job, frames=min(2, job.frames))


def _ours_key(name: str) -> str:
    return f"edgemask_{name}"


def _our_rows(runs: Mapping[str, Sequence[Run]], missing: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, (label, _) in ALL_OURS.items():
        key = _ours_key(name)
        named = {"tool": key, "label": f"edgemask, {label}", "version": ""}
        if key in runs:
            yield {**named, **_rates(runs[key])}
        elif key in missing:
            yield {**named, "missing": missing[key]}


def _row(key: str, runs: Mapping[str, Sequence[Run]], missing: Mapping[str, str]) -> dict[str, Any]:
    peer = PEERS[key]
    named = {"tool": key, "label": peer.label}
    if key in missing:
        return {**named, "version": "", "missing": missing[key]}
    theirs, ours = runs[key], runs[_ours_key(peer.ours)]
    ious = [iou(mask, other) for mask, other in zip(ours[0].masks, theirs[0].masks, strict=True)]
    pairs = list(zip(ours, theirs, strict=True))
    over = [one.fps / other.fps for one, other in pairs]
    return {
        **named,
        "version": _version(peer.package),
        **_rates(theirs),
        "ours_over": round(statistics.median(over), 4),
        "ours_over_each": [round(value, 4) for value in over],
        "ours_over_running": round(statistics.median(one.running_fps / other.running_fps for one, other in pairs), 4),
        "ours_over_cpu": round(statistics.median(other.cpu_s / one.cpu_s for one, other in pairs), 4),
        "iou_mean": round(float(np.mean(ious)), 5),
        "iou_worst": round(min(ious), 5),
    }


def _rates(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "fps": round(statistics.median(run.fps for run in runs), 4),
        "running_fps": round(statistics.median(run.running_fps for run in runs), 4),
        "cpu_ms": round(statistics.median(run.cpu_ms for run in runs), 2),
        "written_bytes": runs[0].written,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| | FPS | once it runs | CPU ms | ours / its | once both run | of CPU time | IoU with ours | worst | MB written |"
    yield "|---" * 10 + "|"
    for row in rows:
        name = f"{row['label']} {row['version']}".strip()
        if "missing" in row:
            yield f"| {name} | {row['missing']} |" + " |" * 8
            continue
        cells = [f"{row['fps']:.2f}", f"{row['running_fps']:.2f}", f"{row['cpu_ms']:.0f}"]
        names = {
            "ours_over": ".3f",
            "ours_over_running": ".3f",
            "ours_over_cpu": ".3f",
            "iou_mean": ".4f",
            "iou_worst": ".4f",
        }
        cells += [format(row[entry], text) if entry in row else "" for entry, text in names.items()]
        yield f"| {name} | " + " | ".join([*cells, f"{row['written_bytes'] / 1e6:.1f}"]) + " |"


def _job(options: Options, scratch: Path) -> Job:
    # As the package's is, so that OpenVINO may compute it in BF16 where that agrees.
    bundle = read_or_compile(options.model, "official", target="openvino")
    if bundle.manifest.task != "binary":
        raise OptionError(
            f"--model {options.model}: expected a bundle of binary masks, got one of {bundle.manifest.task}"
        )
    network = Path(options.network) if options.network else fetch(bundle.manifest.model, cache_folder() / "weights")
    if not network.is_file():
        raise OptionError(f"--network {network}: no such file")
    home = scratch / "home"
    home.mkdir()
    shutil.copyfile(network, home / network.name)  # where rembg looks for it, so that it downloads nothing
    with open_source(options.clip) as source:
        size_hw, fps, count = source.info.size_hw, source.info.fps, source.info.frame_count
    if size_hw is None or fps is None:
        raise OptionError(f"--clip {options.clip}: expected a video with a size and a frame rate, got one without")
    if count is not None and count < options.frames:
        raise OptionError(f"--frames: expected at most the {count} frames of {options.clip}, got {options.frames}")
    # A GPU is compared with what others compute there.
    backend = options.backend or ("onnxruntime" if is_seen(Path("/"), os.environ) else "auto")
    return Job(Path(options.clip), options.frames, size_hw, fps, bundle, network, home, backend)


def _keys(only: str | None) -> list[str]:
    if only is None:
        return list(KEYS)
    keys = [key.strip() for key in only.split(",")]
    if unknown := [key for key in keys if key not in KEYS]:
        raise OptionError(f"--only: expected some of {', '.join(KEYS)}, got {unknown[0]!r}")
    return [key for key in KEYS if key in keys]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # OpenCV has several names
        return ""
