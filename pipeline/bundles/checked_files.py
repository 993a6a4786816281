"""Which files were found to have which sha256, so that a start need not read them all once more.

Reading is a tenth of a start for a small network, and a second or more for a large one. A file counts as the one that was read as long
as the kernel says so: device, inode, size, and the times of its content and of its inode (which no program can set back) are the
same. Whatever is in doubt is read.
"""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.bundles.whole_file import write_whole

_LIMIT_BYTES = 1 << 16
_MOST_FILES = 100
# What was changed so shortly before it was read may be changed again within the same tick of its file system's clock.
_SETTLED_S = 10.0
# Then it is read all the same: a disk that loses bits tells nobody.
_TRUSTED_S = 24 * 3600.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class _Checked(NamedTuple):
    """A file as it was.

    Attributes:
        size_bytes: of it.
        mtime_ns: when its content was last changed.
        ctime_ns: when its inode was.
        read_s: when it was read, in Unix time.
        sha256: of its content.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    read_s: float
    sha256: str


class CheckedFiles:
    """The sha256 of files, from memory where they are as they were.

    Args:
        path: where it is remembered. What others than its owner and root may write is not believed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._has_news = False

    def sha256(self, path: Path) -> str:
        """Of a file's content, as 64 hexadecimal digits.

        Raises:
            OSError: it cannot be read.
        """
        now_s = time.time()
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            place, looks = f"{status.st_dev}:{status.st_ino}", (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            may_remember = _is_only_its_owners(status)
            known = self._known.get(place) if may_remember else None
            if known is not None and known[:3] == looks and 0 <= now_s - known.read_s < _TRUSTED_S:
                return known.sha256
            found = sha256_of(file)
            is_same = os.fstat(file.fileno()).st_ctime_ns == status.st_ctime_ns
        changed_s = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
        if may_remember and is_same and changed_s < now_s - _SETTLED_S:
            self._known[place] = _Checked(*looks, now_s, found)
            self._has_news = True
        return found

    def keep(self) -> None:
        """Remember what was read since; where nothing can be written it is read again the next time."""
        if not self._has_news:
            return
        newest = sorted(self._known.items(), key=lambda entry: -entry[1].read_s)[:_MOST_FILES]
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(dict(newest)).encode() + b"\n", mode=0o600)
        self._has_news = False


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of what is left of a file, as 64 hexadecimal digits."""
    import hashlib  # a file that is remembered needs neither it nor OpenSSL

    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _is_only_its_owners(status: os.stat_result) -> bool:
    """Whether it is a file that nobody can write but its owner, who is this user or root."""
    is_ours = status.st_uid in (0, os.geteuid())
    return is_ours and stat.S_ISREG(status.st_mode) and not status.st_mode & _OTHERS_WRITE


def _read(path: Path) -> dict[str, _Checked]:
    try:
        folder = os.stat(path.parent)
        if folder.st_uid not in (0, os.geteuid()) or folder.st_mode & _OTHERS_WRITE:
            return {}
        with open(path, "rb", opener=_without_following) as file:
            if not _is_only_its_owners(os.fstat(file.fileno())):
                return {}
            found = json.loads(file.read(_LIMIT_BYTES))
        return {place: _Checked(*entry) for place, entry in found.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_entry(entry: object) -> bool:
    kinds = int, int, int, float, str
    return isinstance(entry, list) and len(entry) == len(kinds) and all(map(isinstance, entry, kinds))
