"""One flight recording: a zip file with what is known of the run as JSON, its frames as they were decoded, and their masks.

mimetype                     what the file is, first and not compressed
flight.json                  events, frames, telemetry, times, versions, options, the bundle's manifest: docs/flight.md
frames/000000.png            BGR as a color picture, NV12 as a gray one of one and a half times the height; other channels as .npy
masks/000000.png             as the engine gave them
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError, SourceError
from pipeline.flight.folder import MEDIA_TYPE
from pipeline.frames.frame import Frame, Image
from pipeline.frames.pixels import bands_of, is_pixels

SCHEMA = 1
_FACTS_NAME = "flight.json"
_MOST_FACTS_BYTES = 64 << 20
_MOST_ARRAY_BYTES = 1 << 30
# Of an entry: its headers at both places, with its name and fields for large files; and of a zip file's end.
_ENTRY_BYTES, _END_BYTES = 400, 200
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,  # a compression that Python lacks
    RuntimeError,  # an entry with a password
    RecursionError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


Encode = Callable[[NDArray[Any], str], bytes]


@dataclass(frozen=True, slots=True)
class Written:
    """What a recording holds.

    Attributes:
        frames: how many.
        seconds: from the first one to the last, by the clock.
        size_bytes: of the file.
    """

    frames: int
    seconds: float
    size_bytes: int


def write_recording(
    file: IO[bytes],
    facts: Mapping[str, Any],
    frames: list[tuple[Frame, dict[str, Any]]],
    room: Callable[[int], bool],
    encode: Encode | None = None,
) -> Written:
    """Write a recording.

    Args:
        file: empty, opened to be written.
        facts: for the JSON.
        frames: with their masks, the oldest first, each with what is said of it beside its own fields; taken out of the list as they
            are written, so that their memory is free. The newest are written first: where there is no room for all, it is the last
            ones that are there.
        room: asked before so many bytes are written; where it says no, the recording ends.
        encode: makes the content of an entry out of an array and the entry's name, as ``encoded`` does, which it may call elsewhere.

    Raises:
        OSError: it cannot be written, or not even the JSON has room.
    """
    encode = encode or encoded
    entries = [_entry(number, frame, beside) for number, (frame, beside) in enumerate(frames)]
    reserve = len(_json({**facts, "frames": entries})) + len(MEDIA_TYPE) + 2 * _ENTRY_BYTES + _END_BYTES
    kept: list[dict[str, Any]] = []
    if not room(reserve):
        raise OSError(errno.ENOSPC, "no room for it within --flight-size")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), MEDIA_TYPE)
        while frames:
            frame, _ = frames.pop()
            entry = entries.pop()
            contents = {entry["picture"]: encode(frame.pixels, entry["picture"])}
            if frame.mask is not None:
                contents[entry["mask"]] = encode(frame.mask, entry["mask"])
            if not room(sum(map(len, contents.values())) + 2 * _ENTRY_BYTES + reserve):
                frames.clear()
                break
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # compressed already
            kept.append(entry)
        kept.reverse()
        archive.writestr(_FACTS_NAME, _json({**facts, "frames": kept}), zipfile.ZIP_DEFLATED)
    seconds = (kept[-1]["captured_ns"] - kept[0]["captured_ns"]) / 1e9 if kept else 0.0
    return Written(len(kept), max(0.0, seconds), file.tell())


class Recording:
    """A recording that is read; nothing in it is trusted.

    Args:
        path: of the file.

    Attributes:
        facts: what its JSON says.

    Raises:
        SourceError: it is no recording, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise SourceError(f"{path}: expected a flight recording, got no such file") from error
        except _DAMAGED as error:
            raise self._damaged(error) from error
        try:
            if self._read("mimetype", 2 * len(MEDIA_TYPE)) != MEDIA_TYPE:
                raise ValueError("another kind of zip file")
            self.facts: dict[str, Any] = json.loads(self._read(_FACTS_NAME, _MOST_FACTS_BYTES))
            _check(self.facts)
            self._entries = [_Entry.of(entry) for entry in self.facts["frames"]]
        except _DAMAGED as error:
            self.close()
            raise self._damaged(error) from error

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Frame]:
        """Its frames with their masks, in the order in which they were computed."""
        return self.frames()

    def count(self, bundle: str) -> int:
        """How many frames a bundle computed, by the sha256 of its manifest."""
        return sum(entry.bundle == bundle for entry in self._entries)

    def frames(self, bundle: str | None = None) -> Iterator[Frame]:
        """The same, of those alone that a bundle computed.

        Args:
            bundle: the sha256 of its manifest; None: of any.

        Raises:
            SourceError: it is damaged.
        """
        for entry in self._entries:
            if bundle is not None and entry.bundle != bundle:
                continue
            try:
                mask = _decoded(self._read(entry.mask), entry.mask) if entry.mask else None
                yield Frame(
                    _decoded(self._read(entry.picture), entry.picture),
                    entry.index,
                    entry.pts_s,
                    entry.source,
                    f"{entry.index:06d}",
                    entry.format,
                    captured_ns=entry.captured_ns,
                    mask=mask,
                    not_finite=entry.not_finite,
                )
            except (*_DAMAGED, ShapeError, cv2.error) as error:
                raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def _read(self, name: str, most_bytes: int = _MOST_ARRAY_BYTES) -> bytes:
        with self._archive.open(name) as entry:
            content = entry.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"{name} has more than {most_bytes} bytes")
        return content

    def _damaged(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.path}: expected a flight recording (.zip) of --flight, got another or a damaged file ({error})"
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the JSON says of a frame."""

    picture: str
    mask: str
    source: str
    index: int
    pts_s: float
    format: str
    captured_ns: int
    not_finite: int
    bundle: str

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> _Entry:
        entry = cls(**{name: fields[name] for name in cls.__slots__})
        texts = (entry.picture, entry.mask, entry.source, entry.format, entry.bundle)
        numbers = (entry.index, entry.pts_s, entry.captured_ns, entry.not_finite)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, (int, float)) for n in numbers):
            raise TypeError("a frame with a field of a wrong type")
        if not is_pixels(entry.format):
            raise ValueError(f"frames of {entry.format!r:.20}")
        return entry


def _entry(number: int, frame: Frame, beside: Mapping[str, Any]) -> dict[str, Any]:
    suffix = "png" if bands_of(frame.format) is None else "npy"
    return {
        "picture": f"frames/{number:06d}.{suffix}",
        "mask": f"masks/{number:06d}.png" if frame.mask is not None else "",
        "source": frame.source,
        "index": frame.index,
        "pts_s": frame.pts_s,
        "format": frame.format,
        "captured_ns": frame.captured_ns,
        "not_finite": frame.not_finite,
        **beside,
    }


def _check(facts: Mapping[str, Any]) -> None:
    """Refuse facts that lack what a reader asks for."""
    if facts["schema"] != SCHEMA:
        raise ValueError(f"schema {facts['schema']!r:.20}, and this version reads {SCHEMA}")
    texts = [facts["note"], facts["engine"]["description"]]
    texts += [event[name] for event in facts["events"] for name in ("time", "kind", "source", "text")]
    texts += [program for bundle in facts["bundles"].values() for program in bundle["manifest"]["files"].values()]
    if not all(isinstance(text, str) for text in texts) or not isinstance(facts["engine"]["in_flight"], int):
        raise TypeError("a field of a wrong type")


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, ensure_ascii=False).encode(errors="replace")


def encoded(array: NDArray[Any], name: str) -> bytes:
    """An array as PNG or, where its name says so, as NumPy has it; lossless."""
    if name.endswith(".npy"):
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        return content.getvalue()
    return cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _decoded(content: bytes, name: str) -> Image:
    if name.endswith(".npy"):
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError(f"{name} is no picture")
    return np.asarray(array, np.uint8)
