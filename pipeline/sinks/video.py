"""A video file of a job that has an end: H.264, which browsers play, and where it is asked for, transparency or exact masks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.sinks.base import Sink, cut_off_path, make_room, scratch_path
from pipeline.sinks.beside import Beside
from pipeline.sinks.encoding import Encoding
from pipeline.sinks.h264 import Error, Muxer, reason
from pipeline.sinks.kinds import SinkKind
from pipeline.terminal import logger_of

log = logger_of(__name__)

VIDEO = SinkKind(
    name="video",
    opens="VideoSink",
    help="a video of a job that has an end, H.264 (.webm: VP9), with its source's sound",
    order=10,
    extra="cpu",
    forms=("a video (out.mp4)",),
    suffixes=(".mp4", ".m4v", ".mov", ".mkv", ".webm"),
)


class VideoSink(Sink):
    """Writes the views to ``NAME.mp4`` (or .m4v, .mov, .mkv, .webm), with the source's frame rate and time stamps.

    A cut-out has its transparency in .mov (ProRes 4444) and .webm (VP9); the render mode "mask" is the mask itself in .mkv (FFV1,
    gray: probability × 255 or class index). The sound and subtitles of the source's file are copied.

    The file appears under its name when it is complete. Odd sizes are made even by repeating the last row or column, where color has
    half the pixels (4:2:0); frames of another size than the first are scaled into it.
    """

    def _open(self) -> None:
        spec = self._spec
        self._path = Path(spec)
        self._has_frames = False
        self.written = spec
        make_room(self._path)
        # In the same folder, so that the last step is a rename; the suffix tells FFmpeg the container.
        self._scratch = scratch_path(self._path)
        try:
            self._scratch.open("xb").close()
        except OSError as error:
            raise SinkError(f"{spec}: cannot be written ({error.strerror}): choose another --output") from error
        suffix = self._path.suffix.lower()
        is_matroska = suffix in (".mkv", ".webm")  # where each file gets a random number, so that no two are the same
        container_options = {"fflags": "+bitexact"} if is_matroska else {"movflags": "+faststart"}
        self._encoding = Encoding(self._renderer, self._path)
        self._muxer: Muxer | None = None
        self._beside: Beside | None = None
        try:
            if self._info.beside and self._options.sound:
                self._beside = Beside(self._info.paths[0], self._path, float(1 / (self._info.fps or 1)))
            self._muxer = Muxer(
                f"file:{self._scratch}",
                self._info,
                live=False,
                wanted=self._encoding.encoder or self._options.encoder,
                beside=self._beside,
                options=container_options,
            )
            if self._options.comment:
                self._muxer.add_comment(self._options.comment)
        except (ValueError, *Error) as error:
            raise SinkError(
                f"{spec}: FFmpeg cannot write it ({str(error).lower()}): choose another --output"
            ) from error
        finally:
            if self._muxer is None:
                self._scratch.unlink()
                self._close_beside()

    def write(self, frame: Frame) -> None:
        """Encode the frame's view."""
        if frame.lying_view is None or self._muxer is None:
            raise ValueError(f"{frame!r} has no view, or the output is closed")
        try:
            self._muxer.write(self._encoding.picture(frame), frame.pts_s, frame.sample_aspect)
            if self._beside is not None:
                self._beside.go_on(frame.pts_s, frame.shift_s)
        except SinkError as error:
            raise SinkError(f"{self._path}: {error}") from error
        except Error as error:
            raise SinkError(f"{self._path}: cannot be written ({reason(error)})") from error
        if not self._has_frames:
            self._has_frames = True
            log.info(f"{self._path}: {self._muxer.description}")
            if self._encoding.note:
                log.info(f"{self._path}: {self._encoding.note}")

    @property
    def leaves_views(self) -> bool:  # type: ignore[override]
        """Whether NVENC encodes them there."""
        return self._encoding.leaves_views(self._options.encoder, self._info, live=False)

    def close(self) -> None:
        """Finish the file and give it its name; with no frame written there is none."""
        if self._muxer is None:
            return
        muxer, self._muxer = self._muxer, None
        if not self._has_frames:
            self._abandon(muxer)
            return
        try:
            if self._beside is not None:
                self._beside.finish()
            muxer.close()
            self._close_beside()
            os.replace(self._scratch, self._path)
        except Error as error:
            self._abandon(muxer)
            raise SinkError(f"{self._path}: cannot be finished ({reason(error)})") from error

    def cut_off(self) -> None:
        """Let the file's name say that it is a part."""
        self._path = cut_off_path(self._path)
        self.written = str(self._path)

    def discard(self) -> None:
        """Remove what was written."""
        if self._muxer is not None:
            muxer, self._muxer = self._muxer, None
            self._abandon(muxer)

    def _close_beside(self) -> None:
        if self._beside is not None:
            self._beside.close()

    def _abandon(self, muxer: Muxer) -> None:
        muxer.abandon()
        self._close_beside()
        with contextlib.suppress(FileNotFoundError):
            self._scratch.unlink()
