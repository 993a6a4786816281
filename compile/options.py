"""What a build is asked for: ``BuildOptions``, and the command line of ``python -m compile`` that makes them."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from compile.networks.zoo import ZOO
from pipeline.bundles.bundle import GATE_MEAN_IOU, GATE_WORST_IOU, Precision
from pipeline.command.command_line import OptionParser, share, whole_number
from pipeline.errors import OptionError
from pipeline.frames.pixels import OfCameras

Target = Literal["onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "triton"]
WantedPrecision = Literal["fp32", "fp16", "int8", "auto"]
Method = Literal["max", "mse", "entropy", "percentile"]
"""As calibration.int8.ranges.Method, which takes PyTorch to import."""
Upsampling = Literal["classes", "scores"]
Composing = Literal["host", "device"]
StrPath = str | os.PathLike[str]

TARGETS: tuple[Target, ...] = get_args(Target)
PLAN_TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx")
METHODS: tuple[Method, ...] = get_args(Method)

# As compile.program.onnx_export.MAX_SIDE, which a wrong option shall not wait for.
_MAX_SIDE = 16384
_MOST_BATCH = 64
_MOST_FRAMES = 999_999
# What the command line calls an option, where that is not the field's name with dashes.
_OPTIONS = {
    "calibration": "calib",
    "calibration_size": "calib-size",
    "calibration_method": "calib-method",
    "calibration_masks": "calib-masks",
    "frame_size_hw": "frame",
    "workspace_bytes": "workspace",
    "keep_reference": "no-reference",
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "target": TARGETS,
    "precision": get_args(WantedPrecision),
    "calibration_method": METHODS,
    "upsample": get_args(Upsampling),
    "compose": get_args(Composing),
    "pixels": get_args(OfCameras),
}
# What only some targets know: field, targets.
_OF_TARGETS: dict[str, tuple[Target, ...]] = {
    "sm": ("tensorrt-rtx",),
    "batch": ("tensorrt", "tensorrt-rtx", "torch-tensorrt", "triton"),
    "workspace_bytes": PLAN_TARGETS,
    "timing_cache": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "dla": ("tensorrt",),
}
# What belongs to the network, which a bundle has already.
_OF_NETWORKS = (
    *("model", "weights", "output", "precision", "calibration", "calibration_masks", "contract", "imgsz", "classes"),
    *("upsample", "compose", "pixels", "network", "weights_key", "reference", "keep_reference"),
)
# What a program is proven with, which one that is only copied was.
_OF_PROOFS = ("verify", "verify_count", "min_iou", "min_worst_iou")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build, how to prove it, and where it goes. What does not go together is refused when it is made.

    Attributes:
        weights: file of the trained network: a checkpoint of U-Net or U²-Net, or any segmentation network as ONNX or ``.pt2``; beside
            ``network`` the checkpoint of what that gives.
        output: the bundle's folder; a bundle that is there is replaced. triton: the model repository; what is there is kept.
        model: name of a published network, downloaded on first use; or beside ``weights`` the bundle's name.
        bundle: folder of a bundle that is there, in place of a network: a plan is built from its program and put in, or it is put
            into a model repository.
        target: what the bundle is for: "onnx" runs anywhere; "onnxruntime": CPUs, whose INT8 is another graph; "openvino": the same as
            "onnx", and it says which layers BF16 would spoil; "triton": a model repository, of ``bundle``; the others: with a plan
            for that runtime.
        precision: of the network inside; "auto": the fastest on this device that passes.
        calibration: INT8: a source of frames, or a calibration set, to take ranges from.
        calibration_size: INT8: how many of its frames.
        calibration_method: INT8: how values become a range.
        calibration_masks: folder with ground truth of the frames that judge, NAME.png each.
        strict: INT8: fail where it does not pass, in place of taking FP16 or FP32.
        contract: how frames go in and masks come out: "stream", "official", or a YAML file.
        imgsz: (height, width) inside the network; None for the contract's.
        frame_size_hw: fixed (height, width) of the frames; None for any.
        classes: refuse weights with another number of classes.
        upsample: more classes: what is enlarged to the frame's size: "classes": their indices; "scores": smooth borders, slower; None
            for what the contract says, else "scores" where they are smaller than the network's input.
        compose: "device": the program draws the overlay too; one class only.
        pixels: how the program takes frames.
        reference: FP32 network that the gate compares with, for weights that came quantized or halved; None for the weights themselves.
        verify: a source of frames to prove it on; None for frames held back from ``calibration``, else photographs of the package.
        verify_count: how many of them; None for 8 to 32, fewer for large networks.
        min_iou: what the lower end of the mean IoU's 95 % interval must reach, 0 to 1; 0 lets everything through.
        min_worst_iou: what the worst frame with a clear subject must reach; None for 0.9, or ``min_iou`` if that is less.
        sm: tensorrt-rtx: compute capabilities of the GPUs without the dot, such as (86, 89); None for this machine's.
        batch: plans: the most frames at once, 1 to 64; None for 1, or of ``bundle`` what its plan had. triton: 4.
        workspace_bytes: plans: memory for a layer while it runs; None for half of what is free.
        timing_cache: tensorrt: file with the times of earlier builds; None for one in the cache folder.
        version_compatible: tensorrt: a plan that later versions load too; slower.
        hardware_compatible: tensorrt: a plan for every desktop GPU from compute capability 8.0 on; slower.
        dla: tensorrt: number of the deep learning accelerator of a Jetson to run on.
        quiet: show no progress on a terminal.
        network: "package.module:function" that gives the network in PyTorch, or the network itself or its class; this code is run.
        weights_key: dotted path to the weights in a checkpoint that has several; its beginning is enough.
        keep_reference: put the program in FP32 beside one that is not, where there is a network in FP32: about twice the size of FP16.

    Raises:
        OptionError: a value that is not taken, or options that do not go together; it calls them as the command line does.
    """

    weights: StrPath | None = None
    output: StrPath | None = None
    model: str | None = None
    bundle: StrPath | None = None
    target: Target = "onnx"
    precision: WantedPrecision = "fp32"
    calibration: str | None = None
    calibration_size: int = 64
    calibration_method: Method = "mse"
    calibration_masks: StrPath | None = None
    strict: bool = False
    contract: str = "stream"
    imgsz: tuple[int, int] | None = None
    frame_size_hw: tuple[int, int] | None = None
    classes: int | None = None
    upsample: Upsampling | None = None
    compose: Composing = "host"
    pixels: OfCameras = "bgr"
    verify: str | None = None
    verify_count: int | None = None
    min_iou: float = GATE_MEAN_IOU
    min_worst_iou: float | None = None
    sm: tuple[int, ...] | None = None
    batch: int | None = None
    workspace_bytes: int | None = None
    timing_cache: StrPath | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int | None = None
    quiet: bool = False
    network: str | None = None
    weights_key: str | None = None
    reference: StrPath | None = None
    keep_reference: bool = True

    def __post_init__(self) -> None:
        self._check_values()
        self._check_target()
        self._check_place()
        self._check_precision()
        self._check_frames()

    @property
    def folder(self) -> Path:
        """Where the bundle goes."""
        return Path(self.output or self.bundle or "")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What is tried, in order; the first that passes is taken, or where ``is_timed`` the fastest."""
        if self.precision == "fp32" or self.precision == "fp16" or (self.precision == "int8" and self.strict):
            return (self.precision,)
        # A CPU computes FP16 in FP32, with the conversions on top.
        others: tuple[Precision, ...] = ("fp32",) if self.target == "onnxruntime" else ("fp16", "fp32")
        return others if self.calibration is None else ("int8", *others)

    @property
    def is_timed(self) -> bool:
        """Whether what passes is timed: INT8 on a CPU without instructions for it is slower than FP32."""
        return self.precision == "auto" or (
            self.precision == "int8" and self.target == "onnxruntime" and not self.strict
        )

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in (*choices, *([None] if name == "upsample" else [])):
                raise OptionError(
                    f"{_option(name)}: expected {', '.join(choices[:-1])} or {choices[-1]}, got {getattr(self, name)!r}"
                )
        bounds = {
            "calibration_size": (1, _MOST_FRAMES),
            "verify_count": (1, _MOST_FRAMES),
            "min_iou": (0, 1),
            "min_worst_iou": (0, 1),
            "batch": (1, _MOST_BATCH),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise OptionError(f"{_option(name)}: expected a number from {least} to {most}, got {value}")
        for name in ("imgsz", "frame_size_hw"):
            size = getattr(self, name)
            if size is not None and not (len(size) == 2 and all(1 <= side <= _MAX_SIDE for side in size)):
                raise OptionError(f"{_option(name)}: expected (height, width) from 1 to {_MAX_SIDE}, got {size}")

    def _check_target(self) -> None:
        for name, targets in _OF_TARGETS.items():
            given = getattr(self, name)
            if given is not None and given is not False and self.target not in targets:
                raise OptionError(
                    f"{_option(name)}: expected --target {' or '.join(targets)} beside it, got {self.target}"
                )

    def _check_place(self) -> None:
        if self.bundle is not None:
            self._check_bundle()
        elif self.target == "triton":
            raise OptionError(
                "--target triton: expected --bundle DIR, a bundle to put into a model repository, got none"
            )
        elif self.weights is None and self.model is None and self.network is None:
            raise OptionError(
                f"expected --model ({', '.join(ZOO)}), --weights FILE, --network MODULE:FUNCTION or --bundle DIR, got none of them"
            )
        elif self.network is not None and not is_factory(self.network):
            raise OptionError(f"--network: expected package.module:function, got {self.network!r}")
        elif self.weights_key is not None and self.weights is None:
            raise OptionError("--weights-key: expected --weights FILE beside it, got none")
        elif self.output is None:
            raise OptionError("expected --output DIR, the bundle's folder, got none")

    def _check_bundle(self) -> None:
        defaults = {entry.name: entry.default for entry in fields(self)}
        to_repository = self.target == "triton"
        others = (*_OF_NETWORKS, *(_OF_PROOFS if to_repository else ()))
        for name in others:
            if getattr(self, name) != defaults[name] and not (to_repository and name == "output"):
                raise OptionError(
                    f"--bundle: expected no {_option(name)} beside it, for the bundle in {self.bundle} has its network already, "
                    "got both"
                )
        if to_repository:
            if self.output is None:
                raise OptionError("--target triton: expected --output DIR, the model repository, got none")
        elif self.target not in PLAN_TARGETS:
            raise OptionError(
                f"--bundle: expected --target {' or '.join((*PLAN_TARGETS, 'triton'))}, which is built from a bundle's program, "
                f"got {self.target}"
                + ("" if self.target == "onnx" else ": compile the network itself, with --model or --weights")
            )

    def _check_precision(self) -> None:
        if self.precision == "int8" and self.calibration is None:
            raise OptionError(
                "--precision int8: expected --calib SOURCE, pictures or a video to take ranges from, got none"
            )
        if self.calibration is not None and self.precision not in ("int8", "auto"):
            raise OptionError(f"--calib: expected --precision int8 or auto beside it, got {self.precision}")
        if self.strict and self.precision != "int8":
            raise OptionError(f"--strict: expected --precision int8 beside it, got {self.precision}")
        if self.target == "openvino" and self.precision != "fp32":
            raise OptionError(
                f"--target openvino: expected --precision fp32, which OpenVINO computes in BF16 where that agrees, got {self.precision}"
                + (": for INT8 take --target onnxruntime, which it runs too" if self.precision == "int8" else "")
            )
        if self.precision == "auto" and self.target == "torch-tensorrt":
            raise OptionError("--precision auto: expected another --target, got torch-tensorrt")

    def _check_frames(self) -> None:
        if self.compose == "device" and self.target == "torch-tensorrt":
            raise OptionError("--compose device: expected another --target, got torch-tensorrt")
        if self.pixels == "nv12":
            if self.target == "torch-tensorrt":
                raise OptionError("--pixels nv12: expected another --target, got torch-tensorrt")
            if self.frame_size_hw is not None:
                check_nv12_frame(self.frame_size_hw)
        fixed = self.frame_size_hw is not None
        if self.dla is not None and self.bundle is None and (not fixed or self.precision == "fp32"):
            raise OptionError(
                "--dla: expected --frame HxW and --precision fp16, for an accelerator takes one size and no FP32, "
                f"got {'one size' if fixed else 'any size'} and {self.precision}"
            )


def is_factory(text: str) -> bool:
    """Whether a text has the form "package.module:function"."""
    return _FACTORY.fullmatch(text) is not None


def check_nv12_frame(frame_size_hw: tuple[int, int]) -> None:
    """Refuse a fixed size that NV12 does not have.

    Raises:
        OptionError: a side is odd.
    """
    height, width = frame_size_hw
    if height % 2 or width % 2:
        raise OptionError(f"--frame: expected even sides for frames of NV12, got {height}x{width}")


def parse_options(arguments: Sequence[str] | None = None) -> BuildOptions:
    """Read the command line.

    Raises:
        OptionError: an unknown option, a value that it does not take, or options that do not go together.
    """
    given = vars(_parser().parse_args(arguments))
    return BuildOptions(**{name: value for name, value in given.items() if value is not None})


def _option(field: str) -> str:
    return "--" + _OPTIONS.get(field, field.replace("_", "-"))


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m compile",
        description="Compile a trained network into a bundle, and compare its masks with those of the trained network.",
        epilog="Published networks: "
        + "; ".join(f"{entry.name} ({entry.description})" for entry in ZOO.values())
        + ".",
    )
    _add_network(parser)
    _add_target(parser)
    _add_precision(parser)
    _add_frames(parser)
    _add_proof(parser)
    return parser


def _add_network(parser: OptionParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        help="a published network, downloaded on first use; with --weights, a name for the bundle",
    )
    parser.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        help="a checkpoint (.pt .pth .ckpt .safetensors), or a network as .onnx or .pt2",
    )
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="which weights of a checkpoint that has several, such as model_ema or state_dict.generator",
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FUNCTION",
        help="function of yours that gives the network in PyTorch, called without arguments (or the network itself or its class); "
        "--weights is then its checkpoint, if it does not load one itself. This runs your code",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="the bundle's folder; an existing bundle is replaced. triton: the model repository",
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="build a plan from the program of an existing bundle, and add it to the bundle; or with --target triton put it into "
        "a model repository; needs no PyTorch",
    )


def _add_target(parser: OptionParser) -> None:
    parser.add_argument(
        "--target",
        default="onnx",
        choices=TARGETS,
        help="what the bundle is for. %(default)s, the default, runs anywhere, and plans can be built from it later; "
        "onnxruntime is for INT8 on CPUs, which is another graph than TensorRT's; openvino finds the layers that BF16 would "
        "spoil, so that OpenVINO computes the others in BF16; triton puts a --bundle into the model repository of "
        "an NVIDIA Triton server",
    )
    parser.add_argument(
        "--sm",
        type=_capabilities,
        metavar="86,89,120",
        help="tensorrt-rtx: compute capabilities of the GPUs to build for, which need not be in this machine "
        "(default: this machine's, else 86,89,120)",
    )
    parser.add_argument(
        "--batch", type=_batch, metavar="N", help="plans: frames in one batch, at most (default: 1; triton: 4)"
    )
    parser.add_argument(
        "--workspace",
        dest="workspace_bytes",
        type=_gibibytes,
        metavar="GIB",
        help="plans: memory that a layer may use while it runs (default: half of what is free)",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        help="tensorrt: a file of earlier timings, which makes the next build faster (default: in the cache folder)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="tensorrt: a plan that later versions of TensorRT load too; slower",
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
        help="tensorrt: run on deep learning accelerator N of a Jetson",
    )


def _add_precision(parser: OptionParser) -> None:
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=get_args(WantedPrecision),
        help="what the network computes in; auto takes the fastest on this device that passes the gate, INT8 too if "
        "--calib is given (default: %(default)s)",
    )
    parser.add_argument(
        "--calib",
        dest="calibration",
        metavar="SOURCE",
        help="int8: calibration frames (pictures, a video, a camera or a calibration set); other frames than those "
        "of --verify",
    )
    parser.add_argument(
        "--calib-size",
        dest="calibration_size",
        type=whole_number(1, _MOST_FRAMES),
        default=64,
        metavar="N",
        help="int8: how many calibration frames (default: %(default)s)",
    )
    parser.add_argument(
        "--calib-method",
        dest="calibration_method",
        default="mse",
        choices=METHODS,
        help="int8: how a range is taken from values (default: %(default)s)",
    )
    parser.add_argument(
        "--calib-masks",
        dest="calibration_masks",
        metavar="DIR",
        help="ground truth of the frames of --verify, a NAME.png for each: compiled masks must not be worse than the "
        "trained network's",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="int8: fail where INT8 does not pass the gate; without it FP16 or FP32 is taken",
    )


def _add_frames(parser: OptionParser) -> None:
    parser.add_argument(
        "--contract",
        default="stream",
        metavar="stream|official|FILE",
        help="how frames become the network's input and its output becomes masks (default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz", type=read_size, metavar="N|HxW", help="size inside the network (default: the contract's)"
    )
    parser.add_argument(
        "--frame",
        dest="frame_size_hw",
        type=read_size,
        metavar="HxW",
        help="compile for frames of one size (default: any size)",
    )
    parser.add_argument("--classes", type=int, metavar="N", help="refuse weights whose number of classes is not N")
    parser.add_argument(
        "--upsample",
        choices=get_args(Upsampling),
        help="several classes: what is enlarged to the frame's size; scores gives smooth borders and is slower "
        "(default: as the contract says, else scores where they are smaller than the network's input)",
    )
    # What it was called before; in the run half --smooth means time.
    parser.add_argument("--smooth", action="store_const", dest="upsample", const="scores", help=argparse.SUPPRESS)
    parser.add_argument(
        "--compose",
        default="host",
        choices=get_args(Composing),
        help="one class: with device the program draws the overlay too, so that a GPU gives finished views (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--pixels",
        default="bgr",
        choices=get_args(OfCameras),
        help="pixel format that the program takes; nv12 is what decoders give: half as many bytes, and a GPU "
        "converts the colors (default: %(default)s)",
    )


def _add_proof(parser: OptionParser) -> None:
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="the network in FP32, as --weights takes it and by the same contract, for the gate to compare with; for a file that "
        "another tool quantized or halved, of which the gate proves nothing otherwise",
    )
    parser.add_argument(
        "--no-reference",
        dest="keep_reference",
        action="store_false",
        help="keep no program in FP32 beside one in FP16 or INT8: a bundle of a third or a quarter of the size, which a run cannot "
        "compare with the trained network",
    )
    parser.add_argument(
        "--verify",
        metavar="SOURCE",
        help="frames for the gate: pictures or a video of your own (default: frames held back from --calib, else "
        "photographs of the package)",
    )
    parser.add_argument(
        "--verify-count",
        type=whole_number(1, _MOST_FRAMES),
        metavar="N",
        help="how many frames for the gate (default: 8 to 32, fewer for large networks)",
    )
    parser.add_argument(
        "--min-iou",
        type=share,
        default=GATE_MEAN_IOU,
        metavar="0..1",
        help="gate: the mean IoU with the trained network must reach this at the lower end of its 95 %% interval; "
        "else no bundle is written (default: %(default)s)",
    )
    parser.add_argument(
        "--min-worst-iou",
        type=share,
        metavar="0..1",
        help="gate: IoU that the worst frame with a clear subject must reach (default: "
        f"{GATE_WORST_IOU:g}, or --min-iou if that is less)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def _capabilities(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{2,3}(,\d{2,3})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected compute capabilities such as 86 or 86,89,120, got {text!r}")
    return tuple(sorted({int(part) for part in text.split(",")}))


def _batch(text: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII) or not 1 <= int(text) <= _MOST_BATCH:
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
