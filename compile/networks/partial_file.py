"""The file that a download grows: locked against other processes, kept for resuming, renamed when it is whole."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from pipeline.errors import WeightsUnavailableError


class SourceFailedError(WeightsUnavailableError):
    """One source did not bring the file; the message says why in a few words."""


class PartialFile:
    """``NAME.part`` beside the final file: what has come so far, and the lock that keeps other processes out.

    A context manager. Entering waits until no other process holds the file; leaving removes it if nothing has come, and
    otherwise leaves it for the next download to go on from.

    Args:
        final_path: Where the whole file will stand.
        limit_bytes: More than this is never written.
        progress: Say so on standard error when another process is downloading the file and this one waits.

    Raises:
        WeightsUnavailableError: The folder or its disk does not take the file.
    """

    def __init__(self, final_path: Path, *, limit_bytes: int, progress: bool) -> None:
        self.final_path = final_path
        self.path = final_path.with_name(f"{final_path.name}.part")
        self._limit_bytes = limit_bytes
        self._progress = progress
        self._committed = False

    def __enter__(self) -> PartialFile:
        # The lock is on the partial file itself. Whoever held it before may have renamed or removed that file, so the
        # lock counts only if the name still leads to the file that was locked.
        while True:
            try:
                self._file = self.path.open("ab", buffering=0)
                try:
                    self._lock()
                    if self._is_under_its_name():
                        return self
                except BaseException:
                    self._file.close()
                    raise
            except OSError as error:
                raise WeightsUnavailableError(_unwritable(self.path, error)) from error
            self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._progress:
                tqdm.write(f"{self.final_path.name}: waiting for another process that downloads it", file=sys.stderr)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def _is_under_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._committed and self.size_bytes == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    @property
    def size_bytes(self) -> int:
        """How many bytes have come so far."""
        return os.fstat(self._file.fileno()).st_size

    def start_over(self) -> None:
        """Forget what has come so far."""
        self._file.truncate(0)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end.

        Raises:
            SourceFailedError: The file would pass its limit; what has come is forgotten.
            WeightsUnavailableError: The disk does not take them.
        """
        if self.size_bytes + len(chunk) > self._limit_bytes:
            self.start_over()
            raise SourceFailedError(f"sends more than {self._limit_bytes:,} bytes")
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise WeightsUnavailableError(_unwritable(self.path, error)) from error

    def commit(self) -> None:
        """Put the file, whole, at its final name; it appears there at once or not at all.

        Raises:
            WeightsUnavailableError: The disk or the folder does not take it.
        """
        try:
            os.fsync(self._file.fileno())
            self.path.replace(self.final_path)
        except OSError as error:
            raise WeightsUnavailableError(_unwritable(self.final_path, error)) from error
        self._committed = True


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: expected to write there, got {error.strerror}: make room or name another folder"
