"""A virtual camera that other programs open: views written to a device of v4l2loopback."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque

import av
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.sinks.h264 import EXACT_BILINEAR, Error, even, reason
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.stream import BrokenLinkError, Link, StreamSink

VIRTUAL_CAMERA = SinkKind(
    name="virtual camera",
    opens="VirtualCameraSink",
    help="a camera for other programs, of the kernel module v4l2loopback",
    order=65,
    extra="cpu",
    forms=("a virtual camera (v4l2:///dev/video9)",),
    prefixes=("v4l2:",),
)

# What every program takes from a camera.
_FORMAT = "yuv420p"


class VirtualCameraSink(StreamSink):
    """``v4l2:///dev/videoN``: writes the views to a device that v4l2loopback has made.

    Programs that read it get the newest picture. A source that can wait is sent as fast as it is computed, each picture once.
    """

    def _open(self) -> None:
        self._device = self._spec.removeprefix("v4l2:").removeprefix("//")
        try:
            is_device = stat.S_ISCHR(os.stat(self._device).st_mode)
        except OSError as error:
            raise SinkError(_expected(self._spec, (error.strerror or str(error)).lower())) from error
        if not is_device:
            raise SinkError(_expected(self._spec, "something that is no device"))
        super()._open()

    def _connect(self, frame: Frame) -> Link:
        return _DeviceLink(self._device, frame)


class _DeviceLink(Link):
    def __init__(self, device: str, frame: Frame) -> None:
        assert frame.view is not None
        view = even(frame.view)
        self._size_hw = view.shape[:2]
        self._reformatter = VideoReformatter()
        self._number = 0
        try:
            self._container = av.open(device, "w", format="v4l2")
            stream = self._container.add_stream("rawvideo", rate=30)
        except (ValueError, *Error) as error:  # a ValueError where FFmpeg was built without it
            raise BrokenLinkError(reason(error)) from error
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = self._size_hw
        stream.pix_fmt = _FORMAT
        self._stream = stream

    def send(self, frame: Frame) -> None:
        assert frame.view is not None
        view = even(frame.view)
        if view.shape[:2] != self._size_hw:
            raise BrokenLinkError("the size of the picture has changed")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="bgr24"),
            format=_FORMAT,
            dst_colorspace=Colorspace.ITU601,  # what programs take a camera's colors for
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT_BILINEAR,
        )
        picture.pts, self._number = self._number, self._number + 1
        try:
            deque(map(self._container.mux, self._stream.encode(picture)), 0)
        except Error as error:
            raise BrokenLinkError(reason(error)) from error

    def close(self, *, broken: bool) -> None:
        with contextlib.suppress(*Error):  # a camera has no end that could be missing
            self._container.close()


def _expected(spec: str, got: str) -> str:
    return (
        f"--output {spec}: expected a device that v4l2loopback has made, got {got}: "
        "sudo modprobe v4l2loopback video_nr=9 exclusive_caps=1 card_label=edgemask"
    )
