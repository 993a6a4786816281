"""The options of ``python -m compile``."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

from compile.networks.zoo import ZOO
from pipeline.command.command_line import OptionParser, share, whole_number
from pipeline.errors import OptionError

TARGETS = ("onnx", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt")
PLAN_TARGETS = ("tensorrt", "tensorrt-rtx")

# As calibration.int8.ranges.METHODS, which takes PyTorch to import.
METHODS = ("max", "mse", "entropy", "percentile")

# As compile.program.onnx_export.MAX_SIDE, which a wrong option shall not wait for.
_MAX_SIDE = 16384
# What only some targets know: option, targets.
_OF_TARGETS = {
    "sm": ("tensorrt-rtx",),
    "batch": ("tensorrt", "tensorrt-rtx", "torch-tensorrt"),
    "workspace": PLAN_TARGETS,
    "timing_cache": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "dla": ("tensorrt",),
}
# What belongs to the network, which a bundle has already.
_OF_NETWORKS = (
    "model",
    "weights",
    "output",
    "precision",
    "calib",
    "calib_masks",
    "contract",
    "imgsz",
    "classes",
    "smooth",
    "compose",
    "pixels",
)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        OptionError: an unknown option, a value that it does not take, or options that do not go together.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, targets in _OF_TARGETS.items():
        given = getattr(options, name)
        if given is not None and given is not False and options.target not in targets:
            raise OptionError(
                f"--{name.replace('_', '-')}: expected --target {' or '.join(targets)} beside it, got {options.target}"
            )
    if options.bundle is not None:
        _check_bundle_options(parser, options)
    elif options.weights is None and options.model is None:
        raise OptionError(f"expected --model ({', '.join(ZOO)}), --weights FILE or --bundle DIR, got none of them")
    elif options.output is None:
        raise OptionError("expected --output DIR, the bundle's folder, got none")
    if options.precision == "int8" and options.calib is None:
        raise OptionError(
            "--precision int8: expected --calib SOURCE, pictures or a video to take ranges from, got none"
        )
    if options.calib is not None and options.precision not in ("int8", "auto"):
        raise OptionError(f"--calib: expected --precision int8 or auto beside it, got {options.precision}")
    if options.strict and options.precision != "int8":
        raise OptionError(f"--strict: expected --precision int8 beside it, got {options.precision}")
    if options.precision == "auto" and options.target == "torch-tensorrt":
        raise OptionError("--precision auto: expected another --target, got torch-tensorrt")
    if options.compose == "device" and options.target == "torch-tensorrt":
        raise OptionError("--compose device: expected another --target, got torch-tensorrt")
    if options.pixels == "nv12":
        if options.target == "torch-tensorrt":
            raise OptionError("--pixels nv12: expected another --target, got torch-tensorrt")
        if options.frame is not None:
            check_nv12_frame(options.frame)
    if options.dla is not None and options.bundle is None and (options.frame is None or options.precision == "fp32"):
        raise OptionError(
            "--dla: expected --frame HxW and --precision fp16, for an accelerator takes one size and no FP32, "
            f"got {'any size' if options.frame is None else 'one size'} and {options.precision}"
        )
    return options


def check_nv12_frame(frame_size_hw: tuple[int, int]) -> None:
    """Refuse a fixed size that NV12 does not have.

    Raises:
        OptionError: a side is odd.
    """
    height, width = frame_size_hw
    if height % 2 or width % 2:
        raise OptionError(f"--frame: expected even sides for frames of NV12, got {height}x{width}")


def _check_bundle_options(parser: OptionParser, options: argparse.Namespace) -> None:
    for name in _OF_NETWORKS:
        if getattr(options, name) != parser.get_default(name):
            raise OptionError(
                f"--bundle: expected no --{name.replace('_', '-')} beside it, for the bundle in {options.bundle} has its network "
                "already, got both"
            )
    if options.target not in PLAN_TARGETS:
        raise OptionError(
            f"--bundle: expected --target {' or '.join(PLAN_TARGETS)}, which is built from a bundle's program, got {options.target}"
            + ("" if options.target == "onnx" else ": compile the network itself, with --model or --weights")
        )


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
    parser.add_argument("-o", "--output", metavar="DIR", help="the bundle's folder; a bundle that is there is replaced")
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="build a plan from the program of a bundle that is there, and put it in; needs no PyTorch",
    )
    parser.add_argument(
        "--target",
        default="onnx",
        choices=TARGETS,
        help="what the bundle is for (default: %(default)s, which runs anywhere as it is, and makes plans later); onnxruntime: "
        "CPUs, whose INT8 is another graph than TensorRT's",
    )
    parser.add_argument(
        "--sm",
        type=_capabilities,
        metavar="86,89,120",
        help="tensorrt-rtx: GPUs by compute capability; they need not be here (default: this machine's, else 86,89,120)",
    )
    parser.add_argument("--batch", type=_batch, metavar="N", help="plans: the most frames at once (default: 1)")
    parser.add_argument(
        "--workspace", type=_gibibytes, metavar="GIB", help="plans: memory for a layer (default: half of what is free)"
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        help="tensorrt: times of earlier builds, which make the next one faster (default: in the cache folder)",
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="tensorrt: a plan that later versions load too; slower"
    )
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="tensorrt: a plan for every desktop GPU from compute capability 8.0 on; slower",
    )
    parser.add_argument(
        "--dla",
        type=int,
        choices=range(8),
        metavar="N",
        help="tensorrt: run on this deep learning accelerator of a Jetson",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16", "int8", "auto"),
        help="of the network inside; auto: the fastest on this device that passes, INT8 too if there is --calib (default: %(default)s)",
    )
    parser.add_argument(
        "--calib", metavar="SOURCE", help="int8: frames to take ranges from, other ones than those of --verify"
    )
    parser.add_argument(
        "--calib-size",
        type=whole_number(1, 999_999),
        default=64,
        metavar="N",
        help="int8: how many of them (default: %(default)s)",
    )
    parser.add_argument(
        "--calib-method", default="mse", choices=METHODS, help="int8: how values become a range (default: %(default)s)"
    )
    parser.add_argument(
        "--calib-masks",
        metavar="DIR",
        help="ground truth of the frames of --verify, NAME.png each: the masks must not fall behind the trained network's",
    )
    parser.add_argument(
        "--strict", action="store_true", help="int8: fail where INT8 does not pass, in place of taking FP16 or FP32"
    )
    parser.add_argument(
        "--contract",
        default="stream",
        metavar="stream|official|FILE",
        help="how frames go in and masks come out (default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz", type=read_size, metavar="N|HxW", help="size inside the network (default: the contract's)"
    )
    parser.add_argument("--frame", type=read_size, metavar="HxW", help="fix the size of the frames (default: any)")
    parser.add_argument("--classes", type=int, metavar="N", help="refuse weights with another number of classes")
    parser.add_argument(
        "--smooth", action="store_true", help="more classes: enlarge scores, not indices; smooth borders, slower"
    )
    parser.add_argument(
        "--compose",
        default="host",
        choices=("host", "device"),
        help="one class: device = the program draws the overlay too, so that a GPU gives pictures that are ready to be shown "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--pixels",
        default="bgr",
        choices=("bgr", "nv12"),
        help="frames that the program takes: nv12 = as decoders give them, half as many bytes, whose colours a GPU converts then "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        metavar="SOURCE",
        help="frames to prove it on, pictures or a video of your own (default: frames held back from --calib, else photographs of "
        "the package)",
    )
    parser.add_argument(
        "--verify-count",
        type=whole_number(1, 999_999),
        metavar="N",
        help="how many of them (default: 8 to 32, fewer for large networks)",
    )
    parser.add_argument(
        "--min-iou",
        type=share,
        default=0.99,
        metavar="0..1",
        help="write no bundle where the mean IoU with the trained network may be lower: judges the lower end of its 95 %% interval "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--min-worst-iou",
        type=share,
        metavar="0..1",
        help="nor where the worst frame with a clear subject has less (default: 0.9, or --min-iou if that is less)",
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


def _gibibytes(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 2**-10 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected a number of GiB from 0.001 to 1024, got {text!r}")
    return int(value * 2**30)


def read_size(text: str) -> tuple[int, int]:
    """An option's value, "N" or "HxW", as (height, width), for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    found = re.fullmatch(r"(\d{1,5})(?:[x×,](\d{1,5}))?", text.strip().lower(), re.ASCII)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise argparse.ArgumentTypeError(f"expected a size such as 320 or 720x1280 (height × width), got {text!r}")
    return height, width
