"""Views through a GStreamer pipeline of the user's, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import threading
import time
from fractions import Fraction
from typing import cast

import cv2
import numpy as np

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.sinks.kinds import SinkKind, shown
from pipeline.sinks.stream import BrokenLinkError, Link, StreamSink
from pipeline.sources.gstreamer import LAUNCH, start_pipeline

GSTREAMER = SinkKind(
    name="gstreamer",
    opens="GStreamerSink",
    help="views into any pipeline of GStreamer",
    order=70,
    install="sudo apt install gstreamer1.0-tools",
    forms=("a pipeline (gst:PIPELINE)",),
    prefixes=("gst:",),
)

_TAKE_WITHIN_S = 10.0
_END_WITHIN_S = 10.0
_POLL_MS = 200
_TAIL_BYTES = 4096


class GStreamerSink(StreamSink):
    """``gst:PIPELINE``: the views as raw video, BGR, into ``fdsrc ! rawvideoparse ! videoconvert ! PIPELINE``.

    The pipeline's words are handed over as they are; no shell reads them. All views have the size of the first; others are scaled.
    """

    def _open(self) -> None:
        where = shown(self._spec)
        try:
            self._words = shlex.split(self._spec.removeprefix("gst:"))
        except ValueError as error:
            raise SinkError(
                f"--output {where}: expected a pipeline, got text with a quotation mark left open"
            ) from error
        if not self._words:
            raise SinkError(f"--output {where}: expected a pipeline such as gst:autovideosink, got nothing")
        if shutil.which(LAUNCH) is None:
            raise SinkError(
                f"--output {where}: expected {LAUNCH} on this machine, got none: install gstreamer1.0-tools"
            )
        self._size_hw: tuple[int, int] | None = None
        super()._open()

    def _connect(self, frame: Frame) -> Link:
        assert frame.view is not None
        self._size_hw = self._size_hw or (frame.view.shape[0], frame.view.shape[1])
        return _GStreamerLink(self._words, self._where, self._size_hw, self._info, self._given_up)


class _GStreamerLink(Link):
    def __init__(
        self,
        words: list[str],
        where: str,
        size_hw: tuple[int, int],
        info: SourceInfo,
        given_up: threading.Event,
    ) -> None:
        self._given_up = given_up
        self._where = where
        self._size_hw = size_hw
        self._live = info.live
        self._tail = b""
        height, width = size_hw
        # GStreamer's rows begin at multiples of 4 bytes.
        self._rows: Image = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)
        fps = info.fps or Fraction(30 if info.live else 1)
        pipeline = ["fdsrc", "fd=0", f"blocksize={self._rows.nbytes}"]
        pipeline += ["do-timestamp=true"] if info.live else []  # the rate of a camera is a mean
        pipeline += ["!", "rawvideoparse", "format=bgr", f"width={width}", f"height={height}"]
        pipeline += [f"framerate={fps.numerator}/{fps.denominator}", "!", "videoconvert", "!", *words]
        try:
            # In a session of its own: Ctrl-C is ours, and the pipeline ends when its input does.
            self._process = start_pipeline(pipeline, stdin=subprocess.PIPE)
        except OSError as error:
            raise SinkError(f"{where}: GStreamer cannot be started ({error.strerror})") from error
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._input, self._errors = self._process.stdin, self._process.stderr
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._errors.fileno(), False)

    def send(self, frame: Frame) -> None:
        assert frame.view is not None
        height, width = self._size_hw
        view = frame.view
        if view.shape[:2] != self._size_hw:
            view = cast(Image, cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA))
        self._rows[:, : 3 * width] = view.reshape(height, 3 * width)
        left = self._rows.data.cast("B")
        poll = select.poll()
        poll.register(self._input.fileno(), select.POLLOUT)
        end_s = time.monotonic() + _TAKE_WITHIN_S
        while left:
            try:
                if poll.poll(_POLL_MS):
                    left = left[os.write(self._input.fileno(), left) :]
                    end_s = time.monotonic() + _TAKE_WITHIN_S
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._ended() from error
            self._read_errors()
            if self._process.poll() is not None:
                raise self._ended()
            if self._given_up.is_set() or (self._live and time.monotonic() > end_s):
                raise BrokenLinkError("the pipeline takes nothing")

    def close(self, *, broken: bool) -> None:
        self._input.close()
        try:
            if broken:
                return
            end_s = time.monotonic() + _END_WITHIN_S
            while self._process.poll() is None and not self._given_up.is_set():
                if self._live and time.monotonic() > end_s:
                    break
                self._read_errors()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_POLL_MS / 1000)
            if self._process.poll() is None:
                raise SinkError(f"{self._where}: the pipeline did not end")
            if self._process.returncode:
                raise SinkError(f"{self._where}: the pipeline failed ({self._complaint()})")
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._errors.close()

    def _ended(self) -> SinkError | BrokenLinkError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_MS / 1000)
        complaint = self._complaint()
        if "erroneous pipeline" in complaint:  # it will not become right by itself
            return SinkError(f"{self._where}: expected a pipeline of GStreamer, got: {complaint}")
        return BrokenLinkError(complaint)

    def _read_errors(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._errors.fileno(), _TAIL_BYTES):
                self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    def _complaint(self) -> str:
        self._read_errors()
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines()]
        said = [line for line in lines if re.match("ERROR|WARNING", line)] or [line for line in lines if line]
        return shown(said[0]) if said else f"status {self._process.returncode}"
