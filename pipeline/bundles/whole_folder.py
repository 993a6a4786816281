"""A folder that appears complete or not at all, whoever else writes it or reads it at the same time."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundles.file_lock import locked, take_lock

_PREFIX = ".edgemask-bundle."
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Fill a new folder; when the block ends without an exception it stands at ``place``, and what stood there is gone.

    What a killed process left beside ``place`` is removed first: a folder that is being filled is locked, and a lock ends with its
    process.

    Args:
        place: where, without links; the folder that holds it must be there.

    Yields:
        The folder to fill.

    Raises:
        OSError: it cannot be written.
    """
    with locked(place.parent):
        _remove_left_over(place.parent)
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place.parent))
        handle = take_lock(scratch, fcntl.LOCK_EX)
    try:
        scratch.chmod(0o755)
        yield scratch
        with locked(place.parent):
            put_folder(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _remove_left_over(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            handle = take_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        if handle is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(handle)


def put_folder(scratch: Path, place: Path) -> None:
    """Move a folder to a place; one that was there is under the first one's name then, or gone."""
    while True:
        try:
            os.replace(scratch, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if _exchange(scratch, place):
            return
        old = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place.parent))
        try:
            os.replace(place, old)
            try:
                os.replace(scratch, place)
            except BaseException:
                os.replace(old, place)
                raise
        except FileNotFoundError:  # another process had the same in mind
            continue
        finally:
            shutil.rmtree(old, ignore_errors=True)
        return


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, so that neither name is without one; False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than the call
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):  # a file system without it; or the other one has just gone
        return False
    raise OSError(number, os.strerror(number), str(other))
