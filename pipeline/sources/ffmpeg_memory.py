"""How much memory FFmpeg may take at once on behalf of what it reads."""

from __future__ import annotations

import ctypes
import re
from functools import cache

# A picture of 2^27 pixels has 512 MiB at 4 bytes each, and a little more with its edges. Tables of samples may claim more.
LARGEST_BLOCK_BYTES = 640 << 20


@cache
def limit_blocks() -> bool:
    """Let no single allocation of FFmpeg be larger than ``LARGEST_BLOCK_BYTES``; what asks for more fails as without memory.

    For the whole process, once PyAV is loaded: it does not offer FFmpeg's own ``av_max_alloc``.

    Returns:
        Whether it was set; not where FFmpeg's library is not found among those that are loaded (other systems than Linux).
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = set(re.findall(r"(/\S*libavutil[^/\s]*\.so[^\s/]*)$", file.read(), re.MULTILINE))
        libraries = [ctypes.CDLL(path) for path in paths]
    except OSError:
        return False
    for library in libraries:
        library.av_max_alloc.argtypes, library.av_max_alloc.restype = (ctypes.c_size_t,), None
        library.av_max_alloc(LARGEST_BLOCK_BYTES)
    return bool(libraries)
