"""What a video file has beside its pictures, sound and subtitles, copied into another file in time with them."""

from __future__ import annotations

import contextlib
import io
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
from av.container import OutputContainer
from av.stream import Stream

from pipeline.sources.decoded import reason
from pipeline.sources.tracks import film_of
from pipeline.sources.video import AHEAD_S, BACK_S, TRANSPORTS, open_file
from pipeline.terminal import logger_of

log = logger_of(__name__)

# Files keep so near each other what belongs together.
_INTERLEAVED_S = 1.0
# Decoders of sound need a little of what comes before the first picture, and MP4 does not play what comes before 0.
_LEAD_IN_S = 0.1
# Of a track whose stamps are never near those of the film, no more than a minute or two waits for them.
_MOST_HELD = 5000
_WITH_LEAD_IN = frozenset((".mp4", ".m4v", ".mov"))
_CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov", ".webm": "webm"}


class Beside:
    """Copies a file's tracks of sound and subtitles, packet by packet; nothing is decoded.

    The file is read a second time, beside whoever reads its pictures. Pictures tell how their times differ from the file's stamps,
    and what is copied is moved by as much, also where a file holds several recordings, each with its own clock (``cat a.ts b.ts``).
    For one thread.

    Args:
        path: the file.
        target: the file that is written; its suffix names the container.
        step_s: how long a single picture is shown.

    Raises:
        FFmpegError: the file cannot be opened.
    """

    def __init__(self, path: str, target: Path, step_s: float) -> None:
        self._target = target
        self._step_s = step_s
        self._file = open_file(path)
        self._film = film_of(self._file)
        self._recordings = _Recordings(is_transport=self._file.format.name in TRANSPORTS)
        self._copies: dict[int, Stream] = {}  # by the index of the file's track
        self._last_dts: dict[int, int] = {}
        self._packets: Iterator[av.Packet[Stream]] = iter(())
        self._container: OutputContainer | None = None
        self._due: deque[tuple[int, av.Packet[Stream]]] = deque()  # with the recording that it belongs to
        self._held: list[av.Packet[Stream]] = []  # far from the film's stamps: of a recording that begins in a moment
        self._shifts_s: list[float] = []  # of the recordings, as pictures tell them
        self._read_s = (0, -math.inf)  # the recording that was read last, and the latest stamp of a picture in it
        self._is_damaged = False
        self._first_s = math.inf  # time of the first picture that was written
        self._shown_s = 0.0  # of the last one

    def add_to(self, container: OutputContainer) -> None:
        """Add the tracks that a container can hold, before anything is written to it; what it cannot is told in a line each."""
        for track in (*self._file.streams.audio, *self._file.streams.subtitles):
            if not _holds(container.format.name, track):
                log.info(_left_out(track, self._target))
                continue
            copy = container.add_stream_from_template(track)
            copy.metadata.update({key: value for key, value in track.metadata.items() if key in ("language", "title")})
            copy.disposition = track.disposition
            self._copies[track.index] = copy
        self._container = container
        if self._copies and self._film is not None:
            self._packets = self._file.demux([self._film, *(self._file.streams[index] for index in self._copies)])

    def go_on(self, pts_s: float, shift_s: float) -> None:
        """Copy what comes before a picture.

        Args:
            pts_s: the picture's time.
            shift_s: how much later that is than its stamp in the file.
        """
        if not self._shifts_s or shift_s != self._shifts_s[-1]:
            self._shifts_s.append(shift_s)
        elif pts_s > self._shown_s:
            self._step_s = pts_s - self._shown_s
        self._first_s, self._shown_s = min(self._first_s, pts_s), pts_s
        while self._film_s() < pts_s + _INTERLEAVED_S and self._read():
            pass
        self._write_until(pts_s)

    def finish(self) -> None:
        """Copy up to the end of the last picture where the file has more of them, else all that it has."""
        last_s = self._shown_s + self._step_s / 2
        while self._film_s() <= last_s and self._read():
            pass
        self._write_until(self._shown_s + self._step_s if self._film_s() > last_s else math.inf)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _read(self) -> bool:
        """Read one packet; whether there was one."""
        packet = None
        with contextlib.suppress(av.error.FFmpegError):  # what is damaged is told of its pictures
            packet = next(self._packets, None)
        if packet is None:
            self._packets = iter(())
            self._due.extend((self._recordings.count, held) for held in self._held)
            self._held.clear()
            return False
        stamp_s = _seconds(packet)
        if stamp_s is None:
            return True
        if self._film is not None and packet.stream.index == self._film.index:
            self._recordings.film(stamp_s)
            recording, played_s = self._recordings.count, _seconds(packet, of_play=True) or 0.0
            self._read_s = (recording, max(played_s, self._read_s[1]) if recording == self._read_s[0] else played_s)
            held, self._held = self._held, []
            for earlier in held:
                self._sort(earlier)
        else:
            self._sort(packet)
        return True

    def _film_s(self) -> float:
        """The latest time of a picture that was read here; infinite where none of its recording has come."""
        recording, stamp_s = self._read_s
        return stamp_s + self._shifts_s[recording] if recording < len(self._shifts_s) else math.inf

    def _sort(self, packet: av.Packet[Stream]) -> None:
        stamp_s = _seconds(packet)
        recording = None if stamp_s is None else self._recordings.of(stamp_s)
        if recording is None and len(self._held) < _MOST_HELD:
            self._held.append(packet)
        else:
            self._due.append((self._recordings.count if recording is None else recording, packet))

    def _time_s(self, recording: int, packet: av.Packet[Stream]) -> float:
        """When a packet is due; infinite where no picture of its recording has come."""
        if recording >= len(self._shifts_s):
            return math.inf
        return (_seconds(packet, of_play=True) or 0.0) + self._shifts_s[recording]

    def _write_until(self, end_s: float) -> None:
        while self._due and self._due[0][0] < len(self._shifts_s) and self._time_s(*self._due[0]) < end_s:
            self._write(*self._due.popleft())

    def _write(self, recording: int, packet: av.Packet[Stream]) -> None:
        assert self._container is not None
        can_lead_in = self._first_s <= 0 and self._target.suffix.lower() in _WITH_LEAD_IN
        lead_in_s = _LEAD_IN_S if can_lead_in else 0.0
        if self._time_s(recording, packet) < self._first_s - lead_in_s:
            return
        index, shift = packet.stream.index, round(self._shifts_s[recording] / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift
        order = packet.dts if packet.dts is not None else packet.pts
        if order is None or order <= self._last_dts.get(index, order - 1):
            return  # what overlaps where two recordings meet
        self._last_dts[index] = order
        packet.stream = self._copies[index]
        try:
            self._container.mux(packet)
        except (
            av.error.InvalidDataError,
            av.error.ArgumentError,
        ) as error:  # what a full disk says is told of pictures, too
            if not self._is_damaged:
                self._is_damaged = True
                log.info(
                    f"{self._target}: a part of the source's sound or subtitles is damaged, and left out ({reason(error)})"
                )


class _Recordings:
    """Which of a file's recordings a stamp belongs to, by the stamps of its film.

    Attributes:
        count: how many have begun after the first.
    """

    def __init__(self, *, is_transport: bool) -> None:
        self.count = 0
        self._is_transport = is_transport
        self._last_s: float | None = None
        self._before_s: float | None = None  # the last of the recording before

    def film(self, stamp_s: float) -> None:
        """Take a stamp of the film."""
        if self._last_s is not None:
            jump_s = stamp_s - self._last_s
            if jump_s < -BACK_S or (self._is_transport and jump_s > AHEAD_S):
                self.count, self._before_s = self.count + 1, self._last_s
        self._last_s = stamp_s

    def of(self, stamp_s: float) -> int | None:
        """The recording whose film is nearest; None if none is near."""
        if self._last_s is None:
            return 0
        away_s = abs(stamp_s - self._last_s)
        if self._before_s is not None and abs(stamp_s - self._before_s) < away_s:
            return self.count - 1
        return None if away_s > AHEAD_S else self.count


def _seconds(packet: av.Packet[Stream], *, of_play: bool = False) -> float | None:
    """A packet's stamp: of decoding, which only goes up, or of playing."""
    stamps = (packet.pts, packet.dts) if of_play else (packet.dts, packet.pts)
    stamp = next((stamp for stamp in stamps if stamp is not None), None)
    return None if stamp is None else float(stamp * packet.time_base)


def _codec(track: Stream) -> str:
    """FFmpeg's name; empty where it knows none, as for what only some broadcasters send."""
    return str(getattr(track.codec_context, "name", ""))


def _left_out(track: Stream, target: Path) -> str:
    codec = _codec(track) or "of an unknown kind"
    what = "sound" if track.type == "audio" else "subtitles"
    others = [suffix for suffix, name in _CONTAINERS.items() if suffix != target.suffix.lower() and _holds(name, track)]
    remedy = f"{' and '.join(others)} can" if others else "no video that is written here can"
    return f"{target}: without the source's {what} ({codec}), which {target.suffix} cannot hold; {remedy}"


def _holds(container: str, track: Stream) -> bool:
    """Whether a container takes a track: some say so only when their head is written."""
    if not _codec(track):
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(track)
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    return True
