"""Files that are read whole: a pipe or a device in a file's place, whose end may never come, is refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The beginning of a file.

    Args:
        path: the file; links are followed.
        most_bytes: more is not read.

    Raises:
        OSError: it cannot be read, or is none.
    """
    with open(path, "rb", opener=open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        return file.read(most_bytes)


def open_without_waiting(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: a pipe in a file's place would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
