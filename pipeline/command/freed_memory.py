"""Memory that malloc gives back for the next frame, in place of the system's, which costs a page fault for each 4 KiB."""

from __future__ import annotations

import ctypes
import os

# glibc's mallopt: the names in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK_BYTES = 32 << 20  # the most that it takes; a frame of 4K has 25 MB
_MOST_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, and all threads share it: frames are made on one thread and freed on another.

    By default each thread has an arena of its own that returns what is free to the system, so that the pages of every decoded frame
    are faulted in anew. For a whole process, before its threads: for commands, not for a library. At 4K a run takes less memory
    than without, and so much is kept as it needed at most.

    Returns:
        Whether it was set. Not where the user has set malloc up (``MALLOC_ARENA_MAX``, ``GLIBC_TUNABLES``), nor where there is no
        glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES),
        (_M_ARENA_MAX, 1),
    )
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)


def give_back_freed_memory() -> None:
    """Give the system what malloc keeps; nothing where there is no glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
