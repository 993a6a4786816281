"""The steps from a trained network to a bundle, in the order in which ``compile.build`` takes them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.metrics.truth import read_truths
from compile.draft import Draft
from compile.networks.contract import Contract
from compile.networks.onnx_runtime import LimitedSession
from compile.networks.zoo import ZOO, fetch
from compile.options import PLAN_TARGETS, BuildOptions
from compile.plans.plans import add_plan, add_torch_program, plan_options
from compile.plans.tensorrt_build import PlanOptions
from compile.program.batch import check_batch, check_state
from compile.program.compose import with_views
from compile.program.network import Network
from compile.program.nv12 import with_nv12
from compile.program.open_network import contract_of, open_network
from compile.program.programs import Program, Programs, single_precision
from compile.proof.frames import SEARCHED_FRAMES, VerificationFrames
from compile.proof.verify import (
    FEWEST_FRAMES,
    MOST_FRAMES,
    TRAINED,
    Expected,
    Proof,
    Sample,
    Sampling,
    Verification,
    open_session,
    problem_with,
    program_masks,
    take_samples,
)
from compile.proof.worst_frames import draw_worst
from compile.timing import fastest
from pipeline.bundles.bundle import PROGRAM_NAME, WORST_NAME, Manifest, Precision, cache_folder, file_sha256
from pipeline.errors import CompileError, OptionError
from pipeline.frames.frame import Frame
from pipeline.terminal import logger_of

# At what size the published networks without a fixed one were trained.
_TRAINED_AT = {"unet-carvana": (1280, 1920), "unet-carvana-half": (640, 960)}

# 32 frames of U²-NetP at 320×320, which take two cores half a minute.
_VERIFY_GIGA_MACS = 640

log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """What is compiled.

    Attributes:
        network: ready to compile.
        weights: the file that it was read from.
        weights_sha256: of that file; where weights are in others beside it, of all files' sums.
        name: the bundle's.
        reference: what the gate compares with; the network itself where nothing else was given.
        reference_weights: the file that it was read from.
    """

    network: Network
    weights: Path
    weights_sha256: str
    name: str
    reference: Network
    reference_weights: Path

    @property
    def is_unproven(self) -> bool:
        """Whether another tool's rounding is compared with itself."""
        return self.reference is self.network and self.network.precision != "fp32"

    @property
    def against(self) -> str:
        """What the gate compares with, in words."""
        if self.is_unproven:
            return f"itself, the {self.network.precision.upper()} network of {self.weights.name}"
        return TRAINED if self.reference is self.network else f"{self.reference_weights.name} in FP32"


def plan_wanted(options: BuildOptions) -> PlanOptions | None:
    """The plan that is built from the program; None for a target without one, or one that takes the network itself.

    Raises:
        BackendUnavailableError: TensorRT, or what it needs, is not here.
        CompileError: nothing can be built for such a GPU.
        OptionError: the fastest precision is wanted, and there is no GPU to time on.
    """
    if options.target not in PLAN_TARGETS:
        return None
    wanted = plan_options(options, options.frame_size_hw, options.batch or 1, options.pixels)
    if options.precision == "auto" and (wanted.gpu is None or (wanted.sms and wanted.gpu.sm not in wanted.sms)):
        raise OptionError(
            "--precision auto: expected the GPU that the plan is for in this machine, to time on, got none: choose a precision"
        )
    return wanted


def open_trained(options: BuildOptions) -> Trained:
    """Read the trained network, downloaded if need be.

    Raises:
        ModelError: the weights cannot be had.
        CompileError: they do not fit their contract.
        OptionError: the network does not take such an option.
    """
    imgsz, foreign_contract = options.imgsz, None
    if options.weights is not None:
        weights = Path(options.weights)
    else:
        assert options.model is not None  # the options were checked
        weights = fetch(options.model, cache_folder() / "weights", progress=not options.quiet)
        imgsz = imgsz or _TRAINED_AT.get(options.model)
        foreign_contract = _published_contract(options.model, options.contract)
    network = open_network(
        weights,
        options.contract,
        foreign_contract,
        imgsz=imgsz,
        classes=options.classes,
        smooth=options.upsample == "scores",
    )
    check_batch(network.takes_batch, options.batch, weights)
    check_state(network.contract.state, options.target, weights)
    if options.target == "torch-tensorrt" and not network.has_layers:
        raise OptionError(
            "--target: expected onnx or tensorrt for a network that cannot be brought into layers, got torch-tensorrt"
        )
    if not network.takes_batch:
        log.info("%s takes one picture at a time, and so does its program", weights.name)
    height, width = network.contract.imgsz
    log.info(
        "%s: %s (%s), %d class(es), %d×%d",
        *(weights.name, network.architecture, network.family, network.class_count, height, width),
    )
    if options.compose == "device" and network.task != "binary":
        raise OptionError(
            f"--compose device: expected a network of one class, got {network.class_count}: leave --compose out"
        )
    reference = network if options.reference is None else _open_reference(network, foreign_contract, options)
    return Trained(
        network,
        weights,
        _sha256(weights, network.data_files),
        options.model or weights.stem,
        reference,
        Path(options.reference or weights),
    )


def _open_reference(network: Network, foreign_contract: Contract | None, options: BuildOptions) -> Network:
    """The network in FP32, by the same contract."""
    weights = Path(options.reference or "")
    reference = open_network(
        weights,
        options.contract,
        foreign_contract,
        imgsz=network.contract.imgsz,
        classes=network.class_count,
        smooth=options.upsample == "scores",
    )
    if reference.precision != "fp32":
        raise OptionError(f"--reference: expected a network in FP32, got {reference.precision.upper()} in {weights}")
    return reference


def precisions_of(trained: Trained, options: BuildOptions) -> tuple[Precision, ...]:
    """What is tried, in order. A network that came quantized or halved has no FP32: what it came in is taken for that.

    Raises:
        OptionError: the network came in INT8, and something else is asked for.
    """
    network = trained.network
    if network.precision == "fp32":
        return options.precisions
    if network.precision == "int8":
        if options.precision != "fp32":
            raise OptionError(
                f"--precision: expected none for {trained.weights}, which is INT8 already, got {options.precision}: leave it out, "
                "or compile the network in FP32"
            )
        return ("int8",)
    if options.target == "onnxruntime" and network.has_layers:
        return options.precisions  # a CPU computes FP16 in FP32, with the conversions on top
    wanted: tuple[Precision, ...] = tuple("fp16" if one == "fp32" else one for one in options.precisions)
    return tuple(dict.fromkeys(wanted))


def _sha256(weights: Path, beside: Sequence[Path]) -> str:
    """Of the weights, in however many files they are."""
    first = file_sha256(weights)
    if not beside:
        return first
    return hashlib.sha256("".join([first, *(file_sha256(path) for path in beside)]).encode()).hexdigest()


def _published_contract(name: str, contract: str) -> Contract | None:
    """The contract of a published network that is not of our families."""
    if ZOO[name].family != "foreign":
        return None
    # The published reduced U²-Net has probabilities at its output.
    return replace(contract_of("u2net-official", contract, 3), activation="none")


def take_proof(trained: Trained, options: BuildOptions, frames: VerificationFrames) -> Proof:
    """The frames that judge, and what the trained network, or its reference, makes of them.

    Raises:
        CompileError: there are none, or the network contradicts its contract on them.
        CalibrationError: a frame has no ground truth.
        SourceError: they cannot be read.
    """
    network = trained.network
    truths = None if options.calibration_masks is None else read_truths(str(options.calibration_masks), network.task)
    count = options.verify_count or _frames_to_check(network.giga_macs)
    sampling = Sampling(network.task, options.frame_size_hw, count, truths, options.pixels, network.sequence)
    samples = _take(trained, frames.judging(count), frames.origin, sampling)
    for one in {id(network): network, id(trained.reference): trained.reference}.values():
        if (doubt := one.doubt()) is not None:
            log.info("%s", doubt)
    return Proof(samples, network.task, frames.origin, trained.against)


def programs_of(trained: Trained, options: BuildOptions, frames: VerificationFrames) -> Programs:
    """The frame program in each precision; layers are searched for on other frames than those that judge."""
    network = trained.network

    def searched() -> Sequence[Sample]:
        sampling = Sampling(network.task, options.frame_size_hw, SEARCHED_FRAMES)
        return _take(trained, frames.searched(), frames.origin, sampling)

    return Programs(network, searched, frames.calibration, trained.weights_sha256, options)


def prove(program: Program, trained: Trained, proof: Proof, options: BuildOptions, advice: str) -> Draft:
    """A program as it goes into a bundle, with what was measured.

    Args:
        program: in one precision.
        trained: what it was made of.
        proof: what it must agree with.
        options: how it takes frames, and how well it must agree.
        advice: what would prove more; empty if nothing would.

    Raises:
        CompileError: it cannot be run, or does not agree.
    """
    content = program.content
    if options.compose == "device":
        content = with_views(content, options.frame_size_hw)
    if options.pixels == "nv12":
        content = with_nv12(content, options.frame_size_hw)
    # What is not in layers is the stranger's own graph.
    open_program = open_session if trained.network.has_layers else LimitedSession
    masks, runtime = program_masks(content, options.pixels, open_program)
    verification = proof.of(masks, runtime)
    remedy = "take a higher --precision"
    if program.precision == trained.network.precision != "fp32":
        remedy = f"compile the network in FP32, with --precision {program.precision}"
    problem = problem_with(verification, options.min_iou, options.min_worst_iou, remedy)
    if problem is not None:
        raise CompileError(problem + advice)
    unproven = "; of its rounding nothing was proven: give the network in FP32 with --reference"
    log.info(
        "%s %s %s on %d %s: %s%s",
        *(program.precision, "compared with" if trained.is_unproven else "agrees with", proof.against),
        *(verification.frames, proof.source, verification, unproven if trained.is_unproven else advice),
    )
    worst = draw_worst(masks, proof.samples, verification, proof.task)
    return Draft(_manifest(program, trained, verification, options), {PROGRAM_NAME: content, WORST_NAME: worst})


def add_wanted_plan(
    draft: Draft, wanted: PlanOptions | None, network: Network, proof: Proof, options: BuildOptions
) -> Draft:
    """The bundle with its plan, if the target has one.

    Raises:
        BackendUnavailableError: what builds it is not here.
        CompileError: it cannot be built, or does not agree.
    """
    if wanted is not None:
        return add_plan(draft, wanted, proof, options)
    if options.target == "torch-tensorrt":
        manifest = draft.manifest
        module = network.module(manifest.precision, single_precision(manifest.layers))
        return add_torch_program(draft, module, proof, options)
    return draft


def choose(made: Sequence[Draft], proof: Proof, options: BuildOptions) -> Draft:
    """The fastest of those that passed, where that is asked for, else the first."""
    if not options.is_timed or len(made) == 1:
        return made[0]
    return fastest(made, "onnxruntime" if options.target == "onnx" else options.target, proof.samples)


def _take(trained: Trained, frames: Iterable[Frame], source: str, sampling: Sampling) -> list[Sample]:
    network = trained.network

    def expected(frames_nhwc: NDArray[np.uint8]) -> Expected:
        own = network.reference(frames_nhwc)
        return own if trained.reference is network else trained.reference.reference(frames_nhwc)

    # Layers are watched on all frames that the trained network sees: their largest values decide what can be FP16.
    with network.watching():
        return take_samples(frames, expected, source, sampling)


def _frames_to_check(giga_macs: float | None) -> int:
    """As many frames as a small network takes half a minute for, and for a large one fewer, but never a handful."""
    affordable = MOST_FRAMES if giga_macs is None else int(_VERIFY_GIGA_MACS / max(giga_macs, 1e-9))
    return min(max(affordable, FEWEST_FRAMES), MOST_FRAMES)


def _manifest(program: Program, trained: Trained, verification: Verification, options: BuildOptions) -> Manifest:
    network = trained.network
    return Manifest(
        model=trained.name,
        task=network.task,
        classes=_class_names(network.contract.classes, network.class_count),
        network_size_hw=network.contract.imgsz,
        frame_size_hw=options.frame_size_hw,
        precision=program.precision,
        layers=program.layers,
        calibration=program.calibration,
        contract=network.contract.as_dict(),
        weights={
            "file": trained.weights.name,
            "sha256": trained.weights_sha256,
            "family": network.family,
            "architecture": network.architecture,
        },
        verification=verification.as_dict(),
        composes=options.compose == "device",
        pixels=options.pixels,
        tools=_tools(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


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
