"""A disk that fills up while something is written to it for months."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import SinkError

_CHECK_EVERY_S = 1.0


class FreeSpace:
    """Watches that a disk keeps some space, so that one output does not take it from everything else.

    Args:
        folder: any folder of the disk.
        min_free_bytes: what must be left.
        make_room: deletes the oldest of what may go, if that gives so many bytes in all, and tells how many; 0: nothing was deleted.
            Asked while there is too little.
    """

    def __init__(self, folder: Path, min_free_bytes: int, make_room: Callable[[int], int] = lambda _: 0) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._make_room = make_room
        self._due_s = 0.0
        self._gives_room = True

    def check(self, *, now: bool = False) -> None:
        """Look, at most once a second.

        Args:
            now: look in any case.

        Raises:
            SinkError: there is too little left, and nothing to delete that would help.
        """
        now_s = time.monotonic()
        if now_s < self._due_s and not now:
            return
        self._due_s = now_s + _CHECK_EVERY_S
        while (free_bytes := self._free_bytes()) < self._min_free_bytes:
            deleted_bytes = self._make_room(self._min_free_bytes - free_bytes) if self._gives_room else 0
            # Another program may take what is deleted: then the archive would go, file by file, and there would be no room all
            # the same. Nothing is deleted any more until there was room again.
            if deleted_bytes:
                self._gives_room = self._free_bytes() - free_bytes >= deleted_bytes // 2
            if not deleted_bytes:
                raise SinkError(
                    f"expected {_size(self._min_free_bytes)} free on the disk, got {_size(free_bytes)}: "
                    "make room or lower --min-free"
                )
        self._gives_room = True

    def _free_bytes(self) -> int:
        try:
            state = os.statvfs(self._folder)
        except OSError as error:
            raise SinkError(f"the disk cannot be asked for its space ({error.strerror})") from error
        return state.f_bavail * state.f_frsize


def _size(count: int) -> str:
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
