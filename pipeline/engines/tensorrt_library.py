"""The TensorRT-RTX Python module, with its libraries found where the packages of the index put them."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from pipeline.errors import BackendUnavailableError

LIBRARIES_VARIABLE = "EDGEMASK_TENSORRT_RTX_LIBS"
"""A folder with libtensorrt_rtx, libtensorrt_onnxparser_rtx and libcudart, in place of the ones that pip installed."""

_INSTALL = "install them with: pip install '.[tensorrt-rtx]'"
# In this order: each needs the ones before it.
_LIBRARIES = ("libcudart.so", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
# The bindings' wheel and NVIDIA's own package call the same module by different names.
_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")


@functools.cache
def load_tensorrt_rtx() -> ModuleType:
    """Import TensorRT-RTX; building plans needs no GPU and no driver.

    Raises:
        BackendUnavailableError: the bindings or the libraries are not here.
    """
    folder = _libraries_folder()
    if folder is not None:
        for name in _LIBRARIES:
            found = sorted(folder.glob(f"{name}*"))
            if not found:
                raise BackendUnavailableError(f"TensorRT-RTX: expected {name} in {folder}, got none: {_INSTALL}")
            try:
                ctypes.CDLL(str(found[-1]), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise BackendUnavailableError(
                    f"TensorRT-RTX: {found[-1]} cannot be loaded ({error}): {_INSTALL}"
                ) from error
    reason = ""
    for module_name in _MODULES:
        try:
            return importlib.import_module(module_name)
        except (ImportError, OSError) as error:
            reason = reason or str(error)
    raise BackendUnavailableError(f"TensorRT-RTX: its packages are not here ({reason}): {_INSTALL}")


def _libraries_folder() -> Path | None:
    given = os.environ.get(LIBRARIES_VARIABLE)
    if given:
        return Path(given)
    # ONNX Runtime's plug-in for TensorRT-RTX is the wheel that carries the libraries on the package index.
    carrier = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    locations = list(carrier.submodule_search_locations or []) if carrier else []
    return Path(locations[0]) if locations else None
