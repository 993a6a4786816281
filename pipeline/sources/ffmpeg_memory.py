"""How much memory FFmpeg may take at once on behalf of what it reads: PyAV does not offer FFmpeg's own ``av_max_alloc``."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# A picture of 2^27 pixels has 512 MiB at 4 bytes each, and a little more with its edges.
LARGEST_BLOCK_BYTES = 640 << 20
# While headers are read: a plane of 2^27 pixels with its edges. A header of 20 kB may claim a table of samples of any size for
# each of its tracks, and nothing but a want of memory ends FFmpeg there.
OPENING_BLOCK_BYTES = 160 << 20

_lock = threading.Lock()
_opening = 0


@contextmanager
def limited_blocks() -> Iterator[None]:
    """Let no single allocation of FFmpeg be larger than ``OPENING_BLOCK_BYTES`` in the body, and ``LARGEST_BLOCK_BYTES`` after it.

    What asks for more fails as without memory. For the whole process, once PyAV is loaded.
    """
    global _opening
    with _lock:
        _opening += 1
        _set_largest(OPENING_BLOCK_BYTES)
    try:
        yield
    finally:
        with _lock:
            _opening -= 1
            if not _opening:
                _set_largest(LARGEST_BLOCK_BYTES)


def _set_largest(count: int) -> None:
    for library in _libraries():
        library.av_max_alloc(count)


@cache
def _libraries() -> list[ctypes.CDLL]:
    """FFmpeg's library among those that are loaded; none is found on other systems than Linux."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = set(re.findall(r"(/\S*libavutil[^/\s]*\.so[^\s/]*)$", file.read(), re.MULTILINE))
        libraries = [ctypes.CDLL(path) for path in paths]
    except OSError:
        return []
    for library in libraries:
        library.av_max_alloc.argtypes, library.av_max_alloc.restype = (ctypes.c_size_t,), None
    return libraries
