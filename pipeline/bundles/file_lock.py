"""Locks that the kernel holds (``flock``): a process that ends has none, however it ended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.terminal import logger_of

log = logger_of(__name__)


def take_lock(path: Path, how: int, flags: int = os.O_RDONLY) -> int | None:
    """Lock a file or a folder.

    Args:
        path: what to lock.
        how: as ``fcntl.flock`` takes it.
        flags: as ``os.open`` takes them.

    Returns:
        The descriptor that holds the lock until it is closed; None where none can be had: the path cannot be opened, or its file
        system knows no locks.

    Raises:
        BlockingIOError: somebody else has it, and ``how`` says not to wait.
    """
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(handle, how)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return None
        raise
    return handle


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for the lock of a file or folder and hold it; without one where none can be had."""
    handle = take_lock(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def one_maker(place: Path, locks: Path) -> Iterator[tuple[int, ...]]:
    """Be the one process that makes what belongs at a place; what is there has to be looked at inside.

    Args:
        place: what is made; its lock is a file of its own, for the place itself is replaced.
        locks: the folder of such files. Where it cannot be written there is no lock, and two processes may make the same.

    Yields:
        Descriptors for a child process to inherit: if this one is killed and the child goes on, the lock stays.
    """
    import hashlib  # runs read bundles and make nothing

    name = hashlib.sha256(os.fsencode(os.path.realpath(place))).hexdigest()[:32]
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield ()
        return
    path = locks / f"{name}.lock"
    try:
        handle = take_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDONLY | os.O_CREAT)
    except BlockingIOError:
        log.info(f"{place}: another process is making it; waiting for that one")
        handle = take_lock(path, fcntl.LOCK_EX)
    try:
        yield () if handle is None else (handle,)
    finally:
        if handle is not None:
            os.close(handle)
