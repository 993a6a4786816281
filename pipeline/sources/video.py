"""Frames of a video file, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import av.error
from av.codec.context import Flags

from pipeline.errors import SourceError, TruncatedError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source
from pipeline.sources.completeness import is_cut_off
from pipeline.sources.content import check_size, content_of
from pipeline.sources.decoded import MAX_PIXELS, Decoded, ToPixels, reason
from pipeline.sources.deinterlace import Deinterlacer
from pipeline.sources.display import Notes, pixel_shape
from pipeline.sources.ffmpeg_memory import limited_blocks
from pipeline.sources.kinds import SourceKind
from pipeline.sources.tracks import film_of, left_out, sound_of
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel

log = logger_of(__name__)

VIDEO = SourceKind(
    name="video",
    opens="VideoSource",
    help="a video file, decoded by FFmpeg",
    order=20,
    extra="cpu",
    forms=("a video",),
    suffixes=(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".gif", ".mpg", ".mpeg", ".ts", ".y4m"),
    files=True,  # and of any other suffix, for FFmpeg looks into them
)

# Only containers that hold their own pictures: a playlist (HLS, concat) in a file named .mp4 would read other files.
CONTAINERS = (
    "asf,avi,av1,dv,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,webp_anim,yuv4mpegpipe"
)
_OPENING = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_streams": "64"}
# Where parts of several recordings may follow each other, each with its own clock.
TRANSPORTS = frozenset(("mpegts", "mpeg"))
# A stamp that goes back so far, or in a transport stream ahead so far, is another clock's.
BACK_S, AHEAD_S = 0.5, 5.0
# Behind a head that promises pictures there may be gigabytes of nothing, which FFmpeg looks through.
_OPEN_S, _READ_S = 30.0, 300.0
# A file ends where its header says, give or take what two frames last, and this.
_MISSING_S = 1.0


def open_file(path: str, decoder: HWAccel | None = None) -> av.container.InputContainer:
    """Open a video file, and nothing that it names; the caller closes it.

    Args:
        path: of the file.
        decoder: what decodes it; None: FFmpeg, on the CPU.

    Raises:
        FFmpegError: it is none, or cannot be read.
    """
    # The prefix makes FFmpeg take the whole name as a path, whatever characters it holds.
    with limited_blocks():
        return av.open(f"file:{path}", options=_OPENING, hwaccel=decoder, timeout=(_OPEN_S, _READ_S))


class VideoSource(Source):
    """A video file. Frames keep their presentation times, counted from the first frame's, and are turned upright."""

    def __init__(self, spec: str) -> None:
        self._path = Path(spec)
        self._end_s, self._ends_inside = 0.0, False
        self._is_on_gpu = False
        if not os.path.exists(spec):
            raise SourceError(f"{spec}: no such file")
        if not os.path.isfile(spec):
            raise SourceError(f"{spec}: expected a video, got something that is no file")
        if not os.access(spec, os.R_OK):
            raise SourceError(f"{spec}: expected a video, got a file that cannot be read: check its permissions")
        if content_of(spec) == "picture":  # of several
            check_size(self._path, os.stat(spec))
        try:
            self._container = open_file(spec)
        except av.error.ExitError as error:
            raise SourceError(
                f"{spec}: expected a video, got a file in which no picture is found within {_OPEN_S:g} s"
            ) from error
        except av.error.ArgumentError as error:  # FFmpeg knows it, and it is not among them
            raise SourceError(
                f"{spec}: expected a video, got a file that is none, or in another container than is read here "
                f"({CONTAINERS.replace(',', ', ')}): ffmpeg -i IN OUT.mkv makes one"
            ) from error
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{spec}: expected a video, got a file that is none or is cut off ({reason(error)})"
            ) from error
        film = film_of(self._container)
        if film is None:
            beside = " but a cover" if self._container.streams.video else ""
            self._container.close()
            raise SourceError(f"{spec}: expected a video, got a file without a picture track{beside}")
        stream = self._film(film)
        height, width = stream.height, stream.width
        if height * width > MAX_PIXELS:
            self._container.close()
            raise SourceError(f"{spec}: expected frames of at most {MAX_PIXELS} pixels, got {width}×{height}")
        fps = stream.average_rate or stream.guessed_rate
        count = stream.frames or None
        self.info = SourceInfo(
            name=self._path.name,
            description=f"{stream.codec_context.name}, {width}×{height}, {float(fps or 0):.4g} FPS",
            size_hw=(height, width) if height and width else None,
            fps=Fraction(fps) if fps else None,
            time_base=stream.time_base or Fraction(1, 90_000),
            frame_count=count or self._count_from_duration(fps),
            paths=(str(self._path),),
            left_out=left_out(self._container, stream),
            beside=sound_of(self._container),
        )

    def _film(self, film: av.VideoStream) -> av.VideoStream:
        """Set its decoder up, and take it for the one that is read."""
        if self._is_on_gpu:
            film.codec_context.thread_count = 1  # each more would only hold pictures back
        else:
            film.thread_type = "AUTO"
        # Or FFmpeg leaves some of the columns that are to be cropped on the left.
        film.codec_context.flags |= Flags.unaligned
        self._stream = film
        return film

    def decode_on_gpu(self) -> None:
        """Open it anew with NVDEC; its first picture says whether that can decode it.

        Raises:
            SourceError: it cannot, or pictures are not in NV12 as programs take it.
            BackendUnavailableError: there is no GPU.
        """
        from pipeline.sources.nvdec import OPTION, ToDevice, on_gpu  # few runs need it

        decoder = on_gpu()
        self._container.close()
        self._is_on_gpu = True
        try:
            with open_file(str(self._path), decoder) as tried:
                film = film_of(tried)
                assert film is not None  # it was there before
                first = next(tried.decode(film), None)
                if first is not None:  # else the file is damaged, which is told when it is read
                    ToDevice(str(self._path), film.codec_context.name)(cast("av.VideoFrame", first))
            self._container = open_file(str(self._path), decoder)
        except av.error.FFmpegError as error:
            raise SourceError(
                f"{self._path}: {OPTION}: the GPU cannot decode it ({reason(error)}): leave {OPTION} out"
            ) from error
        film = film_of(self._container)
        assert film is not None
        self._film(film)

    def _count_from_duration(self, fps: Fraction | None) -> int | None:
        if not fps or not self._container.duration:
            return None
        return max(1, round(self._container.duration / av.time_base * fps))

    def __iter__(self) -> Iterator[Frame]:
        stem, index = self._path.stem, 0
        note = Notes(self.info.name)
        clock = FileClock(self.info.fps, is_transport=self._container.format.name in TRANSPORTS, note=note)
        to_pixels = self._to_pixels(pixel_shape(self._stream.sample_aspect_ratio), note)
        try:
            for decoded in self._decoded(Deinterlacer(note)):
                stamp_s = (
                    None if decoded.pts is None else float(decoded.pts * (decoded.time_base or self.info.time_base))
                )
                pts_s = clock(stamp_s)
                pixels, kind, aspect, device = to_pixels(decoded)
                name = f"{stem}_{index:06d}"
                frame = Frame(pixels, index, pts_s, self.info.name, name, kind, sample_aspect=aspect, device=device)
                frame.shift_s = clock.offset_s
                yield frame
                index += 1
        except av.error.FFmpegError as error:
            raise TruncatedError(
                f"{self._path}: cut off or damaged after {index} frames ({reason(error)})", clock.last_s
            ) from error
        if index == 0:
            raise SourceError(f"{self._path}: expected frames, got none that can be decoded: the file is damaged")
        self._check_end(index, clock)

    def _to_pixels(self, aspect: Fraction, note: Notes) -> Callable[[av.VideoFrame], Decoded]:
        if not self._is_on_gpu:
            return ToPixels(self.pixels, aspect, note)
        from pipeline.sources.nvdec import ToDevice

        return ToDevice(str(self._path), self._stream.codec_context.name, self.pixels, aspect, note)

    def _decoded(self, deinterlaced: Deinterlacer) -> Iterator[av.VideoFrame]:
        """The film's pictures; what its packets say of the end is kept for ``_check_end``."""
        self._end_s, self._ends_inside = 0.0, False
        try:
            for packet in self._container.demux():
                if packet.size:
                    self._ends_inside = packet.is_corrupt  # the last of all: whether the file ends inside it
                if packet.stream is not self._stream:
                    continue
                if packet.pts is not None and packet.time_base is not None:
                    self._end_s = max(self._end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if not packet.size and packet.pts is not None:
                    continue  # "the same picture again", which the decoder would take for the end
                for decoded in packet.decode():
                    yield from deinterlaced(cast("av.VideoFrame", decoded))
        except av.error.FFmpegError:
            yield from deinterlaced.rest()
            raise
        yield from deinterlaced.rest()

    def _check_end(self, frames: int, clock: FileClock) -> None:
        end_s, declared_s = self._end_s, self._declared_end_s()
        container = self._container.format.name
        if (self._ends_inside and container not in TRANSPORTS) or is_cut_off(self._path, container):
            length = f" of {declared_s:.1f} s" if declared_s else ""
            raise TruncatedError(
                f"{self._path}: expected a complete file{length}, got one that is cut off after {frames} frames",
                clock.last_s,
            )
        if declared_s and end_s < declared_s - max(_MISSING_S, 2 * clock.step_s):
            log.info(
                f"{self.info.name}: its header says {declared_s:.1f} s, and its frames end after {end_s:.1f} s: taken as complete"
            )

    def _declared_end_s(self) -> float | None:
        """When the picture track ends, as the container's header says."""
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if duration := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
            hours, minutes, seconds = map(float, duration.groups())
            return hours * 3600 + minutes * 60 + seconds
        if self._container.duration is not None and len(self._container.streams) == 1:
            return self._container.duration / av.time_base
        return None

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class FileClock:
    """Presentation times that strictly increase, counted from the first frame's.

    Stamps are kept as they are, at whatever rate. Where they go back, or in a transport stream far ahead, another recording
    begins (``cat a.ts b.ts``) or the counter has wrapped: time then goes on by the mean step of the frames so far.

    Args:
        fps: the file's mean rate in Hz; None if it has none.
        is_transport: whether stamps may jump ahead too.
        note: told once when they have jumped.

    Attributes:
        last_s: time of the last frame.
        offset_s: how much later that is than its stamp.
    """

    _LEAST_S = 1e-4

    def __init__(
        self, fps: Fraction | None, *, is_transport: bool, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self._nominal_s = float(1 / fps) if fps else 0.04
        self._is_transport, self._note = is_transport, note
        self._stamp_s: float | None = None  # of the last frame that had one
        self.offset_s = 0.0
        self._frames = 0
        self.last_s = 0.0

    @property
    def step_s(self) -> float:
        """Mean time between frames so far."""
        return self.last_s / (self._frames - 1) if self._frames > 1 and self.last_s else self._nominal_s

    def __call__(self, stamp_s: float | None) -> float:
        """The time of the next frame, by its stamp in seconds, if it has one."""
        if not self._frames:
            pts_s = 0.0
            self.offset_s = -(stamp_s or 0.0)
        elif stamp_s is None:
            pts_s = self.last_s + self.step_s
        else:
            pts_s = stamp_s + self.offset_s
            jump_s = stamp_s - self._stamp_s if self._stamp_s is not None else 0.0
            if jump_s < -BACK_S or (self._is_transport and jump_s > AHEAD_S):
                pts_s = self.last_s + self.step_s
                self.offset_s = pts_s - stamp_s
                self._note(f"its time stamps jump by {jump_s:+.1f} s at {pts_s:.1f} s: time goes on at its mean rate")
        self._stamp_s = self._stamp_s if stamp_s is None else stamp_s
        self.last_s = max(pts_s, self.last_s + self._LEAST_S) if self._frames else pts_s
        self._frames += 1
        return self.last_s
