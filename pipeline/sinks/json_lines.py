"""Results as text: one JSON object a frame, one line each."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from pipeline.errors import SinkError
from pipeline.frames.audited import Audited
from pipeline.frames.frame import Frame
from pipeline.redaction import redact
from pipeline.results.finder import Finder
from pipeline.shapes.found import ClassFound, ClassInZone, Event
from pipeline.shapes.region import Region
from pipeline.sinks.base import Sink, cut_off_path, make_room, scratch_path
from pipeline.sinks.disk import FreeSpace
from pipeline.sinks.kinds import SinkKind
from pipeline.terminal import logger_of

log = logger_of(__name__)

RESULTS = SinkKind(
    name="results",
    opens="JsonLinesSink",
    help="classes, areas and boxes of each frame as a line of JSON, into a file or to standard output",
    order=50,
    extra="cpu",
    forms=("results (out.jsonl or jsonl:-)",),
    words=("jsonl:-",),
    suffixes=(".jsonl", ".ndjson"),
)

FORMS: dict[str, Callable[[Region], Any]] = {
    "polygons": lambda region: [region.polygon().ravel().tolist()],
    "rle": Region.rle,
    "rle-counts": Region.rle_counts,
    "yolo": Region.yolo,
}
"""What a box may have beside its numbers, by the words of ``--results``: COCO's polygons and run lengths, YOLO's label line."""

STDOUT = "jsonl:-"

_STDOUT_FD = 1
_END_WITHIN_MS = 1000
_LOOK_EVERY_S = 1.0


class JsonLinesSink(Sink):
    """Writes a JSON object for each frame to ``NAME.jsonl`` (or .ndjson), or to standard output (``jsonl:-``).

    Of a live source lines are appended and whole at any moment, also where two processes append to one file. A file that is taken away,
    as logrotate does, is begun anew, and after a full disk it goes on. A file of a job that has an end appears when it is complete.
    A reader of standard output that has gone ends the run; one that is slow, or of a named pipe is not there, makes a file wait,
    and misses lines of a live source.
    """

    leaves_views = True

    def _open(self) -> None:
        spec, info, options = self._spec, self._info, self._options
        self._find = options.finder or Finder(self._renderer, options.classes, [info])
        self._told: dict[str, Audited] = {}
        self._live = info.live
        self._path: Path | None = None
        self._scratch: Path | None = None
        self._space: FreeSpace | None = None
        self._fd = -1
        self._is_pipe = spec == STDOUT
        self._missed = 0
        self._is_closed = False
        self._pending = memoryview(b"")
        self._look_due_s = 0.0
        if spec == STDOUT:
            try:
                self._fd = os.dup(_STDOUT_FD if sys.stdout is not None else -1)
            except OSError as error:
                raise SinkError(f"{STDOUT}: standard output is closed") from error
            return
        self._path = Path(spec)
        self.written = spec
        make_room(self._path)
        if info.live:
            self._space = FreeSpace(self._path.parent, options.min_free_bytes)
        else:
            self._scratch = scratch_path(self._path)
        self._open_file(self._path)

    def _open_file(self, path: Path) -> None:
        flags = os.O_APPEND if self._live else os.O_EXCL
        try:
            self._fd = os.open(self._scratch or path, flags | os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._is_pipe = not stat.S_ISREG(os.fstat(self._fd).st_mode)
            if self._live and not self._is_pipe:
                _end_last_line(self._fd)
        except OSError as error:
            self.discard()
            raise SinkError(f"{path}: cannot be written ({error.strerror}): choose another --output") from error

    @property
    def comes_back(self) -> bool:  # type: ignore[override]
        """A file of a live source does."""
        return self._space is not None and not self._is_pipe

    def again(self) -> bool:
        """Look whether lines could be written, after that has failed."""
        if self._path is None or self._space is None or self._is_closed:
            return False
        self._close_file()
        try:
            make_room(self._path)
            self._space.check(now=True)
            self._open_file(self._path)
        except SinkError:
            return False
        return True

    def write(self, frame: Frame) -> None:
        """Write the frame's line.

        Raises:
            SinkError: the disk is full or nearly so; the lines until then are kept.
        """
        if self.stopped:
            return
        if self._fd < 0:
            raise ValueError(f"{frame!r}: the output is closed")
        result = results_of(frame, self._find, self._options.results)
        audited = self._options.audited(frame.source)
        if audited is not None and audited is not self._told.get(frame.source):
            self._told[frame.source] = audited
            result["audit"] = audit_entry(audited)
        self._look_after_file()
        line = json.dumps(result, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        content = line.encode("utf-8", "replace")  # a file's name need not be UTF-8
        start_bytes = 0
        try:
            if self._space is not None:
                self._space.check()
            self._send_pending(0)
            if self._pending:
                self._missed += 1
                return
            start_bytes = 0 if self._is_pipe else os.fstat(self._fd).st_size
            self._pending = memoryview(content)
            self._send_pending(0 if self._live and self._is_pipe else None)
        except BrokenPipeError:
            self.stopped = True
        except SinkError as error:
            raise SinkError(f"{self._path}: {error}") from error
        except OSError as error:
            written, self._pending = len(content) - len(self._pending), memoryview(b"")
            if not self._is_pipe:
                with contextlib.suppress(OSError):
                    if os.fstat(self._fd).st_size == start_bytes + written:  # else another process has appended, too
                        os.ftruncate(self._fd, start_bytes)  # no half line
            raise SinkError(f"{self._path or 'standard output'}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Finish the file."""
        self._is_closed = True
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):  # of standard output alone: the rest of a line
            self._send_pending(_END_WITHIN_MS)
        if self._missed:
            log.info(f"{self._path or STDOUT}: {self._missed} lines were left out: the reader is too slow")
        self._close_file()
        if self._scratch is not None and self._path is not None:
            try:
                os.replace(self._scratch, self._path)
            except OSError as error:
                self.discard()
                raise SinkError(f"{self._path}: cannot be finished ({error.strerror})") from error

    def cut_off(self) -> None:
        """Let the file's name say that it is a part."""
        if self._scratch is not None and self._path is not None:
            self._path = cut_off_path(self._path)
            self.written = str(self._path)

    def discard(self) -> None:
        """Remove what was written of a job that has an end."""
        was_open = self._fd >= 0
        self._close_file()
        if self._scratch is not None and (was_open or self._scratch.exists()):
            with contextlib.suppress(FileNotFoundError):
                self._scratch.unlink()

    def _send_pending(self, wait_ms: int | None) -> None:
        """Write what is left of a line; to a pipe only as much as does not make us wait longer than that."""
        if not self._is_pipe:
            while self._pending:  # in one step, between which and another one somebody else might append
                self._pending = self._pending[os.write(self._fd, self._pending) :]
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._pending and (wait_ms is None or poll.poll(wait_ms)):
            # A pipe that can be written takes a page at once.
            self._pending = self._pending[os.write(self._fd, self._pending[: select.PIPE_BUF]) :]

    def _look_after_file(self) -> None:
        """Begin a file of a live source anew that somebody took away: else the lines would go to one that nobody finds."""
        if self._path is None or self._space is None or self._is_pipe or time.monotonic() < self._look_due_s:
            return
        self._look_due_s = time.monotonic() + _LOOK_EVERY_S
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        self._close_file()
        make_room(self._path)
        self._open_file(self._path)
        log.info(f"{self._path}: begun anew, because it was deleted, renamed or replaced, or its disk is gone")

    def _close_file(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def results_of(frame: Frame, find: Finder, forms: Sequence[str] = ()) -> dict[str, Any]:
    """What a frame's line says.

    Args:
        frame: with its mask.
        find: finds what is in it.
        forms: what each box has beside its numbers: some of `FORMS`.

    Returns:
        source, index, pts_s, captured (UTC, ISO 8601), age_ms, size_hw; not_finite, how many of the network's scores are NaN or
        infinite, so that the mask is wrong, only where there are some; and classes, those in the picture, each with its number,
        its name, the share of the frame that it covers (0 to 1) and the boxes of its connected parts: xywh in pixels, the
        share of the frame, and the part's id where frames follow each other. With a binary network also the mean probability of the
        frame, of the class and of each box. And stale, true, where the mask is (``Frame.stale``); zones, where there are some, with
        the classes in them; and events, where something happened.
    """
    found = find(frame)
    assert frame.mask is not None
    result: dict[str, Any] = {
        "source": redact(frame.source),
        "index": frame.index,
        "pts_s": round(frame.pts_s, 6) if math.isfinite(frame.pts_s) else None,
        "captured": frame.captured_utc,
        "age_ms": round(frame.age_ms, 3),
        "size_hw": list(frame.size_hw),
    }
    if frame.not_finite:
        result["not_finite"] = frame.not_finite
    if frame.stale:
        result["stale"] = True
    if find.is_binary:
        result["mean_probability"] = _share(cv2.mean(frame.mask)[0] / 255)
    result["classes"] = [_class_entry(entry, forms) for entry in found.classes]
    if found.zones:
        result["zones"] = {name: zone_entry(classes) for name, classes in found.zones.items()}
    if found.events:
        result["events"] = [event_entry(event) for event in found.events]
    return result


def zone_entry(classes: Mapping[str, ClassInZone]) -> dict[str, Any]:
    """What is said of a zone: by class its area as a share of the zone, whether it is present, and where there is a limit, above it."""
    return {
        name: {
            "area": _share(entry.area),
            "present": entry.present,
            **({} if entry.above is None else {"above": entry.above}),
        }
        for name, entry in classes.items()
        if entry.area or entry.present or entry.above
    }


def event_entry(event: Event) -> dict[str, Any]:
    """What is said of an event, here and wherever else events go."""
    entry: dict[str, Any] = {
        "id": event.id,
        "event": event.kind,
        "zone": event.zone,
        "class": event.class_name,
        "source": redact(event.source),
        "captured": event.captured,
        "pts_s": round(event.pts_s, 6) if math.isfinite(event.pts_s) else None,
        "index": event.index,
        "area": _share(event.area),
    }
    if event.lasted_s is not None:
        entry["lasted_s"] = round(event.lasted_s, 3)
    return entry


def audit_entry(audited: Audited) -> dict[str, Any]:
    """What is said of an audit: of which frame, and how far the two masks agree."""
    return {
        "index": audited.index,
        "pts_s": round(audited.pts_s, 6) if math.isfinite(audited.pts_s) else None,
        "captured": audited.captured,
        "iou": _share(audited.iou),
        "mae": _share(audited.mae),
        "empty": audited.empty,
        "judged": audited.judged,
    }


def _class_entry(found: ClassFound, forms: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": found.number, "name": found.name, "area": _share(found.area)}
    if found.mean_probability is not None:
        entry["mean_probability"] = _share(found.mean_probability)
    entry["boxes"] = [_box_entry(region, forms) for region in found.regions]
    return entry


def _box_entry(region: Region, forms: Sequence[str]) -> dict[str, Any]:
    box: dict[str, Any] = {"xywh": list(region.xywh), "area": _share(region.area)}
    if region.id is not None:
        box["id"] = region.id
    if region.mean_probability is not None:
        box["mean_probability"] = _share(region.mean_probability)
    return box | {form: FORMS[form](region) for form in forms}


def _share(value: float) -> float:
    return round(float(value), 6)


def _end_last_line(fd: int) -> None:
    """A line that a power failure cut in half must not swallow the next one."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
        os.write(fd, b"\n")
