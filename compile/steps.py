"""The steps from a trained network to a bundle, in the order in which ``compile.build`` takes them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.metrics.truth import read_truths
from compile.contract.infer import contract_for
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
from compile.program.open_network import ForeignContract, contract_of, open_made_network, open_network
from compile.program.programs import Program, Programs, single_precision
from compile.program.score_range import doubt_of_masks
from compile.proof.frames import SEARCHED_FRAMES, VerificationFrames
from compile.proof.raw_values import CONVERTED_LIMIT, RAW_LIMITS, Raw
from compile.proof.tiled import TiledSource, as_tiles, masks_in_tiles, reference_in_tiles
from compile.proof.verify import (
    FEWEST_FRAMES,
    MOST_FRAMES,
    TRAINED,
    Expected,
    Masks,
    Proof,
    Reference,
    Sample,
    Sampling,
    Verification,
    doubt_of_truth,
    limits_of,
    open_session,
    problem_with,
    program_masks,
    raw_agreement,
    take_samples,
)
from compile.proof.worst_frames import draw_worst
from compile.timing import fastest
from pipeline.bundles.bundle import (
    DRIFT_NAME,
    PROGRAM_NAME,
    REFERENCE_NAME,
    WORST_NAME,
    Manifest,
    Precision,
    cache_folder,
    file_sha256,
)
from pipeline.drift.figures import figures_of
from pipeline.drift.summary import FEWEST_FRAMES as FEWEST_FOR_DRIFT
from pipeline.drift.summary import Summary
from pipeline.errors import CompileError, OptionError
from pipeline.frames.pixels import Pixels, bands_of
from pipeline.frames.tiles import Tiles
from pipeline.redaction import redact
from pipeline.sources.base import Source
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
        weights: name of the file that it was read from, or of the function that made it.
        weights_sha256: of that file; where weights are in others beside it, of all files' sums; without one, of the weights.
        name: the bundle's.
        reference: what the gate compares with; the network itself where nothing else was given.
        reference_weights: name of the file that it was read from.
    """

    network: Network
    weights: str
    weights_sha256: str
    name: str
    reference: Network
    reference_weights: str

    @property
    def is_unproven(self) -> bool:
        """Whether another tool's rounding is compared with itself."""
        return self.reference is self.network and self.network.precision != "fp32"

    @property
    def against(self) -> str:
        """What the gate compares with, in words."""
        if self.is_unproven:
            return f"itself, the {self.network.precision.upper()} network of {self.weights}"
        return TRAINED if self.reference is self.network else f"{self.reference_weights} in FP32"

    def expected(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """What the gate expects; the network sees the frames too, so that its layers can be watched."""
        own = self.network.reference(frames_nhwc)
        if self.reference is self.network:
            return own
        expected = self.reference.reference(frames_nhwc)
        return expected._replace(raw=_comparable(expected.raw, own.raw))

    @property
    def tiles(self) -> Tiles | None:
        """How frames are cut for it; None if it takes them as they are."""
        tile = self.network.contract.tile
        return None if tile is None else Tiles(*tile)

    def pixels(self, options: BuildOptions) -> Pixels:
        """How its program takes frames."""
        own = self.network.contract.pixels
        return options.pixels if own == "bgr" else own

    def frame_size_hw(self, options: BuildOptions) -> tuple[int, int] | None:
        """The fixed (height, width) of what its program takes, or None for any."""
        return options.frame_size_hw if self.tiles is None else self.tiles.size_hw


def _comparable(raw: Raw | None, own: Raw | None) -> Raw | None:
    """What two networks of one contract have in common: one may give scores where the other gives probabilities."""
    if raw is None or own is None or raw.values is None or own.values is None or raw.values.shape != own.values.shape:
        return None
    return raw._replace(scores=None)


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
    network, weights = _opened(options)
    name = str(options.network) if weights is None else weights.name
    check_batch(network.takes_batch, options.batch, name)
    check_state(network.contract.state, options.target, name)
    if options.target == "torch-tensorrt" and not network.has_layers:
        raise OptionError(
            "--target: expected onnx or tensorrt for a network that cannot be brought into layers, got torch-tensorrt"
        )
    if not network.takes_batch:
        log.info("%s takes one picture at a time, and so does its program", name)
    height, width = network.contract.imgsz
    log.info(
        "%s: %s (%s), %d class(es), %d×%d",
        *(name, network.architecture, network.family, network.class_count, height, width),
    )
    _check_frames(network, options)
    sha256 = network.sha256 if weights is None else _sha256(weights, network.data_files)
    called = options.model or (network.architecture if weights is None else weights.stem)
    reference = network if options.reference is None else _open_reference(network, options)
    reference_name = name if options.reference is None else Path(options.reference).name
    return Trained(network, name, sha256, called, reference, reference_name)


def _check_frames(network: Network, options: BuildOptions) -> None:
    """Refuse options that do not go with how a network sees frames."""
    if options.compose == "device" and network.task != "binary":
        raise OptionError(
            f"--compose device: expected a network of one class, got {network.class_count}: leave --compose out, or name one of them "
            "in the contract (subject: N)"
        )
    contract = network.contract
    if contract.tile is not None:
        what = "a network that sees frames in tiles (tile in its contract), which are cut from BGR frames of any size"
    elif contract.pixels != "bgr":
        what = f"a network of {bands_of(contract.pixels)} as files have them"
    else:
        return
    given = {
        "--frame": contract.tile is not None and options.frame_size_hw is not None,
        "--compose device": options.compose == "device",
        "--pixels nv12": options.pixels == "nv12",
        "--target torch-tensorrt": contract.pixels != "bgr" and options.target == "torch-tensorrt",
    }
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise OptionError(f"{wrong[0]}: expected none of it for {what}: leave it out")


def _opened(options: BuildOptions) -> tuple[Network, Path | None]:
    """The network, and its file of weights; None if a function loads them."""
    weights = None if options.weights is None else Path(options.weights)
    classes, upsample, key = options.classes, options.upsample, options.weights_key
    if options.network is not None:
        made = open_made_network(
            *(options.network, weights, options.contract),
            imgsz=options.imgsz,
            classes=classes,
            upsample=upsample,
            key=key,
        )
        return made, weights
    imgsz = options.imgsz
    foreign_contract: ForeignContract | None = None if weights is None else partial(contract_for, weights, imgsz)
    if weights is None:
        assert options.model is not None  # the options were checked
        weights = fetch(options.model, cache_folder() / "weights", progress=not options.quiet)
        imgsz = imgsz or _TRAINED_AT.get(options.model)
        foreign_contract = _published_contract(options.model, options.contract)
    network = open_network(
        *(weights, options.contract, foreign_contract), imgsz=imgsz, classes=classes, upsample=upsample, key=key
    )
    return network, weights


def _open_reference(network: Network, options: BuildOptions) -> Network:
    """The network in FP32, by the same contract."""
    weights = Path(options.reference or "")
    imgsz = network.contract.imgsz
    # What was found for the network as it came holds for it in FP32 too.
    found = partial(contract_for, weights if options.weights is None else Path(options.weights), imgsz)
    classes, upsample = network.class_count, options.upsample
    reference = open_network(weights, options.contract, found, imgsz=imgsz, classes=classes, upsample=upsample)
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
    pixels = trained.pixels(options)
    sampling = Sampling(network.task, options.frame_size_hw, count, truths, pixels, network.sequence)
    frames.take(network.contract.pixels)
    reference: Reference = trained.expected
    if trained.tiles is not None:
        reference = reference_in_tiles(reference, trained.tiles, network.task)
    # Layers are watched on all frames that the trained network sees: their largest values decide what can be FP16.
    with network.watching():
        samples = take_samples(frames.judging(count), reference, frames.origin, sampling)
    doubts = [one.doubt() for one in {id(network): network, id(trained.reference): trained.reference}.values()]
    for doubt in (*doubts, doubt_of_masks(samples, network.task), doubt_of_truth(samples, network.task)):
        if doubt is not None:
            log.info("%s", doubt)
    return Proof(samples, network.task, frames.origin, trained.against)


def programs_of(trained: Trained, options: BuildOptions, frames: VerificationFrames) -> Programs:
    """The frame program in each precision; layers are searched for on other frames than those that judge."""
    network, tiles = trained.network, trained.tiles
    frame_size_hw = trained.frame_size_hw(options)

    def searched() -> Sequence[Sample]:
        # Frames of cameras, in BGR where the program takes NV12 too.
        sampling = Sampling(network.task, frame_size_hw, SEARCHED_FRAMES, pixels=network.contract.pixels)
        looked_at = frames.searched() if tiles is None else as_tiles(frames.searched(), tiles, 1)
        if (first := next(looked_at, None)) is None:
            log.info("no frames are left to search layers on that FP16 would spoil: give more of them with --verify")
            return []
        looked_at = chain([first], looked_at)
        with network.watching():
            return take_samples(looked_at, trained.expected, frames.origin, sampling)

    calibration: Source | None = frames.calibration
    if tiles is not None and calibration is not None:
        calibration = TiledSource(calibration, tiles)
    sha256 = network.sha256 or trained.weights_sha256
    return Programs(network, searched, calibration, sha256, replace(options, frame_size_hw=frame_size_hw))


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
        content = with_views(content, options.frame_size_hw, options.pixels)
    if options.pixels == "nv12":
        content = with_nv12(content, options.frame_size_hw)
    masks, verification = _verified(replace(program, content=content), trained.network, trained, proof, options)
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


def _verified(
    program: Program, network: Network, trained: Trained, proof: Proof, options: BuildOptions
) -> tuple[Masks, Verification]:
    """What computes the masks of a program of a network, and how far they agree."""
    # What is not in layers is the stranger's own graph.
    how = trained.pixels(options), open_session if network.has_layers else LimitedSession
    masks, runtime = program_masks(program.content, *how)
    if trained.tiles is not None:
        masks = masks_in_tiles(masks, trained.tiles, proof.task)
    # Of NV12 the reference sees what the host makes of it: FFmpeg on other processors than x86 is within 3 of 255 of the program.
    is_rounded = options.pixels == "nv12" or trained.reference.precision != "fp32"
    limit = max(RAW_LIMITS[program.precision], CONVERTED_LIMIT if is_rounded else 0.0)
    raw = raw_agreement(program.content, proof.samples, limit, *how)
    return masks, replace(proof.of(masks, runtime), raw=raw)


def add_reference(draft: Draft, trained: Trained, proof: Proof, options: BuildOptions) -> Draft:
    """The bundle with the program in FP32 beside one that is not, for a run to compare with: it draws no views.

    Raises:
        CompileError: it cannot be exported or run, or does not agree.
    """
    network = trained.reference
    if not options.keep_reference or draft.manifest.precision == "fp32" or network.precision != "fp32":
        return draft
    content = network.export("fp32", trained.frame_size_hw(options), ()).SerializeToString()
    if options.pixels == "nv12":
        content = with_nv12(content, options.frame_size_hw)
    _, verification = _verified(Program("fp32", content, {}), network, trained, proof, options)
    remedy = "take --no-reference"
    if (problem := problem_with(verification, options.min_iou, options.min_worst_iou, remedy)) is not None:
        raise CompileError(f"the program in FP32: {problem}")
    log.info(
        "%s beside it, in FP32, for a run to compare with: %.1f MB, and none with --no-reference",
        *(REFERENCE_NAME, len(content) / 1e6),
    )
    return replace(draft, files={**draft.files, REFERENCE_NAME: content})


def add_drift(draft: Draft, proof: Proof, options: BuildOptions, frames: VerificationFrames) -> Draft:
    """The bundle with figures of the frames that it was calibrated on, or else verified on, for a run to compare its own with."""
    images: Iterable[NDArray[np.uint8]]
    if frames.calibration is not None:
        images, origin = (frame.image for frame in frames.calibration), f"frames of {redact(str(options.calibration))}"
    else:
        images = (one.frames_nhwc[-1] if one.shown_hwc is None else one.shown_hwc for one in proof.samples)
        origin = proof.source
    figures = [figures_of(image) for image in images]
    if len(figures) < FEWEST_FOR_DRIFT:
        log.info(
            "no figures for --drift of %d %s, which takes %d frames or more", len(figures), origin, FEWEST_FOR_DRIFT
        )
        return draft
    summary = Summary.of(np.stack(figures), origin)
    return replace(draft, files={**draft.files, DRIFT_NAME: summary.to_json().encode()})


def add_wanted_plan(
    draft: Draft, wanted: PlanOptions | None, network: Network, proof: Proof, options: BuildOptions
) -> Draft:
    """The bundle with its plan, if the target has one.

    Raises:
        BackendUnavailableError: what builds it is not here.
        CompileError: it cannot be built, or does not agree.
    """
    if wanted is not None:
        # It may be fixed by the contract alone what the program takes.
        wanted = replace(wanted, frame_size_hw=draft.manifest.frame_size_hw, pixels=draft.manifest.pixels)
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


def _frames_to_check(giga_macs: float | None) -> int:
    """As many frames as a small network takes half a minute for, and for a large one fewer, but never a handful."""
    affordable = MOST_FRAMES if giga_macs is None else int(_VERIFY_GIGA_MACS / max(giga_macs, 1e-9))
    return min(max(affordable, FEWEST_FRAMES), MOST_FRAMES)


def _manifest(program: Program, trained: Trained, verification: Verification, options: BuildOptions) -> Manifest:
    network = trained.network
    return Manifest(
        model=trained.name,
        task=network.task,
        classes=network.class_names,
        network_size_hw=network.contract.imgsz,
        frame_size_hw=trained.frame_size_hw(options),
        precision=program.precision,
        layers=program.layers,
        calibration=program.calibration,
        contract=network.contract.as_dict(),
        weights={
            "file": trained.weights,
            "sha256": trained.weights_sha256,
            "family": network.family,
            "architecture": network.architecture,
        },
        verification=verification.as_dict() | {"gate": limits_of(options.min_iou, options.min_worst_iou)},
        composes=options.compose == "device",
        pixels=trained.pixels(options),
        views="nv12" if options.compose == "device" and options.pixels == "nv12" else "bgr",
        tools=_tools(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _tools() -> dict[str, str]:
    packages = ("edgemask", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a clone that was not installed
            continue
    return versions
