"""python -m compile --model NAME --output DIR: trained weights to a bundle, checked against the trained network."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # python -m puts the current folder first, which may hold packages that are called like ours.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from compile.networks.zoo import ZOO, fetch
from compile.options import PLAN_TARGETS, parse_options
from pipeline.bundles.bundle import (
    PROGRAM_NAME,
    WORST_NAME,
    Bundle,
    Manifest,
    Precision,
    Task,
    cache_folder,
    check_destination,
    file_sha256,
)
from pipeline.command.command_line import run_command
from pipeline.engines.on_cpu import slower_on_cpu
from pipeline.errors import BackendUnavailableError, CompileError, EdgemaskError, ModelError, OptionError

if TYPE_CHECKING:
    from calibration.metrics.truth import Truths
    from compile.proof.frames import VerificationFrames
    from pipeline.frames.frame import Frame
    from pipeline.frames.pixels import Pixels

# At what size the published networks without a fixed one were trained.
_TRAINED_AT = {"unet-carvana": (1280, 1920), "unet-carvana-half": (640, 960)}

# 32 frames of U²-NetP at 320×320, which take two cores half a minute.
_VERIFY_GIGA_MACS = 640


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _compile(parse_options(arguments)), (EdgemaskError, ModelError))


def _compile(options: argparse.Namespace) -> None:
    say: Callable[[str], None] = (lambda _: None) if options.quiet else (lambda line: print(line, flush=True))
    start_s = time.monotonic()
    output = Path(options.bundle or options.output)
    check_destination(output)
    _import_build_half(options)
    from compile.proof.frames import VerificationFrames

    with VerificationFrames(options.verify, options.calib, options.calib_size, say) as frames:
        if options.bundle is not None:
            from compile.plans.plans import extend_bundle

            size_bytes = extend_bundle(output, frames, options, say)
        else:
            size_bytes = _write_bundle(options, output, frames, say)
    say(f"{output}: {size_bytes / 1e6:.1f} MB in {time.monotonic() - start_s:.0f} s")


def _import_build_half(options: argparse.Namespace) -> None:
    # Not at the top, so that a wrong option is told at once, and missing packages with the command that installs them.
    module, extra = ("plans.plans", "tensorrt") if options.bundle is not None else ("program.candidate", "compile")
    try:
        import_module(f"compile.{module}")
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"compiling needs packages that are not here ({error}): install them with: pip install 'edgemask[{extra}]'"
        ) from error


def _write_bundle(
    options: argparse.Namespace, output: Path, frames: VerificationFrames, say: Callable[[str], None]
) -> int:
    from calibration.metrics.truth import read_truths
    from compile.plans.plans import add_plan, add_torch_program, build_options
    from compile.program.candidate import contract_of, open_candidate
    from compile.program.compose import with_views
    from compile.program.nv12 import with_nv12
    from compile.program.programs import Programs, single_precision
    from compile.proof.frames import SEARCHED_FRAMES
    from compile.proof.verify import Proof, Sample, problem_with, program_masks, take_samples
    from compile.proof.worst_frames import draw_worst
    from compile.timing import fastest

    built = None
    if options.target in PLAN_TARGETS:
        built = build_options(options, options.frame, options.batch or 1, say, options.pixels)
        if options.precision == "auto" and (built.gpu is None or (built.sms and built.gpu.sm not in built.sms)):
            raise OptionError(
                "--precision auto: expected the GPU that the plan is for in this machine, to time on, got none: choose a precision"
            )
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
    if options.target == "torch-tensorrt" and candidate.module is None:
        raise OptionError("--target: expected onnx or tensorrt for a network given as ONNX, got torch-tensorrt")
    contract = candidate.contract
    height, width = contract.imgsz
    say(
        f"{weights.name}: {candidate.architecture} ({candidate.family}), {candidate.class_count} class(es), {height}×{width}"
    )
    task: Task = "binary" if candidate.class_count == 1 else "classes"
    composes = options.compose == "device"
    if composes and task != "binary":
        raise OptionError(
            f"--compose device: expected a network of one class, got {candidate.class_count}: leave --compose out"
        )
    truths = None if options.calib_masks is None else read_truths(options.calib_masks, task)

    def taken(
        source: Iterable[Frame], count: int, truths: Truths | None = None, pixels: Pixels = "bgr"
    ) -> list[Sample]:
        # Layers are watched on all frames that the trained network sees: their largest values decide what can be FP16.
        with ExitStack() as stack:
            if candidate.ranges is not None:
                stack.enter_context(candidate.ranges.watching())
            return take_samples(source, candidate.reference, frames.origin, task, options.frame, count, truths, pixels)

    count = options.verify_count or _frames_to_check(candidate.giga_macs)
    samples = taken(frames.judging(count), count, truths, options.pixels)
    if (doubt := candidate.doubt()) is not None:
        say(doubt)
    proof = Proof(samples, task, frames.origin)
    weights_sha256 = file_sha256(weights)
    programs = Programs(
        candidate, lambda: taken(frames.searched(), SEARCHED_FRAMES), frames.calibration, weights_sha256, options, say
    )

    def complete(precision: Precision) -> tuple[Manifest, dict[str, bytes]]:
        program = programs.export(precision)
        content = with_views(program.content, options.frame) if composes else program.content
        if options.pixels == "nv12":
            content = with_nv12(content, options.frame)
        masks, runtime = program_masks(content, options.pixels)
        verification = proof.of(masks, runtime)
        problem = problem_with(verification, options.min_iou, options.min_worst_iou)
        if problem is not None:
            raise CompileError(problem + frames.advice)
        say(
            f"{precision} agrees with {proof.against} on {verification.frames} {proof.source}: {verification}{frames.advice}"
        )
        manifest = Manifest(
            model=options.model or weights.stem,
            task=task,
            classes=_class_names(contract.classes, candidate.class_count),
            network_size_hw=contract.imgsz,
            frame_size_hw=options.frame,
            precision=precision,
            layers=program.layers,
            calibration=program.calibration,
            contract=contract.as_dict(),
            weights={
                "file": weights.name,
                "sha256": weights_sha256,
                "family": candidate.family,
                "architecture": candidate.architecture,
            },
            verification=verification.as_dict(),
            composes=composes,
            pixels=options.pixels,
            tools=_tools(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        files = {PROGRAM_NAME: content, WORST_NAME: draw_worst(masks, samples, verification, task)}
        if built is not None:
            return add_plan(manifest, files, built, proof, options, say)
        if options.target == "torch-tensorrt":
            assert candidate.module is not None
            module = candidate.module(precision, single_precision(program.layers))
            return add_torch_program(manifest, files, module, proof, options, say)
        return manifest, files

    wanted = _precisions(options)
    made: list[tuple[Manifest, dict[str, bytes]]] = []
    for precision in wanted:
        try:
            made.append(complete(precision))
        except CompileError as error:
            if precision == wanted[-1] and not made:
                raise
            say(f"not {precision}: {error}")
        else:
            if not _timed(options):
                break
    manifest, files = made[0]
    if _timed(options):
        manifest, files = fastest(made, "onnxruntime" if options.target == "onnx" else options.target, samples, say)
    Bundle.write(output, manifest, files)
    if options.target == "onnx" and (advice := slower_on_cpu(manifest)):
        say(advice)
    return sum(len(content) for content in files.values())


def _precisions(options: argparse.Namespace) -> tuple[Precision, ...]:
    """What is tried, in order; the first that passes is taken, or for "auto" the fastest."""
    if options.precision in ("fp32", "fp16") or options.strict:
        return (options.precision,)
    # A CPU computes FP16 in FP32, with the conversions on top.
    others: tuple[Precision, ...] = ("fp32",) if options.target == "onnxruntime" else ("fp16", "fp32")
    return others if options.calib is None else ("int8", *others)


def _timed(options: argparse.Namespace) -> bool:
    """Whether what passes is timed: INT8 on a CPU without instructions for it is slower than FP32."""
    return options.precision == "auto" or (
        options.precision == "int8" and options.target == "onnxruntime" and not options.strict
    )


def _frames_to_check(giga_macs: float | None) -> int:
    """As many frames as a small network takes half a minute for, and for a large one fewer, but never a handful."""
    from compile.proof.verify import FEWEST_FRAMES, MOST_FRAMES

    affordable = MOST_FRAMES if giga_macs is None else int(_VERIFY_GIGA_MACS / max(giga_macs, 1e-9))
    return min(max(affordable, FEWEST_FRAMES), MOST_FRAMES)


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


if __name__ == "__main__":
    sys.exit(main())
