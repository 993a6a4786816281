"""The frames that are farthest from what the bundle was verified on, in a folder: a few, replaced by farther ones."""

from __future__ import annotations

import re
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2

from pipeline.bundles.whole_file import write_whole
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, Image
from pipeline.sinks.naming import file_name_of
from pipeline.terminal import logger_of

MOST = 16
"""Frames in the folder."""

# Frames of one source that follow each other are one picture.
_APART_S = 60.0
_NAME = re.compile(r"(?P<source>[\w.-]+)-(?P<distance>\d{1,6}\.\d)-\d{8}T\d{6}Z\.png")

log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    source: str
    distance: float
    path: Path
    kept_s: float


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Where the first chunk of a PNG ends, and what is put there: a picture of somebody else is never deleted, whatever its name.
_HEADER_BYTES = 33
_MARK = _chunk(b"tEXt", b"Software\0edgemask --drift-frames")


def _marked(png: bytes) -> bytes:
    return png[:_HEADER_BYTES] + _MARK + png[_HEADER_BYTES:]


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES + len(_MARK))[_HEADER_BYTES:] == _MARK


class FarthestFrames:
    """Keeps them as NAME-DISTANCE-TIME.png, those of earlier runs too, which carry a mark; close it.

    A thread of its own writes them one at a time, for a picture takes longer than a frame may. What comes meanwhile is left out.

    Args:
        folder: made if it is not there; other files in it stay.

    Raises:
        OptionError: it cannot be made or read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._kept = list(self._found())
        except OSError as error:
            raise OptionError(
                f"--drift-frames {folder}: expected a folder for pictures, cannot use it ({error.strerror})"
            ) from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="drift-frames")
        self._writing: Future[None] | None = None
        self._told = False

    def close(self) -> None:
        """Wait for the last picture; safe to call twice."""
        self._writer.shutdown()

    def offer(self, frame: Frame, distance: float) -> None:
        """Keep a frame if it is farther than another one that makes room for it; returns at once."""
        if self._writing is not None and not self._writing.done():
            return
        source = file_name_of(frame.source)
        near = [one for one in self._kept if one.source == source and time.monotonic() - one.kept_s < _APART_S]
        leaves = min(near or self._kept, key=lambda one: one.distance, default=None)
        if not near and len(self._kept) < MOST:
            leaves = None
        if leaves is not None and leaves.distance >= distance:
            return
        stamp = re.sub(r"[-:]|\.\d+", "", frame.captured_utc)
        name = f"{source}-{min(distance, 999_999.0):.1f}-{stamp}.png"
        kept = _Kept(source, distance, self._folder / name, time.monotonic())
        self._kept = [one for one in self._kept if one is not leaves and one.path != kept.path] + [kept]
        self._writing = self._writer.submit(self._write, frame.image, kept.path, leaves)

    def _write(self, image: Image, path: Path, leaves: _Kept | None) -> None:
        try:
            write_whole(path, _marked(cv2.imencode(".png", image)[1].tobytes()))
            if leaves is not None and leaves.path != path:
                with suppress(FileNotFoundError):
                    leaves.path.unlink()
        except OSError as error:
            if not self._told:
                log.warning(
                    f"--drift-frames {self._folder}: a frame cannot be kept ({error.strerror}); the rest goes on"
                )
            self._told = True

    def _found(self) -> Iterator[_Kept]:
        """Those of earlier runs; what is more than may be goes, the nearest first."""
        found = [
            _Kept(match["source"], float(match["distance"]), path, float("-inf"))
            for path in self._folder.iterdir()
            if (match := _NAME.fullmatch(path.name)) is not None and _is_marked(path)
        ]
        found.sort(key=lambda one: -one.distance)
        for one in found[MOST:]:
            one.path.unlink(missing_ok=True)
        yield from found[:MOST]
