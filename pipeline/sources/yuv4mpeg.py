"""Reads YUV4MPEG2, the plainest form of pictures in a pipe, as GStreamer's y4menc writes it."""

from __future__ import annotations

import re
from fractions import Fraction

import av
import numpy as np

from pipeline.frames.pixels import Pixels
from pipeline.sources.decoded import MAX_PIXELS, Decoded, ToPixels
from pipeline.sources.display import SQUARE, pixel_shape

_LINE_BYTES = 256  # no header is longer
_AHEAD_BYTES = 1 << 16
_MARKS = (b"FRAME", b"YUV4M")
_BT709, _LIMITED = 1, 1  # FFmpeg's AVCOL_SPC_BT709 and AVCOL_RANGE_MPEG


class Yuv4mpegReader:
    """Pieces of a pipe to pictures: receive into ``space()``, then tell how much came.

    Pictures are 4:2:0 of 8 bits, BT.709, limited range. The header may come again, with another size. GStreamer's writer leaves
    rows as they lie in its memory, each filled up to a multiple of four bytes, which the format does not allow: where the two
    differ, what stands after the first picture tells which it is.
    """

    def __init__(self, pixels: Pixels = "bgr") -> None:
        self._pixels = pixels
        self._to_pixels = ToPixels(pixels)
        self._buffer = bytearray(_LINE_BYTES + _AHEAD_BYTES)
        self._filled = 0
        self._size_hw: tuple[int, int] | None = None
        self._in_frame = False
        self._rows_filled: bool | None = None

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return memoryview(self._buffer)[self._filled :]

    def received(self, count: int) -> list[Decoded]:
        """Take the ``count`` bytes that were put into ``space()``.

        Returns:
            The pictures that are complete now, as ``ToPixels`` gives them.

        Raises:
            ValueError: the bytes are no such pictures.
        """
        self._filled += count
        images: list[Decoded] = []
        start = 0
        while True:
            used = self._picture(start, images) if self._in_frame else self._line(start)
            if not used:
                break
            start += used
        self._keep(start)
        return images

    def _line(self, start: int) -> int:
        """Take a header or the line before a picture; gives how many bytes it had, 0 when it is not all there."""
        stop = min(self._filled, start + _LINE_BYTES)
        end = self._buffer.find(b"\n", start, stop)
        if end < 0:
            if stop - start == _LINE_BYTES:
                raise ValueError("no line end in its header")
            return 0
        words = self._buffer[start:end].decode("ascii", "replace").split(" ")
        if words[0] == "YUV4MPEG2":
            self._size_hw = _size_hw(words[1:])
            self._to_pixels = ToPixels(self._pixels, _sample_aspect(words[1:]))
            self._rows_filled = None if _length(*self._size_hw, False) != _length(*self._size_hw, True) else False
        elif words[0] == "FRAME" and self._size_hw is not None:
            self._in_frame = True
        else:
            raise ValueError("something other than YUV4MPEG2")
        return end + 1 - start

    def _picture(self, start: int, images: list[Decoded]) -> int:
        assert self._size_hw is not None
        there = self._filled - start
        length = _length(*self._size_hw, bool(self._rows_filled))
        if self._rows_filled is None:
            if there < length + len(_MARKS[0]):
                return 0
            after = bytes(self._buffer[start + length : start + length + len(_MARKS[0])])
            self._rows_filled = after not in _MARKS
            length = _length(*self._size_hw, self._rows_filled)
        if there < length:
            return 0
        images.append(self._image(start))
        self._in_frame = False
        return length

    def _image(self, start: int) -> Decoded:
        assert self._size_hw is not None
        height, width = self._size_hw
        decoded = av.VideoFrame(width, height, "yuv420p")
        decoded.colorspace, decoded.color_range = _BT709, _LIMITED
        for plane, (rows, columns, kept_rows, kept_columns) in zip(
            decoded.planes, _planes(height, width, bool(self._rows_filled)), strict=True
        ):
            came = np.frombuffer(self._buffer, np.uint8, rows * columns, start).reshape(rows, columns)
            target = np.asarray(memoryview(plane)).reshape(-1, plane.line_size)
            target[:kept_rows, :kept_columns] = came[:kept_rows, :kept_columns]
            start += rows * columns
        return self._to_pixels(decoded)

    def _keep(self, start: int) -> None:
        """Move what is left to the front of a buffer that has room for a picture."""
        room = _LINE_BYTES + _AHEAD_BYTES
        if self._size_hw is not None:
            room += _length(*self._size_hw, True)
        left = self._filled - start
        if room != len(self._buffer):
            before, self._buffer = self._buffer, bytearray(max(room, left + _AHEAD_BYTES))
            self._buffer[:left] = before[start : self._filled]
        elif start:
            self._buffer[:left] = self._buffer[start : self._filled]
        self._filled = left


def _size_hw(words: list[str]) -> tuple[int, int]:
    values = {word[:1]: word[1:] for word in words}
    width, height, chroma = values.get("W", ""), values.get("H", ""), values.get("C", "420")
    if not re.fullmatch(r"\d{1,6}", width) or not re.fullmatch(r"\d{1,6}", height):
        raise ValueError("a header without a size")
    if not re.fullmatch(r"420(jpeg|mpeg2|paldv)?", chroma):
        raise ValueError(f"pictures of another kind, {chroma[:20]}")
    if not 0 < int(width) * int(height) <= MAX_PIXELS:
        raise ValueError(f"pictures of {width}×{height}, at most {MAX_PIXELS} pixels are taken")
    return int(height), int(width)


def _sample_aspect(words: list[str]) -> Fraction:
    shape = next((re.fullmatch(r"A(\d{1,6}):(\d{1,6})", word) for word in words if word.startswith("A")), None)
    return SQUARE if shape is None or not int(shape[2]) else pixel_shape(Fraction(int(shape[1]), int(shape[2])))


def _planes(height: int, width: int, filled: bool) -> list[tuple[int, int, int, int]]:
    """Rows and columns of each plane as they lie in the pipe, and how many of them are picture."""
    half_hw = (height + 1) // 2, (width + 1) // 2
    kept = [(height, width), half_hw, half_hw]
    lying = kept
    if filled:
        lying = [(2 * half_hw[0], _fours(width)), *[(half_hw[0], _fours(half_hw[1]))] * 2]
    return [(*there, *picture) for there, picture in zip(lying, kept, strict=True)]


def _fours(count: int) -> int:
    return (count + 3) // 4 * 4


def _length(height: int, width: int, filled: bool) -> int:
    return sum(rows * columns for rows, columns, *_ in _planes(height, width, filled))
