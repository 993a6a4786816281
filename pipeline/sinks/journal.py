"""Which files of a folder a recording has made: those alone may be deleted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of time stamps, FAT keeps two seconds.
_MTIME_S = 2.0
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished file of ours.

    Attributes:
        path: where it is.
        size_bytes: what deleting it gives back.
        age_s: how long ago it was finished, as far as clocks can be trusted that jump by years when a box without a battery has found
            the time.
    """

    path: Path
    size_bytes: int
    age_s: float


class Journal:
    """A hidden file beside a recording's files, which says of each by what it is known again.

    A finished file is known by its size and time, an unfinished one by its place on the disk. What carries the same name and is
    another file, or was changed, is not ours. Lines are appended, so that a kill costs one at most.

    Args:
        path: of the recording, ``NAME.mp4``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.recordings")
        self._folder = path.parent
        self._run = secrets.token_hex(8)
        self._start_s, self._start_monotonic_s = time.time(), time.monotonic()
        self._own_s: dict[str, float] = {}
        self._before_bytes = len(self._content())

    def begun(self, path: Path, descriptor: int) -> None:
        """Note a file that is empty yet."""
        found = os.fstat(descriptor)
        self._own_s[path.name] = time.monotonic()
        self._append({"name": path.name, "run": self._run, "place": [found.st_dev, found.st_ino]})

    def ended(self, path: Path) -> None:
        """Note a file that is finished."""
        self._own_s[path.name] = time.monotonic()
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            self._append({"name": path.name, "bytes": found.st_size, "mtime_s": found.st_mtime})

    def files(self) -> list[Recorded]:
        """Our finished files, the oldest first: none that another process writes, or has begun after this run."""
        entries: dict[str, dict[str, Any]] = {}
        place = 0
        for line in self._content().splitlines(keepends=True):
            is_later, place = place >= self._before_bytes, place + len(line)
            with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
                entry = json.loads(line)
                name = str(entry["name"])
                if os.path.basename(name) != name:
                    continue
                if "run" in entry:
                    entries.pop(name, None)  # its place in the order is that of the newest file of the name
                    entry["is_anothers"] = is_later and entry["run"] != self._run
                entries.setdefault(name, {}).update(entry)
        found = [self._known_again(name, entry) for name, entry in entries.items()]
        return [one for one in found if one is not None]

    def _known_again(self, name: str, entry: dict[str, Any]) -> Recorded | None:
        path = self._folder / name
        try:
            there = os.lstat(path)
            if not stat.S_ISREG(there.st_mode) or "run" not in entry or entry["is_anothers"]:
                return None
            if "bytes" in entry:
                is_same = there.st_size == entry["bytes"] and abs(there.st_mtime - entry["mtime_s"]) <= _MTIME_S
            else:
                is_same = [there.st_dev, there.st_ino] == entry["place"]
            if not is_same or _is_in_use(path):
                return None
        except (OSError, KeyError, TypeError):
            return None
        return Recorded(path, there.st_size, self._age_s(name, entry["run"], there.st_mtime))

    def _age_s(self, name: str, run: str, mtime_s: float) -> float:
        now_s = time.monotonic()
        if run == self._run:
            return now_s - self._own_s.get(name, now_s)
        # A file of an earlier run is as old as this run at least. Of the clock as it is and as it was at the start, one may be
        # wrong by years: what both allow counts, and an age below zero says nothing.
        runs_s = now_s - self._start_monotonic_s
        ages_s = (time.time() - mtime_s, self._start_s + runs_s - mtime_s)
        return max(runs_s, min((age_s for age_s in ages_s if age_s >= 0), default=0.0))

    def _content(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(_MOST_BYTES)
        except OSError:
            return b""

    def _append(self, entry: dict[str, Any]) -> None:
        # Where it cannot be written, files are kept that could have been deleted.
        with contextlib.suppress(OSError):
            descriptor = os.open(
                self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            try:
                os.write(descriptor, (json.dumps(entry) + "\n").encode())
            finally:
                os.close(descriptor)


def lock(descriptor: int) -> None:
    """Show other recorders that a file is being written, as long as it is open."""
    with contextlib.suppress(OSError):  # not all file systems have locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_in_use(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
