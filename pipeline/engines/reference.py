"""What a bundle's masks are compared with as it runs: its program in FP32, on ONNX Runtime, on the CPU."""

from __future__ import annotations

from dataclasses import replace

from pipeline.bundles.bundle import PROGRAM_NAME, REFERENCE_NAME, Bundle
from pipeline.engines.base import Engine
from pipeline.errors import BackendUnavailableError, BundleError


def open_reference(bundle: Bundle, *, aside: bool = False) -> Engine:
    """The engine of a bundle's program in FP32, which takes frames as the bundle's own does.

    The file is checked against its sha256 as it is opened: it may have been replaced since the bundle was read.

    Args:
        bundle: that has such a program, see ``Bundle.reference_path``.
        aside: compute on one thread, and keep no memory between frames.

    Raises:
        BundleError: it has none, or the file is gone, was changed or cannot be loaded.
        BackendUnavailableError: ONNX Runtime is not here.
    """
    import hashlib

    path = bundle.reference_path
    if path is None:
        raise BundleError(
            f"{bundle.folder}: expected its program in FP32 beside the one in {bundle.manifest.precision}, got none: compile the "
            "bundle again without --no-reference"
        )
    expected = bundle.manifest.files[REFERENCE_NAME if path.name == REFERENCE_NAME else PROGRAM_NAME]
    try:
        program = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}): compile the bundle again") from error
    got = hashlib.sha256(program).hexdigest()
    if got != expected:
        raise BundleError(
            f"{path}: expected sha256 {expected[:12]}…, got {got[:12]}…: the file was changed or damaged, compile the bundle again"
        )
    try:
        from pipeline.engines.onnxruntime import OnnxRuntimeEngine
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path}: expected ONNX Runtime, which computes it, got none ({error}): install it with: pip install 'edgemask[cpu]'"
        ) from error
    manifest = bundle.manifest
    # A file of its own draws no views.
    composes = manifest.composes and path.name == PROGRAM_NAME
    alike = replace(bundle, manifest=replace(manifest, precision="fp32", composes=composes))
    engine: Engine = OnnxRuntimeEngine(alike, program=program, aside=aside)
    if manifest.tiles is None:
        return engine
    from pipeline.engines.tiled import TiledEngine

    return TiledEngine(engine, manifest.tiles)


def is_reference(engine: Engine) -> bool:
    """Whether an engine runs the bundle's program in FP32 on ONNX Runtime itself: to compare it with that tells little."""
    bundle = engine.bundle
    return bundle.reference_path == bundle.program_path and engine.is_reference
