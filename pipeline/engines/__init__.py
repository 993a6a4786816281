"""The backends: one file each, imported only when asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipeline.bundle import Bundle
from pipeline.command_line import SaidError
from pipeline.errors import BackendUnavailableError, OptionError, PlanError
from pipeline.plan import BUILT_FROM_PROGRAM

if TYPE_CHECKING:
    from pipeline.engines.base import Engine

ENGINES = {
    # backend: (module, class, extra that installs what it imports); the fastest first
    "tensorrt": ("pipeline.engines.tensorrt", "TensorRTEngine", "tensorrt"),
    "tensorrt-rtx": ("pipeline.engines.tensorrt", "TensorRTRTXEngine", "tensorrt-rtx,pycuda"),
    "torch-tensorrt": ("pipeline.engines.torch_tensorrt", "TorchTensorRTEngine", "torch-tensorrt"),
    "onnxruntime": ("pipeline.engines.onnxruntime", "OnnxRuntimeEngine", "cpu"),
}
_ANYWHERE = "onnxruntime"

Rebuild = Callable[[Bundle, str], Bundle]
"""Builds the plan of a bundle for a backend on this machine; gives the bundle, read again."""


def open_engine(
    bundle: Bundle,
    backend: str = "auto",
    *,
    overlap: bool = False,
    rebuild: Rebuild | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Make the engine that runs a bundle's frame program.

    Args:
        bundle: a bundle that was read, and so checked.
        backend: a key of ``ENGINES``, or "auto": the first one that the bundle has a plan for and this machine can run, else
            ONNX Runtime.
        overlap: on a CPU, two frames at once on half of the cores each: more of them a second, and each takes longer. A GPU has
            several in flight in any case.
        rebuild: makes a plan where the one that is there does not fit this machine, such as
            ``pipeline.build_half.rebuild_plan``; None to refuse.
        say: gets a line for each decision.

    Raises:
        OptionError: there is no such backend.
        BackendUnavailableError: its packages or its device are not on this machine.
        PlanError: the bundle's plan does not fit this machine, and was not to be rebuilt.
        BundleError: the backend cannot load the program.
    """
    if backend != "auto":
        if backend not in ENGINES:
            raise OptionError(f"--backend: expected auto or one of {', '.join(ENGINES)}, got {backend!r}")
        return _open(bundle, backend, overlap, rebuild, say)
    built = [entry.get("runtime") for entry in bundle.manifest.engines]
    for name in ENGINES:
        if name in built:
            try:
                return _open(bundle, name, overlap, rebuild, say)
            except (BackendUnavailableError, PlanError, SaidError) as error:
                say(f"not {name}: {error}")
    return _open(bundle, _ANYWHERE, overlap, rebuild, say)


def _open(bundle: Bundle, name: str, overlap: bool, rebuild: Rebuild | None, say: Callable[[str], None]) -> Engine:
    module_name, class_name, extra = ENGINES[name]
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"backend {name!r} cannot be loaded here ({error}): install what it needs with: pip install '.[{extra}]'"
        ) from error
    make: Callable[..., Engine] = getattr(module, class_name)
    if overlap and name == _ANYWHERE and len(os.sched_getaffinity(0)) > 1:
        make = partial(make, at_once=2)
    try:
        return make(bundle)
    except PlanError as error:
        if rebuild is None or name not in BUILT_FROM_PROGRAM:
            raise
        say(f"{error}: done now")
    return make(rebuild(bundle, name))
