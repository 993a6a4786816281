"""What a file is by how it begins, whatever its name ends in."""

from __future__ import annotations

import os
from typing import Literal

from pipeline.errors import SourceError

_HEAD_BYTES = 64
_MOST_BYTES = 1 << 31
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_PICTURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  ", b"\xffO\xffQ", b"v/1\x01", b"#?RADIANCE", b"#?RGBE"),
)
_JPEGS_IN_A_ROW = (".mjpeg", ".mjpg", ".mjpegs")
_VIDEOS = (b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"YUV4MPEG2 ", b"\0\0\x01\xba", b"0&\xb2u\x8ef\xcf\x11")


def content_of(path: str) -> Literal["picture", "video"] | None:
    """What a file holds; None where its beginning does not tell, and for what is no file."""
    if not os.path.isfile(path):  # a named pipe would be waited for
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if head[4:8] == b"ftyp":
        return "picture" if begins_as_heif(head) or _brands(head) & _AVIF_BRANDS else "video"
    if head[:4] == b"RIFF":
        return {b"WEBP": "picture", b"AVI ": "video"}.get(head[8:12])  # type: ignore[return-value]
    if head.startswith(b"\xff\xd8\xff") and path.lower().endswith(_JPEGS_IN_A_ROW):
        return "video"  # its first picture alone would be a whole file too
    return "picture" if head.startswith(_PICTURES) else "video" if head.startswith(_VIDEOS) else None


def check_size(path: object, status: os.stat_result) -> None:
    """Refuse a picture's file that is too large to be one.

    Raises:
        SourceError: it is.
    """
    if status.st_size > _MOST_BYTES:
        raise SourceError(
            f"{path}: expected a picture of at most {_MOST_BYTES >> 20} MiB, got {status.st_size >> 20} MiB"
        )


def begins_as_heif(head: bytes) -> bool:
    """Whether a file's brands are HEIC's; "mif1" alone may be AVIF's too."""
    return bool(_brands(head) & _HEIC_BRANDS) and not _brands(head) & _AVIF_BRANDS


def _brands(head: bytes) -> set[bytes]:
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[at : at + 4] for at in (8, *range(16, end - 3, 4))}
