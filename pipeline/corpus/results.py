"""Results of a corpus: each appears once and whole, and carries what it was made of."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
import time
from pathlib import Path
from types import TracebackType

from pipeline.bundles.file_lock import locked, take_lock
from pipeline.bundles.whole_folder import put_folder
from pipeline.corpus.job import STAMPED, Job
from pipeline.corpus.listing import Entry
from pipeline.errors import SinkError

KEPT = ".edgemask"
"""The folder, in that of the results, of parts that are being written and of failures."""

# Where there are no locks, a part that is older belongs to nobody.
_OLD_S = 86_400.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_HEAD_BYTES = 512
OF_ONE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EFBIG)
"""What a disk says of one name or size that it does not take; others it may."""


def change(job: Job, entry: Entry) -> str | None:
    """Why a source is to be done.

    Returns:
        None: its result is there. Else "" where there is none, or what has changed since: "input", "bundle", "options".

    Raises:
        SinkError: something that no corpus has made is in its place.
    """
    target = job.target(entry)
    there = read_stamp(target)
    if there is None:
        return ""
    if there == "":
        raise _not_ours(target)
    try:
        wanted = job.stamp(entry)
    except OSError:  # told when it is read
        return ""
    if there == wanted:
        return None
    now, before = wanted.split(), there.split()
    changed = [new.partition("=")[0] for new, old in zip(now, before, strict=False) if new != old]
    return changed[0] if changed else "options"


def read_stamp(target: Path) -> str | None:
    """What a result says that it was made of; None: it is not there, "": it says nothing, so that it is none of ours."""
    try:
        mode = os.stat(target).st_mode
        if stat.S_ISDIR(mode):
            # All of a folder's files say the same.
            with os.scandir(target) as found:
                target = next((Path(entry.path) for entry in found if entry.name.endswith(".png")), target)
            if os.path.isdir(target):
                return ""
        elif not stat.S_ISREG(mode):  # to open a named pipe is to wait for its writer
            return ""
        if target.suffix == ".png":
            with target.open("rb") as file:
                return _ours(_png_comment(file.read(_HEAD_BYTES)))
    except FileNotFoundError:
        return "" if os.path.islink(target) else None
    except OSError as error:
        if error.errno in OF_ONE:  # told when it is written
            return None
        raise SinkError(f"{target}: cannot be read ({error.strerror}): choose another --output") from error
    from pipeline.corpus.video_comment import video_comment  # FFmpeg, which a corpus of pictures does not need here

    return _ours(video_comment(target))


def _png_comment(head: bytes) -> str:
    (length,) = struct.unpack(">I", head[33:37]) if len(head) >= 37 else (0,)
    text = head[41 : 41 + length]
    return text[8:].decode("latin-1") if head[37:41] == b"tEXt" and text.startswith(b"Comment\0") else ""


def _ours(comment: str) -> str:
    return comment if comment.startswith(STAMPED) else ""


class Parts:
    """A folder of its own for what one process is writing; use it in a ``with`` block, which removes it.

    It lies on the disk of the results, so that the last step is a link, and is locked as long as the process lives.

    Args:
        output: the folder of the results.

    Raises:
        SinkError: it cannot be written.
    """

    def __init__(self, output: str) -> None:
        parts = Path(output, KEPT, "parts")
        try:
            parts.mkdir(parents=True, exist_ok=True)
            with locked(parts):  # a folder without a lock is removed
                self.folder = parts / secrets.token_hex(8)
                self.folder.mkdir()
                self._lock = take_lock(self.folder, fcntl.LOCK_EX)
        except OSError as error:
            raise SinkError(f"{output}: cannot be written ({error.strerror}): choose another --output") from error

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.remove()
        if self._lock is not None:
            os.close(self._lock)

    def remove(self) -> None:
        """Remove all of it; nothing is written any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def new(self, target: Path) -> Path:
        """Where a result is written until it is whole."""
        return self.folder / f"{secrets.token_hex(8)}{target.suffix}"

    def clear(self) -> None:
        """Remove what was begun and has not become a result."""
        for path in self.folder.iterdir():
            _remove(path)


def sweep(output: str) -> None:
    """Remove the parts of processes that are no more."""
    parts = Path(output, KEPT, "parts")
    if not parts.is_dir():
        return
    with locked(parts), contextlib.suppress(OSError):
        for folder in list(parts.iterdir()):
            try:
                handle = take_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if handle is not None or time.time() - folder.stat().st_mtime > _OLD_S:
                shutil.rmtree(folder, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def publish(part: Path, target: Path, stamp: str) -> bool:
    """Give a result its name, once it is on the disk. Of two who do so at once one is first, and the other loses without harm.

    The name itself may be lost with the power: the source is then done again.

    Args:
        part: a file or a folder of files; it is gone afterwards.
        target: its place. A result of another stamp that is there is replaced.
        stamp: what the part carries.

    Returns:
        Whether it was this one that appeared.

    Raises:
        SinkError: it cannot be written, or something that no corpus has made is there.
    """
    try:
        for path in (*(part.iterdir() if part.is_dir() else ()), part):
            _to_disk(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_first = _linked(part, target)
        if not is_first:
            there = read_stamp(target)
            if there == stamp:
                return False
            if there == "":
                raise _not_ours(target)
            if part.is_dir():
                put_folder(part, target)
            else:
                os.replace(part, target)
    except OSError as error:
        do = "rename its source" if error.errno in OF_ONE else "choose another --output"
        raise SinkError(f"{target}: cannot be written ({error.strerror}): {do}") from error
    finally:
        _remove(part)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _not_ours(target: Path) -> SinkError:
    return SinkError(
        f"{target}: expected nothing or a result of an earlier run, got something else: choose another --output"
    )


def _linked(part: Path, target: Path) -> bool:
    """Whether it is there now under its name, where nothing was."""
    try:
        if part.is_dir():
            os.rename(part, target)
        else:
            os.link(part, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        if error.errno not in _NO_LINKS or part.is_dir():
            raise
        if os.path.lexists(target):
            return False
        os.replace(part, target)  # a file system without links: whole all the same, and of two the second one stays
    return True


def _to_disk(path: Path) -> None:
    """Wait until a file is on the disk, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
