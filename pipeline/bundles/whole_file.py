"""A small file that appears complete or not at all, whoever else writes it or reads it at the same time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int = 0o644, to_disk: bool = False) -> None:
    """Write a file beside its place and give it its name; of several who do so, the last one's stays.

    Args:
        path: where, in a folder that is there.
        content: all of it.
        mode: who may read it.
        to_disk: wait until the content is there, so that it survives a power cut.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    import tempfile  # most who import this file write nothing

    handle, scratch = tempfile.mkstemp(prefix=".edgemask.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            if to_disk:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(scratch, mode)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise
