"""Messages of RTSP, and the frames of media between them."""

from __future__ import annotations

import re

from pipeline.sources.live import LostError

_HEAD_BYTES, _BODY_BYTES = 1 << 16, 1 << 20


def frames_end(data: bytearray) -> int:
    """Where the last whole frame of those at the beginning ends."""
    place, size = 0, len(data)
    while place + 4 <= size and data[place] == 0x24:
        end = place + 4 + (data[place + 2] << 8 | data[place + 3])
        if end > size:
            break
        place = end
    return place


def message(data: bytearray) -> tuple[list[bytes], bytes] | None:
    """The lines and the body of a message at the beginning, which is taken out; None: it is not all there.

    Raises:
        LostError: it is larger than such messages are.
    """
    end = re.search(rb"\r?\n\r?\n", data)
    if end is None or end.start() > _HEAD_BYTES:
        if len(data) > _HEAD_BYTES:
            raise LostError(
                f"expected answers of RTSP with a head of at most {_HEAD_BYTES >> 10} KiB, got a larger one"
            )
        return None
    lines = [bytes(line).rstrip(b"\r") for line in data[: end.start()].split(b"\n")]
    given = field(lines, b"content-length")
    length = int(given) if re.fullmatch(rb"\d{1,18}", given) else 0
    if length > _BODY_BYTES:
        raise LostError(f"expected answers of RTSP of at most {_BODY_BYTES >> 20} MiB, got one of {length >> 20} MiB")
    if len(data) < end.end() + length:
        return None
    body = bytes(data[end.end() : end.end() + length])
    del data[: end.end() + length]
    return lines, body


def text(lines: list[bytes], body: bytes) -> bytes:
    """A message of these lines and a body."""
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def fields(lines: list[bytes], name: bytes) -> list[bytes]:
    """The values of a field, whose name is in small letters."""
    pairs = [line.partition(b":") for line in lines]
    return [value.strip() for key, _, value in pairs if key.strip().lower() == name]


def field(lines: list[bytes], name: bytes) -> bytes:
    """The first of them; empty where there is none."""
    return next(iter(fields(lines, name)), b"")


def challenges(lines: list[bytes]) -> list[str]:
    """The ways to log in that a server offers."""
    return [value.decode("latin-1") for value in fields(lines, b"www-authenticate")]
