"""The backends: one file each, imported only when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline.bundle import Bundle
from pipeline.errors import BackendUnavailableError, OptionError

if TYPE_CHECKING:
    from pipeline.engines.base import Engine

ENGINES = {
    # backend: (module, class, extra that installs what it imports)
    "onnxruntime": ("pipeline.engines.onnxruntime", "OnnxRuntimeEngine", "cpu"),
}


def open_engine(bundle: Bundle, backend: str = "auto") -> Engine:
    """Make the engine that runs a bundle's frame program.

    Args:
        bundle: a bundle that was read, and so checked.
        backend: a key of ``ENGINES``, or "auto": the first of them.

    Raises:
        OptionError: there is no such backend.
        BackendUnavailableError: its packages or its device are not on this machine.
        BundleError: the backend cannot load the program.
    """
    name = next(iter(ENGINES)) if backend == "auto" else backend
    if name not in ENGINES:
        raise OptionError(f"--backend: expected auto or one of {', '.join(ENGINES)}, got {backend!r}")
    module_name, class_name, extra = ENGINES[name]
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"backend {name!r} cannot be loaded here ({error}): install what it needs with: pip install '.[{extra}]'"
        ) from error
    engine: Engine = getattr(module, class_name)(bundle)
    return engine
