"""Trained weights to a bundle, from Python: ``build("unet.pth", "bundle", precision="int8", calibration="photos/")``.

What costs seconds to import, PyTorch above all, is imported when a build begins: a wrong option is told at once.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from compile.networks.zoo import ZOO
from compile.options import BuildOptions, StrPath, WantedPrecision, is_factory
from pipeline.bundles.bundle import WORST_NAME, Bundle, check_destination
from pipeline.engines.on_cpu import slower_on_cpu
from pipeline.errors import BackendUnavailableError, CompileError
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from compile.draft import Draft
    from compile.proof.frames import VerificationFrames

log = logger_of(__name__)


def build(
    network: StrPath,
    output: StrPath,
    *,
    precision: WantedPrecision = "fp32",
    calibration: StrPath | None = None,
    **more: Any,
) -> Bundle:
    """Compile a trained network, check it against the network on real frames, and write it as a bundle.

    Args:
        network: name of a published network, or a file of weights: a checkpoint of U-Net or U²-Net, or any network as ONNX or ``.pt2``;
            or "package.module:function" that gives one in PyTorch.
        output: the bundle's folder; a bundle that is there is replaced.
        precision: "fp32", "fp16", "int8" (with ``calibration``), or "auto": the fastest on this device that passes.
        calibration: for INT8, a source of frames or a calibration set.
        more: other fields of ``BuildOptions``.

    Returns:
        The bundle, as it was written.

    Raises:
        OptionError: a value that is not taken, or options that do not go together.
        EdgemaskError: as ``build_bundle``.
    """
    name = os.fspath(network)
    kind = "weights"
    if not os.path.exists(name):
        kind = "model" if name in ZOO else "network" if is_factory(name) else kind
    frames = None if calibration is None else os.fspath(calibration)
    return build_bundle(BuildOptions(output=output, precision=precision, calibration=frames, **({kind: name} | more)))


def build_bundle(options: BuildOptions) -> Bundle:
    """Build what was asked for: a bundle of a trained network, a plan in a bundle that is there, or that in a model repository.

    Returns:
        The bundle, as it was written.

    Raises:
        BundleError: the bundle cannot be read, or not be written there.
        BackendUnavailableError: packages or a device are not here.
        ModelError: the weights cannot be had.
        CompileError: the network does not compile, or what came out does not agree with it.
        CalibrationError, SourceError: the frames cannot be had.
        OptionError: an option does not fit the network.
    """
    start_s = time.monotonic()
    if options.target != "triton":
        check_destination(options.folder)
    _import_packages(options)
    if options.target == "triton":
        return _into_repository(options)
    from compile.plans.plans import extend_bundle
    from compile.proof.frames import VerificationFrames

    with VerificationFrames(options.verify, options.calibration, options.calibration_size) as frames:
        if options.bundle is not None:
            bundle = extend_bundle(options.folder, frames, options)
            size_bytes = bundle.manifest.engines[-1].size_bytes
        else:
            bundle = _compile(options, frames)
            size_bytes = sum((bundle.folder / name).stat().st_size for name in bundle.manifest.files)
    if options.bundle is None and WORST_NAME in bundle.manifest.files:
        log.info(
            "%s shows pictures with their masks: agreement cannot tell whether the contract is right",
            bundle.folder / WORST_NAME,
        )
    log.info("%s: %.1f MB in %.0f s", options.folder, size_bytes / 1e6, time.monotonic() - start_s)
    return bundle


def _into_repository(options: BuildOptions) -> Bundle:
    from compile.plans.triton_repository import write_repository

    assert options.bundle is not None
    bundle = Bundle.read(options.bundle)
    write_repository(bundle, options.folder, batch=options.batch, frame_size_hw=options.frame_size_hw)
    return bundle


def _compile(options: BuildOptions, frames: VerificationFrames) -> Bundle:
    from compile import steps

    wanted_plan = steps.plan_wanted(options)
    trained = steps.open_trained(options)
    precisions = steps.precisions_of(trained, options)
    proof = steps.take_proof(trained, options, frames)
    programs = steps.programs_of(trained, options, frames)
    made: list[Draft] = []
    for precision in precisions:
        try:
            program = programs.export(precision)
            draft = steps.prove(program, trained, proof, options, frames.advice)
            made.append(steps.add_wanted_plan(draft, wanted_plan, trained.network, proof, options))
        except CompileError as error:
            if precision == precisions[-1] and not made:
                raise
            log.info("not %s: %s", precision, error)
        else:
            if not options.is_timed:
                break
    draft = steps.add_reference(steps.choose(made, proof, options), trained, proof, options)
    draft = steps.add_drift(draft, proof, options, frames)
    bundle = draft.write(options.folder)
    if options.target == "onnx" and (advice := slower_on_cpu(bundle.manifest)):
        log.info("%s", advice)
    return bundle


def _import_packages(options: BuildOptions) -> None:
    # Before any work, so that missing packages are told with the command that installs them.
    module, extra = ("plans.plans", "tensorrt") if options.bundle is not None else ("steps", "compile")
    if options.target == "triton":
        module, extra = "plans.triton_repository", "triton"
    try:
        import_module(f"compile.{module}")
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"compiling needs packages that are not here ({error}): install them with: pip install 'edgemask[{extra}]'"
        ) from error
