"""Whether a file ends before its container does: told by the lengths that containers write about themselves."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
# Boxes, chunks and fragments of a file of hours, beyond which nobody looks.
_MOST_PARTS = 1_000_000


def is_cut_off(path: Path, container: str) -> bool:
    """Whether bytes are missing at the end of a video file.

    Args:
        path: the file.
        container: FFmpeg's name of its format. Of formats that may be cut anywhere (MPEG-TS) the answer is always no.
    """
    check = {"mov,mp4,m4a,3gp,3g2,mj2": _lacks_boxes, "matroska,webm": _lacks_segment, "avi": _lacks_chunks}.get(
        container
    )
    if check is None:
        return False
    try:
        with path.open("rb") as file:
            return check(file, os.fstat(file.fileno()).st_size)
    except (OSError, struct.error):
        return False


def _lacks_boxes(file: IO[bytes], size_bytes: int) -> bool:
    """ISO base media: boxes in a row, each with its length."""
    start = 0
    for _ in range(_MOST_PARTS):
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return any(head[:4])  # zeros are filling, which some writers leave behind
        (length,) = struct.unpack(">I", head[:4])
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length == 0:  # up to the end, wherever that is
            return False
        if length < 8:
            return False
        start += length
        if start > size_bytes:
            return True
    return False


def _lacks_chunks(file: IO[bytes], size_bytes: int) -> bool:
    """AVI: RIFF chunks in a row."""
    start = 0
    for _ in range(_MOST_PARTS):
        file.seek(start)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            return False
        (length,) = struct.unpack("<I", head[4:])
        start += 8 + length + length % 2
        if start > size_bytes + 1:  # the last filling byte is often left out
            return True
    return False


def _lacks_segment(file: IO[bytes], size_bytes: int) -> bool:
    """Matroska: a header and one segment, whose length stays unknown in what was never finished."""
    if _number(file, keep_marker=True) != _EBML:
        return False
    length = _number(file)
    if length is None:
        return False
    file.seek(length, os.SEEK_CUR)
    if _number(file, keep_marker=True) != _SEGMENT:
        return False
    length = _number(file)
    return length is not None and file.tell() + length > size_bytes


def _number(file: IO[bytes], *, keep_marker: bool = False) -> int | None:
    """A number of variable length as EBML has them; None if it says that it is unknown, or is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(count - 1), "big")
    if keep_marker:
        return value
    value &= (1 << 7 * count) - 1
    return None if value == (1 << 7 * count) - 1 else value
