"""Native libraries that a command loads as it starts: on a thread where that can be, and with no threads of their own.

NumPy and OpenCV bring OpenBLAS, which starts a thread for each core. Nobody multiplies large matrices here, and these threads would
spin while the first mask is awaited.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from pipeline.stages.prefetch import Prefetch

_THREADS = "OPENBLAS_NUM_THREADS"
_SET_BY_USER = _THREADS in os.environ

_PRINTED = frozenset(("-h", "--help", "-V", "--version"))


def map_early(package: str) -> None:
    """Map the libraries of a package's folder, and what they need, on a thread; ``import`` then finds them there.

    Python's lock is held while ``import`` does that, which for OpenCV is two thirds of its time, and not here. What cannot be mapped
    is told by the import. Nothing is mapped for a command that only prints its help.

    Args:
        package: by its name, such as "cv2".
    """
    if sys.platform == "linux" and package not in sys.modules and _PRINTED.isdisjoint(sys.argv):
        os.environ.setdefault(_THREADS, "1")
        Prefetch(_mapped(package), 1, name=f"map {package}", join_s=0.0)


def import_numpy() -> None:
    """Import NumPy before the command's threads part: both need it, and would take turns with Python's lock at it."""
    os.environ.setdefault(_THREADS, "1")
    import numpy  # noqa: F401

    if not _SET_BY_USER:  # or what this process starts would have one thread too, such as a compilation
        os.environ.pop(_THREADS, None)


def _mapped(package: str) -> Iterator[None]:
    spec = find_spec(package)
    open_library = ctypes.CDLL(None).dlopen  # unlike ctypes.CDLL(path), a function that is called without the lock
    open_library.argtypes, open_library.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for folder in (spec and spec.submodule_search_locations) or ():
        for entry in os.scandir(folder):
            if entry.name.endswith(".so"):
                open_library(os.fsencode(entry.path), sys.getdlopenflags())
    yield
