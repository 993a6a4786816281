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

from pipeline.bundles.regular_file import read_regular

# Of time stamps, FAT keeps two seconds.
_MTIME_S = 2.0
_MOST_BYTES = 16 << 20
_MARK_WITHIN_BYTES = 1 << 16
_BARE_BYTES = 256
# A year of files of an hour takes 2 MB, a camera that flaps between two sizes as much in a day.
_TIDY_FROM_BYTES = 1 << 18


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

    A finished file is known by its size and time, an unfinished one by its place on the disk, which another file may get later, and by
    the mark in it. What carries the same name and is another file, or was changed, is not ours. Lines are appended, so that a kill
    costs one at most; those of files that are gone are left out when there are many.

    Which of two files is older is told by the order of their lines, and how old those of this run are by a clock that nobody sets: a
    box without a battery wakes up in the past, and minutes later it is today.

    Args:
        path: of the recording, ``NAME.mp4``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.recordings")
        self._folder = path.parent
        self._run = secrets.token_hex(8)
        self._start_s, self._start_monotonic_s = time.time(), time.monotonic()
        self._ended_s: dict[str, float] = {}
        self._tidy_from_bytes = _TIDY_FROM_BYTES
        self._earlier = {(entry.get("run"), name) for name, entry in self._entries().items()}

    @property
    def mark(self) -> str:
        """What files of this run carry as their comment."""
        return f"edgemask {self._run}"

    def begun(self, path: Path, descriptor: int) -> None:
        """Note a file that is empty yet."""
        found = os.fstat(descriptor)
        self._append({"name": path.name, "run": self._run, "place": [found.st_dev, found.st_ino]})

    def ended(self, path: Path) -> None:
        """Note a file that is finished."""
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            self._append({"name": path.name, "bytes": found.st_size, "mtime_s": found.st_mtime})
            self._ended_s[path.name] = time.monotonic()

    def lost(self, path: Path) -> None:
        """Note a file that somebody took away or replaced: what has its name now, or its place on the disk later, is not ours."""
        self._append({"name": path.name, "lost": True})

    def files(self) -> list[Recorded]:
        """Our finished files, the oldest first: none that another process writes, or has begun after this run."""
        entries = self._entries()
        self._ended_s = {name: end_s for name, end_s in self._ended_s.items() if name in entries}
        found = [self._known_again(name, entry) for name, entry in entries.items()]
        return [one for one in found if one is not None]

    def _known_again(self, name: str, entry: dict[str, Any]) -> Recorded | None:
        path = self._folder / name
        try:
            there = os.lstat(path)
            if not stat.S_ISREG(there.st_mode) or "run" not in entry:
                return None
            if entry["run"] != self._run and (entry["run"], name) not in self._earlier:
                return None
            if "bytes" in entry:
                is_same = there.st_size == entry["bytes"] and abs(there.st_mtime - entry["mtime_s"]) <= _MTIME_S
            else:
                is_same = [there.st_dev, there.st_ino] == entry["place"] and _is_of_run(path, entry["run"])
            if not is_same or _is_in_use(path):
                return None
        except (OSError, KeyError, TypeError):
            return None
        return Recorded(path, there.st_size, self._age_s(name, entry["run"], there.st_mtime))

    def _age_s(self, name: str, run: str, mtime_s: float) -> float:
        now_s = time.monotonic()
        if run == self._run:
            return now_s - self._ended_s.get(name, now_s)
        # A file of an earlier run is as old as this run at least. Of the clock as it is and as it was at the start, one may be
        # wrong by years: what both allow counts, and an age below zero says nothing.
        runs_s = now_s - self._start_monotonic_s
        ages_s = (time.time() - mtime_s, self._start_s + runs_s - mtime_s)
        return max(runs_s, min((age_s for age_s in ages_s if age_s >= 0), default=0.0))

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What is noted of each file that is there, by its name, in the order in which they were begun."""
        entries: dict[str, dict[str, Any]] = {}
        text = self._text()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
                entry = json.loads(line)
                name = str(entry["name"])
                if os.path.basename(name) != name:
                    continue
                if "run" in entry or "lost" in entry:
                    entries.pop(name, None)  # its place in the order is that of the newest file of the name
                entries.setdefault(name, {}).update(entry)
        entries = {name: entry for name, entry in entries.items() if os.path.lexists(self._folder / name)}
        if len(text) > self._tidy_from_bytes:
            self._tidy(entries)
        return entries

    def _tidy(self, entries: dict[str, dict[str, Any]]) -> None:
        """Write the journal anew, with a line for each file. A line that another process adds meanwhile is lost: its file is kept."""
        text = "".join(json.dumps(entry) + "\n" for entry in entries.values())
        self._tidy_from_bytes = max(_TIDY_FROM_BYTES, 2 * len(text))
        scratch = self._path.with_name(f"{self._path.name}.{self._run}")
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()

    def _text(self) -> str:
        try:
            return read_regular(self._path, _MOST_BYTES).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _append(self, entry: dict[str, Any]) -> None:
        # Where it cannot be written, files are kept that could have been deleted.
        with contextlib.suppress(OSError):
            descriptor = os.open(
                self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
            try:
                os.write(descriptor, (json.dumps(entry) + "\n").encode())
            finally:
                os.close(descriptor)


def lock(descriptor: int) -> None:
    """Show other recorders that a file is being written, as long as it is open."""
    with contextlib.suppress(OSError):  # not all file systems have locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_of_run(path: Path, run: str) -> bool:
    content = read_regular(path, _MARK_WITHIN_BYTES)
    # The mark comes with the first pictures. Killed before them, a run leaves nothing, or the first bytes of an MP4 file.
    is_bare = not content or (len(content) <= _BARE_BYTES and content[4:8] == b"ftyp")
    return is_bare or f"edgemask {run}".encode() in content


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
