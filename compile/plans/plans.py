"""The plan that goes into a bundle: what for, built, and checked on the GPU if that is here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compile.draft import Draft
from compile.options import BuildOptions, check_nv12_frame
from compile.plans.build_progress import BuildProgress
from compile.plans.tensorrt_build import PlanOptions, build_plan, check_options
from compile.program.batch import check_batch, takes_batch
from compile.proof.tiled import masks_in_tiles
from compile.proof.verify import (
    FEWEST_FRAMES,
    SEQUENCE,
    Expected,
    Masks,
    Proof,
    Sample,
    Sampling,
    as_taken,
    problem_with,
    program_masks,
    require_finite,
    take_samples,
)
from pipeline.bundles.bundle import PLANS, PROGRAM_NAME, Bundle, Manifest, cache_folder, file_sha256
from pipeline.bundles.plan import NAMES
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import open_engine
from pipeline.engines.gpu import find_gpu
from pipeline.errors import BackendUnavailableError, CompileError, PlanError
from pipeline.frames.pixels import Pixels
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from compile.program.program import FrameProgram
    from compile.proof.frames import VerificationFrames

# What RTX GPUs in use have: Ampere, Ada, Blackwell.
DEFAULT_SMS = (86, 89, 120)

# Of masks of the same frames, in a batch and alone: rounding moves a value, and of classes the border.
_SAME, _MOST_OTHERS = 2, 0.001

log = logger_of(__name__)


def plan_options(
    options: BuildOptions, frame_size_hw: tuple[int, int] | None, batch: int, pixels: Pixels = "bgr"
) -> PlanOptions:
    """What a plan is built for on this machine.

    Args:
        options: what was asked for.
        frame_size_hw: the fixed (height, width) of the frames, or None.
        batch: the most frames at once.
        pixels: how the program takes frames.

    Raises:
        BackendUnavailableError: TensorRT, or what it needs, is not here.
        CompileError: nothing can be built for such a GPU.
    """
    try:
        gpu = find_gpu()
    except BackendUnavailableError as error:
        if options.target == "tensorrt":
            raise
        gpu = None
        if not options.sm:
            log.info(
                "building for SM %s, for the GPU of this machine cannot be asked (%s)", _joined(DEFAULT_SMS), error
            )
    rtx = options.target == "tensorrt-rtx"
    timing_cache = None
    if not rtx and gpu is not None:
        timing_cache = Path(options.timing_cache or cache_folder() / "timing" / f"tensorrt-sm{gpu.sm}.cache")
    built = PlanOptions(
        runtime=options.target,
        sms=(options.sm or (DEFAULT_SMS if gpu is None else (gpu.sm,))) if rtx else (),
        gpu=gpu,
        frame_size_hw=frame_size_hw,
        batch=batch,
        workspace_bytes=options.workspace_bytes,
        timing_cache=timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        dla_core=options.dla,
        pixels=pixels,
    )
    check_options(built)
    return built


def add_plan(draft: Draft, built: PlanOptions, proof: Proof, options: BuildOptions) -> Draft:
    """Build a plan from a bundle's program, and put it in.

    Args:
        draft: the bundle, with its program.
        built: what the plan is for.
        proof: what to check it with, if its GPU is here.
        options: how well it must agree.

    Returns:
        The bundle with the plan, in place of one for the same GPU.

    Raises:
        CompileError: TensorRT cannot build it, or its masks do not agree.
    """
    gpus = f"SM {_joined(built.sms)}" if built.sms else f"{built.gpu.name if built.gpu else 'this GPU'}"
    log.info("building a %s plan for %s", NAMES[built.runtime], gpus)
    with BuildProgress(quiet=options.quiet) as progress:
        plan = build_plan(draft.files[PROGRAM_NAME], built, step=progress)
    if plan.float_scales:
        log.info("built with FP32 scales: this TensorRT cannot build INT8 with FP16 ones")
    if built.dla_core is not None:
        left = ", ".join(plan.gpu_layers[:8]) + (", …" if len(plan.gpu_layers) > 8 else "")
        log.info(
            "DLA core %d: %d layer(s) left to the GPU%s", built.dla_core, len(plan.gpu_layers), left and f": {left}"
        )
    here = built.gpu is not None and built.gpu.sm in plan.sms
    if not here:
        log.info("not checked on a GPU, for none of those is here; its program was")
    entry = plan.entry(draft.manifest.precision)
    return _put_in(draft, entry, plan.content, proof if here else None, options)


def add_torch_program(draft: Draft, program: FrameProgram, proof: Proof, options: BuildOptions) -> Draft:
    """Build a Torch-TensorRT program for the GPU of this machine, and put it in; otherwise as ``add_plan``.

    Args:
        draft: the bundle.
        program: around the network, in the bundle's precision; changed.
        proof: what to check it with.
        options: how well it must agree.

    Raises:
        BackendUnavailableError: Torch-TensorRT or a GPU is not here.
        CompileError: the network does not convert whole, or its masks do not agree.
    """
    from compile.plans.torch_tensorrt_build import build_torch_tensorrt

    log.info("building a Torch-TensorRT program for the GPU of this machine")
    manifest = draft.manifest
    with BuildProgress(quiet=options.quiet) as progress:
        built = build_torch_tensorrt(
            program,
            precision=manifest.precision,
            frame_size_hw=manifest.frame_size_hw,
            batch=options.batch or 1,
            engine_cache=cache_folder() / "torch-tensorrt",
            step=progress,
        )
    return _put_in(draft, built.entry(manifest.precision), built.content, proof, options)


def _put_in(draft: Draft, entry: PlanEntry, content: bytes, proof: Proof | None, options: BuildOptions) -> Draft:
    """The bundle with a plan, checked on the GPU if there is something to check it with."""
    manifest = draft.manifest
    kept = [other for other in manifest.engines if not entry.replaces(other)]
    plans = {other.file for other in kept}
    files = {name: data for name, data in draft.files.items() if name in plans or not name.startswith(PLANS)}
    files[entry.file] = content
    if proof is not None:
        alone = {PROGRAM_NAME: draft.files[PROGRAM_NAME], entry.file: content}
        checked = _verify_on_gpu(Draft(replace(manifest, engines=(entry,)), alone), proof, options)
        entry = replace(entry, verification=checked)
    return Draft(replace(manifest, engines=(*kept, entry)), files)


def extend_bundle(folder: Path, frames: VerificationFrames, options: BuildOptions) -> Bundle:
    """Build a plan for a bundle that is there, from its own program, and put it in as the last one.

    Raises:
        BundleError: there is no bundle, or it is damaged or cannot be written.
        CompileError: TensorRT cannot build the plan, or it does not agree with the program.
    """
    bundle = Bundle.read(folder)
    manifest = bundle.manifest
    if manifest.for_cpu:
        raise CompileError(
            f"{folder}: expected a program for a GPU, got INT8 for CPUs: compile the network itself with --target {options.target}"
        )
    frame_size_hw = _frame_size(manifest, options)
    before = [entry for entry in manifest.engines if entry.runtime == options.target]
    built = plan_options(options, frame_size_hw, options.batch or _batch_of(before), manifest.pixels)
    draft = _sound(bundle)
    masks, runtime = program_masks(draft.files[PROGRAM_NAME], manifest.pixels)
    if manifest.tiles is not None:
        masks = masks_in_tiles(masks, manifest.tiles, manifest.task)
    frames.take("bgr" if manifest.pixels == "nv12" else manifest.pixels)
    many = takes_batch(onnx.load_from_string(draft.files[PROGRAM_NAME]))
    count = options.verify_count or FEWEST_FRAMES
    sequence = SEQUENCE if manifest.contract.get("state") else 1
    samples = take_samples(
        frames.judging(count),
        lambda frames_nhwc: Expected(masks(frames_nhwc)),
        frames.origin,
        Sampling(
            manifest.task, None if manifest.tiles else frame_size_hw, count, pixels=manifest.pixels, sequence=sequence
        ),
    )
    if built.batch > 1:
        check_batch(many and _gives_the_same_together(masks, samples[0]), built.batch, folder)
    return add_plan(draft, built, Proof(samples, manifest.task, frames.origin, runtime), options).write(folder)


def _gives_the_same_together(masks: Masks, sample: Sample) -> bool:
    """Whether three frames at once have the masks that each has alone, which programs of old do not say of themselves."""
    frame = sample.frames_nhwc
    frames_nhwc = np.concatenate([frame, frame[:, ::-1], frame[:, :, ::-1]])
    alone = np.concatenate([masks(one[None]) for one in frames_nhwc])
    try:
        together = masks(frames_nhwc)
    except CompileError:
        return False
    apart = together.shape != alone.shape or np.mean(np.abs(together.astype(np.int16) - alone) > _SAME) > _MOST_OTHERS
    return not apart


def _frame_size(manifest: Manifest, options: BuildOptions) -> tuple[int, int] | None:
    """The size of the frames that the plan takes, as far as it is fixed."""
    wanted, fixed = options.frame_size_hw, manifest.frame_size_hw
    if fixed is not None and wanted not in (None, fixed):
        assert wanted is not None
        raise CompileError(
            f"--frame: expected {fixed[0]}x{fixed[1]}, which the bundle's program has fixed, got {wanted[0]}x{wanted[1]}"
        )
    frame_size_hw = wanted or fixed
    if manifest.pixels == "nv12" and wanted is not None:
        check_nv12_frame(wanted)
    if options.dla is not None and (frame_size_hw is None or manifest.precision == "fp32"):
        raise CompileError(
            "--dla: expected --frame HxW and a bundle of fp16, for an accelerator takes one size and no FP32, "
            f"got {'any size' if frame_size_hw is None else 'one size'} and {manifest.precision}"
        )
    return frame_size_hw


def _sound(bundle: Bundle) -> Draft:
    """A bundle with its program and those plans that are as they were built."""
    manifest, folder = bundle.manifest, bundle.folder
    files = {name: (folder / name).read_bytes() for name in manifest.files if not name.startswith(PLANS)}
    sound = []
    for entry in manifest.engines:
        path = folder / entry.file
        if path.is_file() and file_sha256(path) == manifest.files.get(entry.file):
            files[entry.file] = path.read_bytes()
            sound.append(entry)
        else:
            log.info("%s: left out, for it was changed or damaged", path)
    return Draft(replace(manifest, engines=tuple(sound)), files)


def _verify_on_gpu(draft: Draft, proof: Proof, options: BuildOptions) -> dict[str, Any]:
    """Run the one plan of a bundle, and compare: in the form of the manifest."""
    (entry,), pixels = draft.manifest.engines, draft.manifest.pixels
    with tempfile.TemporaryDirectory(prefix="edgemask.") as scratch:
        bundle = draft.write(Path(scratch) / "bundle")
        count = entry.profile[0][0]
        try:
            with open_engine(bundle, entry.runtime) as engine:

                def masks(frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
                    found, state = [], engine.new_state()
                    for frame in as_taken(frames_nhwc, pixels):  # of a sequence, one after the other
                        engine.submit(np.repeat(frame[None], count, axis=0), state=state)
                        computed = engine.collect_all()
                        require_finite(computed.not_finite, "the plan")
                        found.append(computed.masks_nhw[0])
                    return np.stack(found)

                result = proof.of(masks, engine.description)
        except PlanError as error:
            raise CompileError(f"the plan was built, but this GPU does not run it: {error.problem}") from error
    problem = problem_with(result, options.min_iou, options.min_worst_iou)
    if problem is not None:
        raise CompileError(problem)
    log.info("on %s it agrees with %s on %d %s: %s", result.runtime, proof.against, result.frames, proof.source, result)
    return result.as_dict()


def _batch_of(entries: Sequence[PlanEntry]) -> int:
    """How many frames at once the newest plan takes; 1 where that is not said."""
    profile = entries[-1].profile if entries else ()
    return profile[-1][0] if profile and profile[-1] else 1


def _joined(sms: Sequence[int]) -> str:
    return ", ".join(str(sm) for sm in sms)
