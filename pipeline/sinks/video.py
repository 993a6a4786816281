"""A video file that browsers play: H.264, yuv420p, through FFmpeg's libraries."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.errors import SinkError
from pipeline.frame import Frame, Image, SourceInfo
from pipeline.overlay import Renderer
from pipeline.sinks.base import Sink, scratch_path

_BT709 = 1  # FFmpeg's number for the matrix, the primaries and the transfer function alike
# FFmpeg's bilinear with exact rounding and chroma of every pixel: its default darkens a picture by two levels of 255. PyAV names
# these flags from version 18 on.
_EXACT_BILINEAR = 0x2 | 0x40000 | 0x4000
_PICTURES_PER_S = Fraction(1)  # a video made of pictures shows each for a second


class VideoSink(Sink):
    """Writes the views to ``NAME.mp4`` (or .m4v, .mov, .mkv), with the source's frame rate and time stamps.

    The file appears under its name when it is complete. Odd sizes are made even by repeating the last row or column, because
    4:2:0 colour has no half pixels; frames of another size than the first are scaled into it.
    """

    def __init__(self, spec: str, info: SourceInfo, renderer: Renderer) -> None:
        self._path = Path(spec)
        self._fps = info.fps or (Fraction(30) if info.live else _PICTURES_PER_S)
        self._time_base = info.time_base
        self._last_pts = -1
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self.written = spec
        try:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(self._path)  # a name that is too long fails now and not after the last frame
            if not self._path.parent.is_dir():
                self._path.parent.mkdir(parents=True)
            # In the same folder, so that the last step is a rename; the suffix tells FFmpeg the container.
            self._scratch = scratch_path(self._path)
            self._scratch.open("xb").close()
        except OSError as error:
            raise SinkError(f"{spec}: cannot be written ({error.strerror}): choose another --output") from error
        options = {} if self._path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        self._container: av.container.OutputContainer | None = None
        try:
            self._container = av.open(f"file:{self._scratch}", "w", options=options)
        except (av.error.FFmpegError, ValueError) as error:
            raise SinkError(
                f"{spec}: FFmpeg cannot write it ({str(error).lower()}): choose another --output"
            ) from error
        finally:
            if self._container is None:
                self._scratch.unlink()

    def write(self, frame: Frame) -> None:
        """Encode the frame's view."""
        if frame.view is None or self._container is None:
            raise ValueError(f"{frame!r} has no view, or the output is closed")
        view = _even(frame.view)
        try:
            stream = self._stream or self._start(*view.shape[:2])
            picture = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(view, format="bgr24"),
                width=stream.width,
                height=stream.height,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_EXACT_BILINEAR,
            )
            # Players refuse time that stands still or runs backward; a source's rounding must not stop the recording.
            self._last_pts = max(round(frame.pts_s / self._time_base), self._last_pts + 1)
            picture.pts, picture.time_base = self._last_pts, self._time_base
            # With no line of Python between encoder and file, where a signal that ends the run would lose a packet.
            deque(map(self._container.mux, map(stream.encode, (picture,))), 0)
        except (av.error.FFmpegError, OSError) as error:
            raise SinkError(f"{self._path}: cannot be written ({str(error.strerror or error).lower()})") from error

    def close(self) -> None:
        """Finish the file and give it its name; with no frame written there is none."""
        if self._container is None:
            return
        container, self._container = self._container, None
        if self._stream is None:
            self._abandon(container)
            return
        try:
            for packet in self._stream.encode(None):
                container.mux(packet)
            container.close()
            os.replace(self._scratch, self._path)
        except (av.error.FFmpegError, OSError) as error:
            self._abandon(container)
            raise SinkError(f"{self._path}: cannot be finished ({str(error.strerror or error).lower()})") from error

    def discard(self) -> None:
        """Remove what was written."""
        if self._container is not None:
            container, self._container = self._container, None
            self._abandon(container)

    def _start(self, height: int, width: int) -> av.VideoStream:
        assert self._container is not None
        try:
            stream = self._container.add_stream("libx264", rate=self._fps, options={"preset": "veryfast", "crf": "20"})
        except ValueError as error:
            raise SinkError(
                f"{self._path}: this FFmpeg has no libx264: pip install av, or write a folder of pictures"
            ) from error
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = _BT709, _BT709, _BT709
        context.color_range = ColorRange.MPEG
        self._stream = stream
        return stream

    def _abandon(self, container: av.container.OutputContainer) -> None:
        with contextlib.suppress(av.error.FFmpegError, OSError):  # the file is removed in any case
            container.close()
        with contextlib.suppress(FileNotFoundError):
            self._scratch.unlink()


def _even(view: Image) -> Image:
    height, width = view.shape[:2]
    if height % 2 or width % 2:
        return np.pad(view, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(view)
