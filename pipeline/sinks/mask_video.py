"""The masks of a video as a video, bit by bit: FFV1 in gray, in Matroska."""

from __future__ import annotations

import contextlib
from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.sinks.base import Sink, make_room
from pipeline.sinks.h264 import Error, reason

# Version 3 has a checksum for each slice, and slices are encoded on several cores; every picture can be read alone.
_FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}
_PICTURES_PER_S = Fraction(1)


class MaskVideoSink(Sink):
    """Writes the masks to ``NAME.mkv`` as they are, gray of 8 bits.

    Time stamps are the source's, which Matroska keeps to the millisecond. Two runs over one source give the same
    bytes.
    """

    def _open(self) -> None:
        self._path = Path(self._spec)
        self._stream: av.VideoStream | None = None
        self._last_pts = -1
        make_room(self._path)
        try:
            # Without "bitexact" every file gets a random number.
            self._container = av.open(f"file:{self._path}", "w", format="matroska", options={"fflags": "+bitexact"})
        except Error as error:
            raise SinkError(f"{self._path}: cannot be written ({reason(error)}): choose another --output") from error
        if self._options.comment:
            self._container.metadata["comment"] = self._options.comment

    def write(self, frame: Frame) -> None:
        """Encode the frame's mask."""
        mask = frame.mask
        if mask is None:
            raise ValueError(f"{frame!r} has no mask yet")
        try:
            stream = self._stream or self._start((mask.shape[0], mask.shape[1]), frame.sample_aspect)
            if mask.shape != (stream.height, stream.width):
                raise SinkError(
                    f"{self._path}: expected masks of one size, {stream.height}×{stream.width}, got {mask.shape[0]}×{mask.shape[1]} in "
                    f"frame {frame.index}: use --masks-as png"
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(mask), format="gray")
            self._last_pts = max(round(frame.pts_s / self._info.time_base), self._last_pts + 1)
            picture.pts, picture.time_base = self._last_pts, self._info.time_base
            deque(map(self._container.mux, map(stream.encode, (picture,))), 0)
        except Error as error:
            raise SinkError(f"{self._path}: cannot be written ({reason(error)})") from error

    def close(self) -> None:
        """Finish the file."""
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        except Error as error:
            raise SinkError(f"{self._path}: cannot be finished ({reason(error)})") from error
        self.written = str(self._path)

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(*Error):
            self._container.close()
        self._path.unlink(missing_ok=True)

    def _start(self, size_hw: tuple[int, int], sample_aspect: Fraction) -> av.VideoStream:
        stream = self._container.add_stream("ffv1", rate=self._info.fps or _PICTURES_PER_S, options=dict(_FFV1))
        stream.height, stream.width = size_hw
        stream.pix_fmt = "gray"
        stream.time_base = stream.codec_context.time_base = self._info.time_base
        if sample_aspect != 1:
            stream.codec_context.sample_aspect_ratio = sample_aspect.limit_denominator(1000)
        self._stream = stream
        return stream


def video_comment(path: Path) -> str:
    """The comment that a video's container carries; empty where it has none or is no video."""
    try:
        with av.open(
            f"file:{path}", options={"protocol_whitelist": "file", "probesize": "32", "analyzeduration": "0"}
        ) as container:
            return next((text for key, text in container.metadata.items() if key.lower() == "comment"), "")
    except (av.error.FFmpegError, OSError, ValueError):
        return ""
