"""Which layer of a program computes something else than the FP32 program does: the build half finds it, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.builds.build_half import told_by
from pipeline.bundles.bundle import Bundle
from pipeline.errors import BackendUnavailableError
from pipeline.frames.frame import Frame


def layers_apart(bundle: Bundle, reference: Path, frames: Sequence[Frame]) -> dict[str, Any]:
    """Compare a bundle's program with another one, layer by layer, both on ONNX Runtime.

    Args:
        bundle: whose program is doubted.
        reference: the program that is not.
        frames: one or more; the layers are compared on the one whose masks differ most.

    Returns:
        The fields of ``compile.inspect.difference.Difference``.

    Raises:
        BackendUnavailableError: the packages that it needs are not here.
        BuildError: the programs are not of one network, or cannot be run.
    """
    if missing := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise BackendUnavailableError(
            f"layers: expected {' and '.join(missing)}, which compare them, got none: pip install 'edgemask[compile]'"
        )
    with tempfile.TemporaryDirectory(prefix="edgemask.") as folder:
        for number, frame in enumerate(frames):
            np.save(Path(folder) / f"{number:06d}.npy", frame.as_pixels(bundle.manifest.pixels)[None])
        found: dict[str, Any] = json.loads(
            told_by("compile.inspect.difference", [str(bundle.program_path), str(reference), folder])
        )
    return found
