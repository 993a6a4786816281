"""multipart/x-mixed-replace: the pictures of Motion JPEG over HTTP, none larger than a picture may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from pipeline.sources.live import LostError

MAX_PART_BYTES = 64 << 20
_LINE_BYTES, _MAX_LINES = 4096, 100
_PIECE_BYTES, _LARGE_PIECE_BYTES = 1 << 12, 1 << 18


class Readable(Protocol):
    """What parts are read from."""

    def read(self, size: int) -> bytes:
        """What is there, at most so many bytes; empty at the end."""


class Parts:
    """The contents of the parts, one after the other, to the end of the stream.

    Args:
        stream: the whole.
        content_type: of the whole, which names the boundary; without one any line that begins with "--" is one.
    """

    def __init__(self, stream: Readable, content_type: str) -> None:
        match = re.search(r'boundary\s*=\s*(?:"([^"]*)"|([^\s;]+))', content_type, re.IGNORECASE)
        named = (match[1] or match[2] or "") if match else ""
        # Some name the boundary with its dashes, others without.
        self._boundary = b"\r\n--" + named.strip().removeprefix("--").encode()
        self._stream = stream
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        """Their bytes.

        Raises:
            LostError: what came are no such parts, or one is too large.
        """
        while True:
            for _ in range(_MAX_LINES):
                line = self._line()
                if line is None:
                    return
                if line.startswith(b"--"):
                    break
            else:
                raise LostError("expected parts of multipart/x-mixed-replace, got something else")
            fields = self._fields()
            if fields is None:
                return
            content = self._content(fields.get(b"content-length"))
            if content is None:
                return
            if content:
                yield content

    def _fields(self) -> dict[bytes, bytes] | None:
        fields: dict[bytes, bytes] = {}
        for _ in range(_MAX_LINES):
            line = self._line()
            if line is None:
                return None
            if not line:
                return fields
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        raise LostError(f"expected a part with a head of at most {_MAX_LINES} lines, got more")

    def _content(self, length: bytes | None) -> bytes | None:
        if length is not None and re.fullmatch(rb"\d{1,18}", length) and int(length):
            count = int(length)
            if count > MAX_PART_BYTES:
                raise LostError(
                    f"expected pictures of at most {MAX_PART_BYTES >> 20} MiB, got one of {count >> 20} MiB"
                )
            pieces = [self._cut(min(count, len(self._buffer)))]
            count -= len(pieces[0])
            while count:
                piece = self._stream.read(min(count, _LARGE_PIECE_BYTES))
                if not piece:
                    return None
                pieces.append(piece)
                count -= len(piece)
            return b"".join(pieces)
        searched = 0
        while (place := self._buffer.find(self._boundary, searched)) < 0:
            searched = max(0, len(self._buffer) - len(self._boundary))
            if len(self._buffer) > MAX_PART_BYTES:
                raise LostError(f"expected pictures of at most {MAX_PART_BYTES >> 20} MiB, got a larger one")
            if not self._more():
                return None
        content = self._cut(place)
        del self._buffer[:2]
        return content

    def _line(self) -> bytes | None:
        while (place := self._buffer.find(b"\n", 0, _LINE_BYTES)) < 0:
            if len(self._buffer) >= _LINE_BYTES:
                raise LostError("expected parts of multipart/x-mixed-replace, got something else")
            if not self._more():
                return None
        line = self._cut(place + 1)
        return line.rstrip(b"\r\n")

    def _cut(self, count: int) -> bytes:
        content = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return content

    def _more(self) -> bool:
        piece = self._stream.read(_PIECE_BYTES)
        self._buffer += piece
        return bool(piece)
