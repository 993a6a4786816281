"""Memory that this process shares with inference servers of this machine: a frame is written once, and its mask read where it lies.

A region that a server may still write into, because it did not answer in time, is not used again: its name is taken away, and the
system frees it when that server forgets it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PAGE = 4096


class Region:
    """One piece of memory for the inputs and outputs of one request.

    Args:
        size_bytes: how much.

    Attributes:
        name: what servers call it.
        key: its name in the system.
        size_bytes: of all of it.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = SharedMemory(
            create=True, size=size_bytes
        )  # if we are killed, Python's own tracker takes its name away
        self.key = f"/{self._memory.name.lstrip('/')}"
        self.name = f"edgemask{self.key.replace('/', '-')}"
        self.size_bytes = size_bytes

    def write(self, array: NDArray[Any], offset: int) -> None:
        """Copy an array there."""
        np.ndarray(array.shape, array.dtype, self._memory.buf, offset)[...] = array

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        """A copy of what is there."""
        return np.array(np.ndarray(shape, dtype, self._memory.buf, offset))

    def remove(self) -> None:
        """Take its name away; servers that have it keep it until they are told."""
        with suppress(FileNotFoundError):
            self._memory.unlink()
        with suppress(BufferError):
            self._memory.close()


class Regions:
    """As many regions as there are requests at once, used again and again."""

    def __init__(self) -> None:
        self._free: list[Region] = []

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
