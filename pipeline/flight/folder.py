"""The folder of flight recordings: it stays below its size, and what appears in it under a recording's name is whole."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from pipeline.bundles.file_lock import take_lock
from pipeline.errors import SinkError

MEDIA_TYPE = b"application/x-edgemask-flight+zip"
"""The content of the first entry of a recording, "mimetype", which is not compressed, as in EPUB and OpenDocument."""

_NAME = re.compile(r"flight-(\d{5,})-\d{8}T\d{6}Z-[a-z-]+\.zip")
_PART = re.compile(r"\.edgemask-flight-[0-9a-f]{16}\.part")
_HEAD = b"mimetype" + MEDIA_TYPE
_LOCK_EVERY_S = 0.05
_HEAD_AT = 30  # of a zip file's first entry: its header comes before its name


class FlightFolder:
    """Recordings of this and earlier runs, the oldest of which make room for new ones. Nothing else in the folder is touched.

    One recording is written at a time, whatever processes share the folder: the writer holds the folder's lock. So what is left of
    one that was not finished is known for what it is, and removed.

    Args:
        folder: made if it is not there.
        most_bytes: what all recordings may take together, the one that is being written too.

    Raises:
        SinkError: it cannot be made, or not be written.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(
                f"--flight {folder}: expected a folder, cannot make it ({error.strerror}): choose another"
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SinkError(f"--flight {folder}: cannot be written (no permission): choose another folder")
        with suppress(BlockingIOError):
            handle = take_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._tidy()
            if handle is not None:
                os.close(handle)

    def recordings(self) -> list[Path]:
        """Those that are there, the oldest first."""
        return sorted(filter(is_recording, self.folder.iterdir()), key=_number)

    @contextmanager
    def new(
        self, kind: str, may_wait: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[Path, IO[bytes], Callable[[int], bool]]]:
        """Write a recording; it appears when the body is done, and not if that fails.

        Args:
            kind: of the event, letters and "-", for the file's name.
            may_wait: asked again and again while another process writes there, which may have been stopped.

        Yields:
            The place where it will be, the file to write, and what makes room: asked for a number of bytes before they are written, it
            removes the oldest recordings if need be, and tells whether so many may be written.

        Raises:
            OSError: it cannot be written.
        """
        handle = self._lock(may_wait)
        part = self.folder / f".edgemask-flight-{secrets.token_hex(8)}.part"
        try:
            self._tidy()
            number = max(map(_number, self.recordings()), default=0) + 1
            place = self.folder / f"flight-{number:05d}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{kind}.zip"
            with part.open("xb") as file:
                yield place, file, lambda size_bytes: self._make_room(file.tell() + size_bytes)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, place)
            if handle is not None:
                os.fsync(handle)  # the name, too
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)

    def _lock(self, may_wait: Callable[[], bool]) -> int | None:
        while True:
            try:
                return take_lock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if not may_wait():
                    raise OSError(error.errno, "another process holds the folder") from error
            time.sleep(_LOCK_EVERY_S)

    def _make_room(self, size_bytes: int) -> bool:
        """Remove the oldest recordings until one of this size has room; never for one that would take more than half of it all."""
        if size_bytes > self.most_bytes // 2:
            return False
        there = self.recordings()
        total = sum(path.stat().st_size for path in there)
        for path in there:
            if total + size_bytes <= self.most_bytes:
                break
            total -= path.stat().st_size
            path.unlink()
        return total + size_bytes <= self.most_bytes

    def _tidy(self) -> None:
        """Remove what was not finished, and what is too much since the limit was set lower."""
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                with suppress(OSError):
                    path.unlink()
        self._make_room(0)


def is_recording(path: Path) -> bool:
    """Whether a file is one that a flight recorder has written: by its name, and by how it begins."""
    if _NAME.fullmatch(path.name) is None:
        return False
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return (
                stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(_HEAD_AT + len(_HEAD))[_HEAD_AT:] == _HEAD
            )
    except OSError:
        return False


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0
