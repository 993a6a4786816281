"""Frames of a video file, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source
from pipeline.sources.decoded import MAX_PIXELS, ToPixels, reason
from pipeline.sources.kinds import SourceKind

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
    "asf,avi,av1,dv,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "rm,webp_anim,yuv4mpegpipe"
)
# Containers that know how long they are. A stream made to be cut anywhere (MPEG-TS) cannot be cut off.
_COMPLETE = frozenset(("avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"))
# A file ends where its header says, give or take: the last frame's duration is not always written.
_MISSING_S = 1.0


class VideoSource(Source):
    """A video file. Frames keep their presentation times, counted from the first frame's, and are turned upright."""

    def __init__(self, spec: str) -> None:
        self._path = Path(spec)
        if not os.path.exists(spec):
            raise SourceError(f"{spec}: no such file")
        if not os.path.isfile(spec):
            raise SourceError(f"{spec}: expected a video, got something that is no file")
        if not os.access(spec, os.R_OK):
            raise SourceError(f"{spec}: expected a video, got a file that cannot be read: check its permissions")
        try:
            # The prefix makes FFmpeg take the whole name as a path, whatever characters it holds.
            self._container = av.open(
                f"file:{self._path}", options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{spec}: expected a video, got a file that is none or is cut off ({reason(error)})"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{spec}: expected a video, got a file without a picture track")
        stream = self._stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
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
        )

    def _count_from_duration(self, fps: Fraction | None) -> int | None:
        if not fps or not self._container.duration:
            return None
        return max(1, round(self._container.duration / av.time_base * fps))

    def __iter__(self) -> Iterator[Frame]:
        first_pts: int | None = None
        last_s = end_s = 0.0
        cut = False
        step_s = float(1 / self.info.fps) if self.info.fps else 0.04
        stem, index = self._path.stem, 0
        to_pixels = ToPixels(self.pixels)
        try:
            for packet in self._container.demux():
                if packet.size:
                    cut = packet.is_corrupt  # the last of all: whether the file ends inside it
                if packet.stream is not self._stream:
                    continue
                if packet.pts is not None and packet.time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                for decoded in packet.decode():
                    assert isinstance(decoded, av.VideoFrame)
                    if decoded.pts is None:
                        pts_s = last_s + step_s if index else 0.0
                    else:
                        if first_pts is None:
                            first_pts = decoded.pts
                        pts_s = float((decoded.pts - first_pts) * (decoded.time_base or self.info.time_base))
                    last_s = pts_s
                    pixels, kind = to_pixels(decoded)
                    yield Frame(pixels, index, pts_s, self.info.name, f"{stem}_{index:06d}", kind)
                    index += 1
        except av.error.FFmpegError as error:
            raise SourceError(f"{self._path}: cut off or damaged after {index} frames ({reason(error)})") from error
        if index == 0:
            raise SourceError(f"{self._path}: expected frames, got none that can be decoded: the file is damaged")
        declared_s = self._declared_end_s()
        if self._container.format.name in _COMPLETE and (cut or (declared_s and end_s < declared_s - _MISSING_S)):
            length = f" of {declared_s:.1f} s" if declared_s else ""
            raise SourceError(
                f"{self._path}: expected a complete file{length}, got one that is cut off after {index} frames"
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
