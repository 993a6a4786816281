"""The Torch-TensorRT package: found, of torch's version, loaded, and kept from printing."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

from pipeline.bundles.plan import NAMES
from pipeline.errors import BackendUnavailableError

RUNTIME = "torch-tensorrt"
_OLDEST = (2, 11)
_DISTRIBUTIONS = ("torch-tensorrt", "torch-tensorrt-rtx")
_INSTALL = "install them with: pip install 'edgemask[torch-tensorrt]'"


def load_torch_tensorrt() -> ModuleType:
    """Import Torch-TensorRT, which takes a torch of its own version.

    Raises:
        BackendUnavailableError: it is not here, too old, not of torch's version, or broken.
    """
    found = [name for name in _DISTRIBUTIONS if _installed(name)]
    if not found:
        raise BackendUnavailableError(f"{NAMES[RUNTIME]}: its packages are not here: {_INSTALL}")
    here, torch_here = metadata.version(found[0]), metadata.version("torch")
    if _minor(here) < _OLDEST:
        raise BackendUnavailableError(
            f"{NAMES[RUNTIME]}: expected {_OLDEST[0]}.{_OLDEST[1]} or later, got {here}: {_INSTALL}"
        )
    if _minor(here) != _minor(torch_here):
        major, minor = _minor(torch_here)
        raise BackendUnavailableError(
            f"{NAMES[RUNTIME]}: expected {major}.{minor} as torch {torch_here} needs, got {here}: "
            f"pip install '{found[0]}=={major}.{minor}.*'"
        )
    try:
        with quiet():
            module = importlib.import_module("torch_tensorrt")
    except Exception as error:  # a broken native library raises OSError, Torch-TensorRT itself plain Exception
        raise BackendUnavailableError(
            f"{NAMES[RUNTIME]} {here} cannot be loaded here ({one_line(error)}): {_INSTALL}"
        ) from error
    finally:
        logging.captureWarnings(False)  # it sends the process's warnings to its log
    return module


def tensorrt_version() -> str:
    """The version of the TensorRT that Torch-TensorRT has loaded."""
    return str(importlib.import_module("tensorrt").__version__)


def public_version(version: str) -> str:
    """A version without the part that names a build: "2.13.0+cu130" to "2.13.0"."""
    return version.partition("+")[0]


def one_line(error: BaseException) -> str:
    """What an error says first, or its name."""
    return first_line(str(error)) or type(error).__name__


def first_line(text: str) -> str:
    """The first line of a text that may be a whole graph."""
    return next(iter(text.strip().splitlines()), "").strip()[:300]


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep back what torch and Torch-TensorRT log, print and warn of; gives the list that errors in the log are added to."""
    errors: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    root, level = logging.root, logging.root.manager.disable
    before, root.handlers = root.handlers, [handler]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield errors
    finally:
        root.handlers = before
        logging.disable(level)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _minor(version: str) -> tuple[int, int]:
    major, minor = public_version(version).split(".")[:2]
    return int(major), int(minor)
