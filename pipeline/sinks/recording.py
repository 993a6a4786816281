"""The recording of a live source: files that can be played whatever ends them, one after another."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.signals import uninterrupted
from pipeline.sinks.base import Sink, make_room
from pipeline.sinks.disk import FreeSpace
from pipeline.sinks.encoding import Encoding
from pipeline.sinks.h264 import Encoder, Error, Muxer, Picture, even, reason, size_of
from pipeline.sinks.journal import Journal, Recorded, lock
from pipeline.sinks.kinds import SinkKind
from pipeline.terminal import logger_of

log = logger_of(__name__)

RECORDING = SinkKind(
    name="recording",
    opens="RecordingSink",
    help="a recording in files that can be played whatever ends them",
    order=20,
    extra="cpu",
    live_form_of="video",
)

# What a kill may cost: pictures reach the file in pieces of this length.
_FRAGMENT_MS = 250
# The first release with files that are fragments while they grow and an ordinary MP4 when they are closed: FFmpeg 7.1.
_HYBRID_FROM_LIBAVFORMAT = (61, 7)
# The index of such a file is kept in memory, 80 bytes a frame.
_LONGEST_S = 3600.0
# A camera that flaps between two sizes makes so many files and no more.
_SIZE_EVERY_S = 10.0
_WRITE_BACK_EVERY_S = 1.0


class RecordingSink(Sink):
    """Writes the views of a live source to ``NAME.mp4`` (or .m4v, .mov, .mkv, .webm), in place.

    The file can be played at any moment, also after the process was killed, but for its last quarter of a second. When it is
    closed it is an ordinary MP4 (with FFmpeg before 7.1 it stays fragmented). It never replaces a file: where ``NAME.mp4`` or one
    with a number exists, it goes on with the next number, ``NAME-0002.mp4``. A new file begins after the time or size in the options,
    and when the size of the views changes, but not more often than every ten seconds: until then views are scaled. Each begins with a
    keyframe at time 0 and can be played alone. Where the options limit how many are kept, those that earlier runs with a limit
    recorded under the same name count, and are the oldest (``pipeline.sinks.journal``); no other file is ever deleted.

    A file that is taken away, a full disk and a disk that is gone end the file. Whoever writes may ask to begin ``again``.

    Power loss: every second the system is asked to begin writing to the disk, without waiting for it. What a file system makes of
    that is its own; nothing is waited for, since a slow card would hold up the picture.
    """

    comes_back = True

    def _open(self) -> None:
        options = self._options
        self._path = Path(self._spec)
        self._encoding = Encoding(self._renderer, self._path)
        self._segment: _Segment | None = None
        self._made: list[Path] = []  # in this run, and still there
        self._number = 0  # of the last file that was begun
        self._ended = ""
        self._is_closed = self._is_told = False
        make_room(self._path)
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise SinkError(f"{self._spec}: cannot be written (no permission): choose another --output")
        # What is recorded without a limit is the user's to keep, and nothing is noted of it.
        is_limited = options.keep_bytes is not None or options.keep_segments is not None
        self._journal = Journal(self._path) if is_limited else None
        self._before = max(self._numbers(), default=0)  # numbers go up with time, whatever is deleted
        self._size_due_s = -_SIZE_EVERY_S
        self._space = FreeSpace(self._path.parent, options.min_free_bytes, self._make_room)
        self._obeys = options.switch is not None
        if options.switch is not None:
            options.switch.recordings += 1

    def write(self, frame: Frame) -> None:
        """Encode the frame's view.

        Raises:
            SinkError: the disk is full or nearly so, or the file cannot be written; what was recorded until then is kept.
        """
        if self._rests():
            return
        if self._ended:
            raise SinkError(self._ended)
        view = self._encoding.picture(frame)
        if isinstance(view, np.ndarray):
            view = even(view)
        try:
            self._space.check()
            segment = self._segment_for(view, frame.pts_s)
            segment.write(view, frame.pts_s, frame.sample_aspect)
        except SinkError as error:
            raise self._end(str(error)) from error
        except Error as error:
            raise self._end(reason(error)) from error
        if not self._is_told:
            self._is_told = True
            log.info(f"recording: {segment.path}, {segment.description}")
            if self._encoding.note:
                log.info(f"{segment.path}: {self._encoding.note}")

    def idle(self) -> None:
        """Finish the file where the recording was turned off."""
        with contextlib.suppress(SinkError):  # `problem` tells of it
            self._rests()

    def close(self) -> None:
        """Finish the last file."""
        if self._options.switch is not None and self._obeys:
            self._options.switch.recordings -= 1
            self._obeys = False
        try:
            self._finish_segment()
        except (SinkError, *Error) as error:
            raise self._end(reason(error)) from error
        self._is_closed = True
        self._ended = self._ended or f"{self._path}: the recording is closed"

    @property
    def leaves_views(self) -> bool:  # type: ignore[override]
        """Whether NVENC encodes them there."""
        return self._encoding.leaves_views(self._options.encoder, self._info, live=True)

    @property
    def problem(self) -> str:
        """Why nothing is recorded now; empty while it is."""
        return "" if self._is_closed else self._ended

    def again(self) -> bool:
        """Look whether recording could go on, after it has stopped."""
        if self._is_closed or not self._ended:
            return False
        try:
            make_room(self._path)
            self._space.check(now=True)
        except SinkError:
            return False
        self._ended, self._is_told = "", False
        return True

    def _rests(self) -> bool:
        """Whether the recording is turned off; then its file is finished."""
        switch = self._options.switch
        if switch is None or switch.on:
            return False
        if self._segment is not None:
            path, self._is_told = self._segment.path, False
            try:
                self._finish_segment()
            except (SinkError, *Error) as error:
                raise self._end(reason(error)) from error
            log.info(f"recording: {path} is ended; turned off")
        return True

    def _segment_for(self, view: Picture, pts_s: float) -> _Segment:
        segment = self._segment
        if segment is not None:
            is_other = segment.size_hw != size_of(view) and pts_s >= self._size_due_s
            if is_other:
                self._size_due_s = pts_s + _SIZE_EVERY_S
            if is_other or self._is_full(segment, pts_s):
                self._finish_segment()
                segment = None
        if segment is None:
            with _undisturbed():
                self._delete_old()
                path = self._create()
                segment = self._segment = _Segment(
                    path,
                    self._info,
                    size_of(view),
                    pts_s,
                    self._encoding.encoder or self._options.encoder,
                )
                if self._journal is not None:
                    segment.note_in(self._journal)
                self._made.append(path)
                self._tell_files()
        return segment

    def _is_full(self, segment: _Segment, pts_s: float) -> bool:
        limit_bytes = self._options.segment_bytes
        return pts_s - segment.start_pts_s >= (self._options.segment_s or _LONGEST_S) or (
            limit_bytes is not None and segment.good_bytes >= limit_bytes
        )

    def _create(self) -> Path:
        """An empty file of our own under the next free name."""
        path = self._path
        is_first = not (self._number or self._options.numbered)
        if is_first and not os.path.lexists(path) and not self._before:
            with contextlib.suppress(FileExistsError):
                path.open("xb").close()
                self._number = 1
                return path
        number = max(self._number, self._before, 0 if self._options.numbered else 1, *self._numbers())
        while True:
            number += 1
            path = self._numbered(number)
            with contextlib.suppress(FileExistsError):
                path.open("xb").close()
                break
        if is_first and os.path.lexists(self._path):
            log.info(f"{self._path} exists already and is left as it is")
        self._number = number
        return path

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}-{number:04d}{self._path.suffix}")

    def _numbers(self) -> list[int]:
        """Of the files that are there."""
        taken = re.compile(rf"{re.escape(self._path.stem)}-(\d{{4,9}}){re.escape(self._path.suffix)}")
        return sorted(int(match[1]) for name in os.listdir(self._path.parent) if (match := taken.fullmatch(name)))

    def _finish_segment(self) -> None:
        if self._segment is None:
            return
        with _undisturbed():
            segment, self._segment = self._segment, None
            try:
                segment.close()
            finally:
                if self._journal is not None:
                    note = self._journal.ended if segment.is_kept else self._journal.lost
                    note(segment.path)
                self._tell_files()

    def _end(self, problem: str) -> SinkError:
        """Finish as far as that is possible; the error to raise."""
        with contextlib.suppress(SinkError, *Error):  # the first problem is the one to tell
            self._finish_segment()
        kept = f"; {self.written} can be played" if self.written else ""
        self._ended = f"{self._path}: recording stopped ({problem}){kept}"
        return SinkError(self._ended)

    def _delete_old(self) -> None:
        """Keep what the options say: of finished files of ours alone, and none that is too young."""
        options = self._options
        if self._journal is None:
            return
        files = self._journal.files()
        count, size_bytes = len(files), sum(one.size_bytes for one in files)
        for one in files:
            too_many = options.keep_segments is not None and count >= max(1, options.keep_segments)
            too_large = options.keep_bytes is not None and size_bytes > options.keep_bytes
            if not (too_many or too_large) or self._is_young(one):
                return
            self._delete(one)
            count, size_bytes = count - 1, size_bytes - one.size_bytes

    def _make_room(self, missing_bytes: int) -> int:
        """Delete the oldest file, if all that may go would make the room."""
        if self._journal is None:
            return 0
        files = [one for one in self._journal.files() if not self._is_young(one)]
        if sum(one.size_bytes for one in files) < missing_bytes:
            return 0
        self._delete(files[0])
        return files[0].size_bytes

    def _is_young(self, one: Recorded) -> bool:
        least_s = self._options.keep_at_least_s
        return least_s > 0 and one.age_s < least_s

    def _delete(self, one: Recorded) -> None:
        with contextlib.suppress(OSError):
            one.path.unlink()
        self._tell_files()

    def _tell_files(self) -> None:
        self._made = [path for path in self._made if path.is_file()]
        paths = self._made
        self.written = f"{paths[0]} … {paths[-1]} ({len(paths)} files)" if len(paths) > 1 else str(*paths)


class _Segment:
    """One file of a recording.

    Attributes:
        path: of the file.
        size_hw: of its pictures.
        start_pts_s: time stamp of its first picture, which is 0 in the file.
        good_bytes: as much of the file as is whole fragments; 0 before there is one.
        is_kept: it is finished, worth keeping, and still under its path.
    """

    def __init__(
        self, path: Path, info: SourceInfo, size_hw: tuple[int, int], start_pts_s: float, encoder: str | Encoder
    ) -> None:
        self.path = path
        self.size_hw = size_hw
        self.start_pts_s = start_pts_s
        self.good_bytes = 0
        self.is_kept = False
        self._head_bytes = -1
        self._is_broken = False
        self._write_back_due_s = 0.0
        self._file = path.open("r+b", buffering=0)
        lock(self._file.fileno())
        try:
            self._muxer = Muxer(
                f"file:{path}", info, live=True, wanted=encoder, options=_container_options(path.suffix.lower())
            )
        except BaseException:
            self._file.close()
            path.unlink()
            raise

    def note_in(self, journal: Journal) -> None:
        """Let a journal know the file again; before the first picture."""
        self._muxer.add_comment(journal.mark)
        journal.begun(self.path, self._file.fileno())

    def write(self, view: Picture, pts_s: float, sample_aspect: Fraction) -> None:
        """Encode a picture; an error of FFmpeg leaves the file to `close`."""
        self._check_whole()
        try:
            self._muxer.write(view, pts_s - self.start_pts_s, sample_aspect)
        except (SinkError, *Error):
            self._is_broken = True
            raise
        self._measure()
        now_s = time.monotonic()
        if now_s >= self._write_back_due_s:
            self._write_back_due_s = now_s + _WRITE_BACK_EVERY_S
            self._check_there()
            if hasattr(os, "posix_fadvise"):
                # Linux starts to write the file's changed pages and does not wait for them; those on the disk leave the cache.
                with contextlib.suppress(OSError):  # no file system has to
                    os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Finish the file; where that is impossible, cut it after its last whole fragment."""
        try:
            if not self._is_broken:
                self._check_whole()
                self._muxer.close()
                self._measure()
                return
        except (SinkError, *Error):
            self._is_broken = True
            raise
        finally:
            if self._is_broken:
                self._abandon()
            is_ours = self._is_there()
            self._file.close()
            self.is_kept = is_ours and self.good_bytes > 0
            if not self.good_bytes and is_ours:
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()

    @property
    def description(self) -> str:
        """What encodes, for the user; empty before the first picture."""
        return self._muxer.description

    def _abandon(self) -> None:
        """Leave the file as fragments: FFmpeg would make its head that of an ordinary MP4, whose index then is cut off."""
        descriptor = self._file.fileno()
        head = os.pread(descriptor, max(0, self._head_bytes), 0)
        self._muxer.abandon()
        if self.good_bytes:
            os.pwrite(descriptor, head, 0)
            self._file.truncate(self.good_bytes)

    def _check_there(self) -> None:
        """Notice a file that somebody took away under the encoder, which would go on writing for nobody."""
        if not self._is_there():
            raise SinkError("its file was deleted, renamed or replaced, or its disk is gone")

    def _is_there(self) -> bool:
        """Whether the path still names the file that is being written."""
        try:
            there, mine = os.lstat(self.path), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def _check_whole(self) -> int:
        """Notice a file that was cut before anything is written behind the cut; gives its size."""
        size_bytes = os.fstat(self._file.fileno()).st_size
        if size_bytes < self.good_bytes:
            self._is_broken, self.good_bytes = True, size_bytes if size_bytes > self._head_bytes else 0
            raise SinkError("its file was cut by somebody else")
        return size_bytes

    def _measure(self) -> None:
        size_bytes = self._check_whole()
        if self._head_bytes < 0:
            self._head_bytes = size_bytes  # the container's head alone is not worth keeping
        elif size_bytes > self._head_bytes:
            self.good_bytes = size_bytes


def _container_options(suffix: str) -> dict[str, str]:
    options = {"flush_packets": "1"}
    if suffix in (".mkv", ".webm"):
        return options | {"cluster_time_limit": str(_FRAGMENT_MS)}
    is_hybrid = av.library_versions["libavformat"] >= _HYBRID_FROM_LIBAVFORMAT
    flags = "+hybrid_fragmented" if is_hybrid else "+frag_keyframe+empty_moov+default_base_moof"
    return options | {"movflags": flags, "frag_duration": str(_FRAGMENT_MS * 1000)}


def _undisturbed() -> AbstractContextManager[object]:
    """No signal between the steps that begin or end a file; signals come to the main thread only."""
    return uninterrupted() if threading.current_thread() is threading.main_thread() else nullcontext()
