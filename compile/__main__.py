"""python -m compile --model NAME --output DIR: trained weights to a bundle, checked against the trained network."""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from itertools import islice
from pathlib import Path

from models.errors import ModelError
from models.zoo import ZOO, fetch
from pipeline.bundle import PROGRAM_NAME, Bundle, Manifest, Task, cache_folder, check_destination, file_sha256
from pipeline.command_line import OptionParser, run_command, share
from pipeline.errors import BackendUnavailableError, EdgemaskError, OptionError
from pipeline.sources import open_source
from pipeline.sources.base import Source

# Without pictures of the user's own: a few frames that any machine can make.
VERIFY_SOURCE = "test://?size=640x360&frames=4&step=37"
VERIFY_FRAMES = 32

# What RTX GPUs in use have: Ampere, Ada, Blackwell.
DEFAULT_SMS = (86, 89, 120)

# As compile.onnx_export.MAX_SIDE, which a wrong option shall not wait for.
_MAX_SIDE = 16384

# At what size the published networks without a fixed one were trained.
_TRAINED_AT = {"unet-carvana": (1280, 1920), "unet-carvana-half": (640, 960)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _compile(_parser().parse_args(arguments)), (EdgemaskError, ModelError))


def _compile(options: argparse.Namespace) -> None:
    say: Callable[[str], None] = (lambda _: None) if options.quiet else (lambda line: print(line, flush=True))
    start_s = time.monotonic()
    output = Path(options.output)
    check_destination(output)
    if options.weights is None and options.model is None:
        raise OptionError(f"expected --model ({', '.join(ZOO)}) or --weights FILE, got neither")
    if options.target == "onnx" and (options.sm or options.batch):
        raise OptionError(
            "--sm and --batch: expected --target tensorrt-rtx beside them, got onnx, which runs anywhere as it is"
        )
    with open_source(options.verify) as verify_source:
        size_bytes = _write_bundle(options, output, verify_source, say)
    say(f"{output}: {size_bytes / 1e6:.1f} MB in {time.monotonic() - start_s:.0f} s")


def _write_bundle(options: argparse.Namespace, output: Path, verify_source: Source, say: Callable[[str], None]) -> int:
    try:
        # Imported here so that a wrong option is told at once, and missing packages with the command that installs them.
        from compile.networks import contract_of, open_candidate
        from compile.tensorrt_build import build_rtx_plan, check_sms
        from compile.verify import check, verify
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"compiling needs packages that are not here ({error}): install them with: pip install '.[compile]'"
        ) from error
    sms = options.sm or DEFAULT_SMS
    if options.target == "tensorrt-rtx":
        check_sms(sms)
    foreign_contract = None
    imgsz = options.imgsz
    if options.weights is not None:
        weights = Path(options.weights)
    else:
        weights = fetch(options.model, cache_folder() / "weights", progress=not options.quiet)
        imgsz = imgsz or _TRAINED_AT.get(options.model)
        if ZOO[options.model].family == "foreign":
            # The published reduced U²-Net has probabilities at its output.
            foreign_contract = replace(contract_of("u2net-official", options.contract, 3), activation="none")
    candidate = open_candidate(
        weights, options.contract, foreign_contract, imgsz=imgsz, classes=options.classes, smooth=options.smooth
    )
    contract = candidate.contract
    height, width = contract.imgsz
    say(
        f"{weights.name}: {candidate.architecture} ({candidate.family}), {candidate.class_count} class(es), {height}×{width}"
    )
    say(f"exporting the frame program, {options.precision}")
    program = candidate.export(options.precision, options.frame).SerializeToString()
    task: Task = "binary" if candidate.class_count == 1 else "classes"
    frames = islice(verify_source, VERIFY_FRAMES)
    verification = verify(program, candidate.reference, frames, task, options.verify)
    say(
        f"agrees with the trained network: IoU {verification.iou_mean:.4f}, worst {verification.iou_worst:.4f}, "
        f"mean absolute error {verification.mae:.5f}, on {verification.frames} frames"
    )
    check(verification, options.min_iou)
    files, engines = {PROGRAM_NAME: program}, []
    if options.target == "tensorrt-rtx":
        say(f"building a TensorRT-RTX plan for SM {', '.join(str(sm) for sm in sms)}")
        plan = build_rtx_plan(program, sms, frame_size_hw=options.frame, batch=options.batch or 1)
        files[plan.file_name(options.precision)] = plan.content
        engines.append({"file": plan.file_name(options.precision), **plan.as_dict()})
    manifest = Manifest(
        model=options.model or weights.stem,
        task=task,
        classes=_class_names(contract.classes, candidate.class_count),
        network_size_hw=contract.imgsz,
        frame_size_hw=options.frame,
        precision=options.precision,
        contract=contract.as_dict(),
        weights={
            "file": weights.name,
            "sha256": file_sha256(weights),
            "family": candidate.family,
            "architecture": candidate.architecture,
        },
        verification=verification.as_dict(),
        engines=tuple(engines),
        tools=_tools(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    Bundle.write(output, manifest, files)
    return sum(len(content) for content in files.values())


def _class_names(names: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    if names is not None:
        return names
    return ("subject",) if count == 1 else ("background", *(f"class {index}" for index in range(1, count)))


def _tools() -> dict[str, str]:
    packages = ("edgemask", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a clone that was not installed
            continue
    return versions


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m compile",
        description="Trained weights to a bundle for python -m pipeline.",
        epilog="Published networks: "
        + "; ".join(f"{entry.name} ({entry.description})" for entry in ZOO.values())
        + ".",
    )
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        help="a published network, downloaded on first use; or with --weights a name for the bundle",
    )
    parser.add_argument(
        "-w", "--weights", metavar="FILE", help="a checkpoint (.pt .pth .safetensors) or an ONNX network"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="the bundle's folder; a bundle that is there is replaced"
    )
    parser.add_argument(
        "--target",
        default="onnx",
        choices=("onnx", "tensorrt-rtx"),
        help="what to build beside the program (default: %(default)s)",
    )
    parser.add_argument(
        "--sm",
        type=_capabilities,
        metavar="86,89,120",
        help="tensorrt-rtx: GPUs by compute capability; they need not be here (default: 86,89,120)",
    )
    parser.add_argument("--batch", type=_batch, metavar="N", help="tensorrt-rtx: the most frames at once (default: 1)")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "fp16"), help="of the network inside (default: %(default)s)"
    )
    parser.add_argument(
        "--contract",
        default="stream",
        metavar="stream|official|FILE",
        help="how frames go in and masks come out (default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz", type=_size, metavar="N|HxW", help="size inside the network (default: the contract's)"
    )
    parser.add_argument("--frame", type=_size, metavar="HxW", help="fix the size of the frames (default: any)")
    parser.add_argument("--classes", type=int, metavar="N", help="refuse weights with another number of classes")
    parser.add_argument(
        "--smooth", action="store_true", help="more classes: enlarge scores, not indices; smooth borders, slower"
    )
    parser.add_argument(
        "--verify",
        default=VERIFY_SOURCE,
        metavar="SOURCE",
        help=f"frames to check on, at most {VERIFY_FRAMES}: pictures or a video of your own (default: synthetic)",
    )
    parser.add_argument(
        "--min-iou",
        type=share,
        default=0.99,
        metavar="0..1",
        help="write no bundle below this agreement (default: %(default)s)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    return parser


def _capabilities(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{2,3}(,\d{2,3})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected compute capabilities such as 86 or 86,89,120, got {text!r}")
    return tuple(sorted({int(part) for part in text.split(",")}))


def _batch(text: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII) or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 64, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:[x×,](\d{1,5}))?", text.strip().lower(), re.ASCII)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise argparse.ArgumentTypeError(f"expected a size such as 320 or 720x1280 (height × width), got {text!r}")
    return height, width


if __name__ == "__main__":
    sys.exit(main())
