"""The Python modules of TensorRT and TensorRT-RTX, found where packages put them, and the log that they write to."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import BackendUnavailableError

LIBRARIES_VARIABLE = "EDGEMASK_TENSORRT_RTX_LIBS"
"""A folder with libtensorrt_rtx, libtensorrt_onnxparser_rtx and libcudart, in place of the ones that pip installed."""

OLDEST = (10, 3)
"""The first TensorRT that all of our code was written for; JetPack 6.2 has it."""

_INSTALL_RTX = "install them with: pip install 'edgemask[tensorrt-rtx]'"
_INSTALL = (
    "on a Jetson install it with: sudo apt install nvidia-jetpack, elsewhere with: pip install 'edgemask[tensorrt]'"
)
# In this order: each needs the ones before it.
_LIBRARIES = ("libcudart.so", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
# The bindings' wheel and NVIDIA's own package call the same module by different names.
_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
_LOG_LINES = 8


def load_tensorrt(runtime: str) -> ModuleType:
    """Import a flavour of TensorRT; their Python names are the same but for a few.

    Args:
        runtime: "tensorrt", or "tensorrt-rtx", which needs neither a GPU nor a driver to build plans.

    Raises:
        BackendUnavailableError: it is not here, cannot be loaded, or is too old.
    """
    return load_tensorrt_rtx() if runtime == "tensorrt-rtx" else _load_tensorrt()


@functools.cache
def load_tensorrt_rtx() -> ModuleType:
    """Import TensorRT-RTX.

    Raises:
        BackendUnavailableError: the bindings or the libraries are not here.
    """
    folder = _libraries_folder()
    if folder is not None:
        for name in _LIBRARIES:
            found = sorted(folder.glob(f"{name}*"))
            if not found:
                raise BackendUnavailableError(f"TensorRT-RTX: expected {name} in {folder}, got none: {_INSTALL_RTX}")
            try:
                ctypes.CDLL(str(found[-1]), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise BackendUnavailableError(
                    f"TensorRT-RTX: {found[-1]} cannot be loaded ({error}): {_INSTALL_RTX}"
                ) from error
    reason = ""
    for module_name in _MODULES:
        try:
            return importlib.import_module(module_name)
        except (ImportError, OSError) as error:
            reason = reason or str(error)
    raise BackendUnavailableError(f"TensorRT-RTX: its packages are not here ({reason}): {_INSTALL_RTX}")


@functools.cache
def _load_tensorrt() -> ModuleType:
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"TensorRT is not here ({error}): {_INSTALL}") from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST:
        oldest = ".".join(str(part) for part in OLDEST)
        raise BackendUnavailableError(
            f"TensorRT: expected {oldest} or newer (JetPack 6.2 or newer), got {trt.__version__}: {_INSTALL}"
        )
    return trt


class Log:
    """The last lines that TensorRT complained in; TensorRT keeps the first logger of a process, so there is one.

    Attributes:
        logger: what TensorRT's constructors take.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._lines: list[str] = []
        self.logger = _logger_class(trt)(self._lines.append)

    def clear(self) -> None:
        """Forget the lines of earlier work."""
        self._lines.clear()

    @property
    def last_words(self) -> str:
        """The last error lines as one, for a message."""
        return one_line(self._lines)


@functools.cache
def log_of(trt: ModuleType) -> Log:
    """The one log of a flavour of TensorRT."""
    return Log(trt)


def one_line(lines: list[str]) -> str:
    """TensorRT's last lines as one."""
    return " | ".join(" ".join(line.split()) for line in lines[-_LOG_LINES:]) or "it gives no reason"


def _logger_class(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self, add: Callable[[str], None]) -> None:
            trt.ILogger.__init__(self)
            self._add = add

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._add(message)

    return Logger


def _libraries_folder() -> Path | None:
    given = os.environ.get(LIBRARIES_VARIABLE)
    if given:
        return Path(given)
    # ONNX Runtime's plug-in for TensorRT-RTX is the wheel that carries the libraries on the package index.
    carrier = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    locations = list(carrier.submodule_search_locations or []) if carrier else []
    return Path(locations[0]) if locations else None
