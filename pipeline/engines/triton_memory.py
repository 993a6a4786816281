"""Memory that this process shares with inference servers of this machine: a frame is written once, and its mask read where it lies.

A region that a server may still write into, because it did not answer in time, is not used again: its name is taken away, and the
system frees it when that server forgets it too. So it is where a process ends with nothing closed, after a signal while a server hangs.
What a process that was killed has left is removed by the next one, from its servers too: nobody holds its lock, which also says so of
processes in other containers.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BackendUnavailableError
from pipeline.process_end import at_every_end

# Where Linux has what ``shm_open`` opens.
_FOLDER = Path("/dev/shm")
_PREFIX, _UNLOCKED = "edgemask-frames-", "edgemask-new-"
_PAGE = 4096
# Names that this process has made there.
_made: set[Path] = set()


def _remove_made() -> None:
    for path in list(_made):
        path.unlink(missing_ok=True)


at_every_end(_remove_made)


class Region:
    """One piece of memory for the inputs and outputs of one request.

    Args:
        size_bytes: how much.

    Attributes:
        name: what servers call it.
        key: its name in the system.
        size_bytes: of all of it.

    Raises:
        BackendUnavailableError: there is no room for it.
    """

    def __init__(self, size_bytes: int) -> None:
        self.name = f"{_PREFIX}{secrets.token_hex(8)}"
        self.key = f"/{self.name}"
        self.size_bytes = size_bytes
        unlocked = _FOLDER / self.name.replace(_PREFIX, _UNLOCKED)
        _made.update((unlocked, self._path))
        try:
            file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # as long as it is mapped
                os.rename(unlocked, self._path)
                os.posix_fallocate(file, 0, size_bytes)  # or who writes where there is no room is killed
                self._memory = mmap.mmap(file, size_bytes)
            except BaseException:
                self._unlink()
                raise
            finally:
                os.close(file)
                _made.discard(unlocked)
        except OSError as error:
            raise BackendUnavailableError(
                f"--server-memory shared: expected room for {size_bytes / 1e6:.3g} MB in {_FOLDER}, got none ({error.strerror}): make "
                "it larger (docker run --shm-size), or take raw"
            ) from error

    @property
    def _path(self) -> Path:
        return _FOLDER / self.name

    def write(self, array: NDArray[Any], offset: int) -> None:
        """Copy an array there."""
        np.ndarray(array.shape, array.dtype, self._memory, offset)[...] = array

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        """A copy of what is there."""
        return np.array(np.ndarray(shape, dtype, self._memory, offset))

    def remove(self) -> None:
        """Take its name away; servers that have it keep it until they are told."""
        self._unlink()
        with suppress(BufferError):
            self._memory.close()

    def _unlink(self) -> None:
        self._path.unlink(missing_ok=True)
        _made.discard(self._path)


class Regions:
    """As many regions as there are requests at once, used again and again."""

    def __init__(self) -> None:
        self._free: list[Region] = []
        _sweep()

    def take(self, sizes_bytes: Mapping[str, int]) -> tuple[Region, dict[str, int]]:
        """A region with room for some tensors.

        Returns:
            The region, and where each tensor lies in it.
        """
        offsets, end = {}, 0
        for name, size in sizes_bytes.items():
            offsets[name] = end
            end += -(-size // _PAGE) * _PAGE
        while self._free:
            region = self._free.pop()
            if region.size_bytes >= end:
                return region, offsets
            self.leave(region)
        return Region(end), offsets

    def give_back(self, region: Region) -> None:
        """It was answered: nobody writes into it any more."""
        self._free.append(region)

    def leave(self, region: Region) -> None:
        """A server may still write into it."""
        region.remove()

    def close(self) -> None:
        """Remove all."""
        while self._free:
            self.leave(self._free.pop())


def is_left(name: str) -> bool:
    """Whether a server has it under this name from one of us who is gone, or does not use it any more."""
    return name.startswith(_PREFIX) and not (_FOLDER / name).exists()


def _sweep() -> None:
    """Remove what processes that were killed have left."""
    for path in _FOLDER.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody's who is there, or of another user
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(file)
