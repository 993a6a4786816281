"""The plan that goes into a bundle: what for, built, and checked on the GPU if that is here."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compile.options import check_nv12_frame
from compile.plans.build_progress import BuildProgress
from compile.plans.tensorrt_build import BuildOptions, build_plan, check_options
from compile.proof.verify import (
    FEWEST_FRAMES,
    Expected,
    Proof,
    as_taken,
    problem_with,
    program_masks,
    require_finite,
    take_samples,
)
from pipeline.bundles.bundle import PROGRAM_NAME, WORST_NAME, Bundle, Manifest, cache_folder, file_sha256
from pipeline.bundles.plan import NAMES
from pipeline.engines import open_engine
from pipeline.engines.gpu import find_gpu
from pipeline.errors import BackendUnavailableError, CompileError, PlanError
from pipeline.frames.pixels import Pixels

if TYPE_CHECKING:
    from compile.program.program import FrameProgram
    from compile.proof.frames import VerificationFrames

# What RTX GPUs in use have: Ampere, Ada, Blackwell.
DEFAULT_SMS = (86, 89, 120)

Say = Callable[[str], None]


def build_options(
    options: argparse.Namespace,
    frame_size_hw: tuple[int, int] | None,
    batch: int,
    say: Say,
    pixels: Pixels = "bgr",
) -> BuildOptions:
    """What the command line asks for, on this machine.

    Args:
        options: of ``compile.options``.
        frame_size_hw: the fixed (height, width) of the frames, or None.
        batch: the most frames at once.
        say: gets a line where something was chosen.
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
            say(f"building for SM {_joined(DEFAULT_SMS)}, for the GPU of this machine cannot be asked ({error})")
    rtx = options.target == "tensorrt-rtx"
    timing_cache = None
    if not rtx and gpu is not None:
        timing_cache = Path(options.timing_cache or cache_folder() / "timing" / f"tensorrt-sm{gpu.sm}.cache")
    built = BuildOptions(
        runtime=options.target,
        sms=(options.sm or (DEFAULT_SMS if gpu is None else (gpu.sm,))) if rtx else (),
        gpu=gpu,
        frame_size_hw=frame_size_hw,
        batch=batch,
        workspace_bytes=options.workspace,
        timing_cache=timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        dla_core=options.dla,
        pixels=pixels,
    )
    check_options(built)
    return built


def add_plan(
    manifest: Manifest,
    files: Mapping[str, bytes],
    built: BuildOptions,
    proof: Proof,
    options: argparse.Namespace,
    say: Say,
) -> tuple[Manifest, dict[str, bytes]]:
    """Build a plan from a bundle's program, and put it in.

    Args:
        manifest: of the bundle.
        files: content of the bundle's files by name, the program among them.
        built: what the plan is for.
        proof: what to check it with, if its GPU is here.
        options: of ``compile.options``: ``quiet``, ``min_iou``, ``min_worst_iou``.
        say: gets a line for each step.

    Returns:
        The manifest and the files with the plan, in place of one for the same GPU.

    Raises:
        CompileError: TensorRT cannot build it, or its masks do not agree.
    """
    gpus = f"SM {_joined(built.sms)}" if built.sms else f"{built.gpu.name if built.gpu else 'this GPU'}"
    say(f"building a {NAMES[built.runtime]} plan for {gpus}")
    with BuildProgress(quiet=options.quiet) as progress:
        plan = build_plan(files[PROGRAM_NAME], built, step=progress)
    if plan.float_scales:
        say("built with FP32 scales: this TensorRT cannot build INT8 with FP16 ones")
    if built.dla_core is not None:
        left = ", ".join(plan.gpu_layers[:8]) + (", …" if len(plan.gpu_layers) > 8 else "")
        say(f"DLA core {built.dla_core}: {len(plan.gpu_layers)} layer(s) left to the GPU{': ' if left else ''}{left}")
    here = built.gpu is not None and built.gpu.sm in plan.sms
    if not here:
        say("not checked on a GPU, for none of those is here; its program was")
    entry = plan.as_dict(manifest.precision)
    return _put_in(manifest, files, entry, plan.content, proof if here else None, options, say)


def add_torch_program(
    manifest: Manifest,
    files: Mapping[str, bytes],
    program: FrameProgram,
    proof: Proof,
    options: argparse.Namespace,
    say: Say,
) -> tuple[Manifest, dict[str, bytes]]:
    """Build a Torch-TensorRT program for the GPU of this machine, and put it in; otherwise as ``add_plan``.

    Args:
        manifest: of the bundle.
        files: content of the bundle's files by name.
        program: around the network, in the bundle's precision; changed.
        proof: what to check it with.
        options: of ``compile.options``.
        say: gets a line for each step.

    Raises:
        BackendUnavailableError: Torch-TensorRT or a GPU is not here.
        CompileError: the network does not convert whole, or its masks do not agree.
    """
    from compile.plans.torch_tensorrt_build import build_torch_tensorrt

    say("building a Torch-TensorRT program for the GPU of this machine")
    with BuildProgress(quiet=options.quiet) as progress:
        built = build_torch_tensorrt(
            program,
            precision=manifest.precision,
            frame_size_hw=manifest.frame_size_hw,
            batch=options.batch or 1,
            engine_cache=cache_folder() / "torch-tensorrt",
            step=progress,
        )
    return _put_in(manifest, files, built.as_dict(manifest.precision), built.content, proof, options, say)


def _put_in(
    manifest: Manifest,
    files: Mapping[str, bytes],
    entry: dict[str, Any],
    content: bytes,
    proof: Proof | None,
    options: argparse.Namespace,
    say: Say,
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files with a plan, checked on the GPU if there is something to check it with."""
    kept = [other for other in manifest.engines if not _replaced(other, entry)]
    names = {PROGRAM_NAME, WORST_NAME, *(str(other["file"]) for other in kept)}
    complete = {name: data for name, data in files.items() if name in names} | {entry["file"]: content}
    if proof is not None:
        entry["verification"] = _verify_on_gpu(manifest, files[PROGRAM_NAME], entry, content, proof, options, say)
    return replace(manifest, engines=(*kept, entry)), complete


def extend_bundle(folder: Path, frames: VerificationFrames, options: argparse.Namespace, say: Say) -> int:
    """Build a plan for a bundle that is there, from its own program, and put it in.

    Returns:
        The plan's size in bytes.

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
    fixed = manifest.frame_size_hw
    if fixed is not None and options.frame not in (None, fixed):
        raise CompileError(
            f"--frame: expected {fixed[0]}x{fixed[1]}, which the bundle's program has fixed, got {options.frame[0]}x{options.frame[1]}"
        )
    frame_size_hw = options.frame or fixed
    if manifest.pixels == "nv12" and options.frame is not None:
        check_nv12_frame(options.frame)
    if options.dla is not None and (frame_size_hw is None or manifest.precision == "fp32"):
        raise CompileError(
            "--dla: expected --frame HxW and a bundle of fp16, for an accelerator takes one size and no FP32, "
            f"got {'any size' if frame_size_hw is None else 'one size'} and {manifest.precision}"
        )
    before = [entry for entry in manifest.engines if entry.get("runtime") == options.target]
    built = build_options(options, frame_size_hw, options.batch or _batch_of(before), say, manifest.pixels)
    files = {name: (folder / name).read_bytes() for name in (PROGRAM_NAME, WORST_NAME) if name in manifest.files}
    sound = []
    for entry in manifest.engines:
        path = folder / str(entry.get("file"))
        if path.is_file() and file_sha256(path) == manifest.files.get(str(entry.get("file"))):
            files[str(entry["file"])] = path.read_bytes()
            sound.append(entry)
        else:
            say(f"{path}: left out, for it was changed or damaged")
    masks, runtime = program_masks(files[PROGRAM_NAME], manifest.pixels)
    count = options.verify_count or FEWEST_FRAMES
    samples = take_samples(
        frames.judging(count),
        lambda frames_nhwc: Expected(masks(frames_nhwc)),
        frames.origin,
        manifest.task,
        frame_size_hw,
        count,
        pixels=manifest.pixels,
    )
    proof = Proof(samples, manifest.task, frames.origin, runtime)
    manifest, files = add_plan(replace(manifest, engines=tuple(sound)), files, built, proof, options, say)
    Bundle.write(folder, manifest, files)
    return int(manifest.engines[-1]["size_bytes"])


def _verify_on_gpu(
    manifest: Manifest,
    program: bytes,
    entry: Mapping[str, Any],
    content: bytes,
    proof: Proof,
    options: argparse.Namespace,
    say: Say,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgemask.") as scratch:
        files = {PROGRAM_NAME: program, str(entry["file"]): content}
        bundle = Bundle.write(Path(scratch) / "bundle", replace(manifest, engines=(entry,)), files)
        count = int(entry["profile"][0][0])
        try:
            with open_engine(bundle, str(entry["runtime"])) as engine:

                def masks(frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
                    engine.submit(np.repeat(as_taken(frames_nhwc, manifest.pixels), count, axis=0))
                    computed = engine.collect_all()
                    require_finite(computed.not_finite, "the plan")
                    return computed.masks_nhw[:1]

                result = proof.of(masks, engine.description)
        except PlanError as error:
            raise CompileError(f"the plan was built, but this GPU does not run it: {error.problem}") from error
    problem = problem_with(result, options.min_iou, options.min_worst_iou)
    if problem is not None:
        raise CompileError(problem)
    say(f"on {result.runtime} it agrees with {proof.against} on {result.frames} {proof.source}: {result}")
    return result.as_dict()


def _replaced(other: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    same = ("runtime", "sms", "hardware", "dla_core")
    return other.get("file") == entry["file"] or all(other.get(name) == entry.get(name) for name in same)


def _batch_of(entries: Sequence[Mapping[str, Any]]) -> int:
    try:
        return int(entries[-1]["profile"][-1][0])
    except (IndexError, KeyError, TypeError, ValueError):
        return 1


def _joined(sms: Sequence[int]) -> str:
    return ", ".join(str(sm) for sm in sms)
