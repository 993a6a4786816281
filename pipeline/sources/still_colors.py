"""Pictures whose file names its colors by numbers (ITU-T H.273: AVIF, HEIC, PNG's cICP), tone-mapped as videos are; and their bits."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.frames.frame import Image

# FFmpeg takes seconds to prepare a conversion and holds it for one size: so pixels, which it converts one by one, go through in blocks.
_BLOCK_HW = 128, 1024
_RGB, _FULL_RANGE = 0, 2
_lock = threading.Lock()


class StillColors(NamedTuple):
    """What a file says of its colors; None where it says nothing.

    Attributes:
        primaries: H.273's number of the primaries.
        transfer: its number of the transfer characteristics.
        bits: of a color.
    """

    primaries: int | None = None
    transfer: int | None = None
    bits: int | None = None


def colors_of(content: bytes) -> StillColors:
    """What a picture file says: of AVIF and HEIC of the picture that is shown, not of previews and gain maps beside it."""
    try:
        if content[4:8] == b"ftyp":
            return _of_heif(content)
        if content.startswith(b"\x89PNG"):
            return _of_png(content)
    except (struct.error, IndexError):  # damaged: who decodes it says so
        pass
    return StillColors()


def narrowed(image: Image, primaries: int | None, transfer: int | None) -> tuple[Image, tuple[str, ...]]:
    """A picture in the colors of BT.709, and what was done, as ``ToPixels`` tells it; the same array if nothing was.

    Args:
        image: (H, W, 3) uint8 BGR.
        primaries: as in ``StillColors``.
        transfer: as in ``StillColors``.
    """
    if primaries is None or transfer is None:
        return image, ()
    with _lock:
        converts = _Narrowing.of(primaries, transfer)
        return converts(image), tuple(dict.fromkeys(converts.notes))


class _Narrowing:
    """From colors of one kind, in blocks of one size, for which FFmpeg prepares once."""

    def __init__(self, primaries: int, transfer: int) -> None:
        from pipeline.sources.decoded import ToPixels  # FFmpeg, which few pictures need: a tenth of a start

        self.notes: list[str] = []
        self._primaries, self._transfer = primaries, transfer
        self._to_pixels = ToPixels(note=self.notes.append)

    @staticmethod
    @lru_cache(maxsize=4)
    def of(primaries: int, transfer: int) -> _Narrowing:
        return _Narrowing(primaries, transfer)

    def __call__(self, image: Image) -> Image:
        import av

        self.notes.clear()
        pixels = image.reshape(-1, 3)
        made = np.empty_like(pixels)
        height, width = _BLOCK_HW
        for start in range(0, len(pixels), height * width):
            part = pixels[start : start + height * width]
            block = np.zeros((height * width, 3), np.uint8)
            block[: len(part)] = part
            frame = av.VideoFrame.from_ndarray(block.reshape(height, width, 3), format="bgr24")
            frame.color_primaries, frame.color_trc = self._primaries, self._transfer
            frame.colorspace, frame.color_range = _RGB, _FULL_RANGE
            made[start : start + height * width] = self._to_pixels(frame).pixels.reshape(-1, 3)[: len(part)]
        return made.reshape(image.shape)


def _of_png(content: bytes) -> StillColors:
    bits = content[24]
    at = 8
    while content[at + 4 : at + 8] not in (b"IDAT", b"IEND", b""):
        if content[at + 4 : at + 8] == b"cICP":
            return StillColors(content[at + 8], content[at + 9], bits)
        at += 12 + int(struct.unpack_from(">I", content, at)[0])
    return StillColors(bits=bits)


def _of_heif(content: bytes) -> StillColors:
    """ISO/IEC 23008-12: the properties that are associated with the primary item."""
    meta = next((body[4:] for kind, body in _boxes(content) if kind == b"meta"), b"")
    boxes = dict(_boxes(meta))
    pitm, parts = boxes.get(b"pitm", b""), list(_boxes(boxes.get(b"iprp", b"")))
    primary = int.from_bytes(pitm[4:], "big")
    properties = [one for kind, body in parts if kind == b"ipco" for one in _boxes(body)]
    found = StillColors()
    for index in (index for kind, body in parts if kind == b"ipma" for index in _associated(body, primary)):
        kind, body = properties[index - 1]
        if kind == b"colr" and body[:4] == b"nclx":
            found = found._replace(primaries=struct.unpack_from(">H", body, 4)[0])
            found = found._replace(transfer=struct.unpack_from(">H", body, 6)[0])
        elif kind == b"pixi" and body[4]:
            found = found._replace(bits=max(body[5 : 5 + body[4]]))
    return found


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        length, start = struct.unpack_from(">I", content, at)[0], 8
        if length == 1:
            length, start = struct.unpack_from(">Q", content, at + 8)[0], 16
        end = at + length if length else len(content)
        if end < at + start:
            return
        yield content[at + 4 : at + 8], content[at + start : end]
        at = end


def _associated(ipma: bytes, item: int) -> Iterator[int]:
    """The numbers, from 1, of an item's properties."""
    version, is_wide = ipma[0], ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(count):
        one, at = struct.unpack_from(">I" if version else ">H", ipma, at)[0], at + (4 if version else 2)
        many, at = ipma[at], at + 1
        for _ in range(many):
            value = struct.unpack_from(">H", ipma, at)[0] & 0x7FFF if is_wide else ipma[at] & 0x7F
            at += 2 if is_wide else 1
            if one == item and value:
                yield value
