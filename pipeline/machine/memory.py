"""How much memory this process may take, how much it takes, and which of its threads took it: from Linux's /proc and cgroups."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.machine.system_file import read_text

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_MAPPED, _RESIDENT, _MINOR_FAULTS = 0, 1, 7
# What a cgroup of the first version without a limit says, and more.
_NO_LIMIT_BYTES = 1 << 60


def available_bytes(root: Path = Path("/")) -> int | None:
    """The machine's memory, or what the cgroup of this process may take where that is less; None where neither is told."""
    limits = _cgroup_limits(root)
    if match := re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE):
        limits.append(int(match[1]) << 10)
    return min(limits, default=None)


def _cgroup_limits(root: Path) -> list[int]:
    """Those of the cgroup and of all around it, whose limits hold for it too."""
    limits: list[int] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        inner = Path(path.lstrip("/"))
        for one in (inner, *inner.parents):
            text = (read_text(root / "sys/fs/cgroup" / top / one / name) or "").strip()
            if text.isdecimal() and int(text) < _NO_LIMIT_BYTES:
                limits.append(int(text))
    return limits


def resident_bytes(process: int | None = None) -> int:
    """What a process takes of the machine's memory; 0 if it is gone or this system does not tell.

    Args:
        process: its number; None: this one.
    """
    words = _words(f"/proc/{process or 'self'}/statm")
    return int(words[_RESIDENT]) * _PAGE_BYTES if len(words) > _RESIDENT else 0


@contextmanager
def grows_at_most(limit_bytes: int | None) -> Iterator[None]:
    """Let this process map no more than so much beyond what it has while the body runs: more is a ``MemoryError``.

    It holds for libraries too, and for whatever else runs in the process. None, and another system than Linux: there is no limit.
    """
    words = _words("/proc/self/statm")
    if limit_bytes is None or not sys.platform.startswith("linux") or not words:
        yield
        return
    import resource  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(words[_MAPPED]) * _PAGE_BYTES + limit_bytes
    known = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def pages_touched(thread: int | None = None) -> int:
    """How many pages of memory a thread was the first to touch; only goes up, and 0 if it is gone.

    Memory belongs to a process, and the kernel keeps no account of it by thread. But whoever first touches a page pays for it.

    Args:
        thread: its native number; None: all threads of this process, those too that have ended.
    """
    words = _words(f"/proc/self/task/{thread}/stat" if thread else "/proc/self/stat")
    return int(words[_MINOR_FAULTS]) if len(words) > _MINOR_FAULTS else 0


_charged_to_nobody: set[int] = set()


@contextmanager
def charged_to_nobody() -> Iterator[None]:
    """What this thread takes while the body runs is no source's, such as a network's."""
    thread = threading.get_native_id()
    _charged_to_nobody.add(thread)
    try:
        yield
    finally:
        _charged_to_nobody.discard(thread)


def threads_charged_to_nobody() -> tuple[int, ...]:
    """The native numbers of the threads that are in such a body now."""
    return tuple(_charged_to_nobody)


def _words(path: str) -> list[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            return (
                file.read(4096).rpartition(b")")[2].split()
            )  # a program's name may hold spaces, and ends with a bracket
    except OSError:
        return []
