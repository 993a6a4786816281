"""Views published to an RTSP server, as H.264 over TCP."""

from __future__ import annotations

import time

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.h264 import Error, Muxer, reason
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.stream import BrokenLinkError, Link, StreamSink

RTSP = SinkKind(
    name="rtsp",
    opens="RtspSink",
    help="a stream published to an RTSP server, H.264",
    order=60,
    extra="cpu",
    forms=("a stream (rtsp://host/name)",),
    prefixes=("rtsp://", "rtsps://"),
)

# For each read and write of FFmpeg; a picture is many writes.
_SOCKET_TIMEOUT_US = 1_000_000
# FFmpeg says nothing of packets that a server no longer takes: it only takes long.
_SEND_WITHIN_S = 3.0


class RtspSink(StreamSink):
    """``rtsp://[user:password@]host[:port]/name``: publishes the views with ANNOUNCE and RECORD.

    A source that can wait is sent at the speed of its time stamps. When the size of the views changes, the stream is announced
    again.
    """

    def _open(self) -> None:
        self._start_s: float | None = None
        super()._open()

    def _connect(self, frame: Frame) -> Link:
        return _RtspLink(self._spec, self._info, self._options.encoder, frame)

    def write(self, frame: Frame) -> None:
        """Hand the frame's view over, when its time has come if the source can wait."""
        if not self._info.live:
            now_s = time.monotonic()
            self._start_s = self._start_s if self._start_s is not None else now_s - frame.pts_s
            time.sleep(max(0.0, self._start_s + frame.pts_s - now_s))
        super().write(frame)


class _RtspLink(Link):
    def __init__(self, address: str, info: SourceInfo, encoder: str, frame: Frame) -> None:
        assert frame.view is not None
        self._start_pts_s = frame.pts_s
        self._view_shape = frame.view.shape
        self._is_first = True
        options = {"rtsp_transport": "tcp", "timeout": str(_SOCKET_TIMEOUT_US)}
        try:
            self._muxer = Muxer(address, info, live=True, wanted=encoder, container_format="rtsp", options=options)
        except (ValueError, *Error) as error:
            raise BrokenLinkError(reason(error)) from error

    def send(self, frame: Frame) -> None:
        assert frame.view is not None
        if frame.view.shape != self._view_shape:
            raise BrokenLinkError("the size of the picture has changed")
        start_s = time.monotonic()
        try:
            self._muxer.write(frame.view, frame.pts_s - self._start_pts_s)
        except Error as error:
            raise BrokenLinkError(reason(error)) from error
        is_first, self._is_first = self._is_first, False  # the first picture also makes the connection
        if time.monotonic() - start_s > _SEND_WITHIN_S and not is_first:
            raise BrokenLinkError("the server takes nothing")

    def close(self, *, broken: bool) -> None:
        if broken:
            self._muxer.abandon()
            return
        try:
            self._muxer.close()
        except Error:
            self._muxer.abandon()  # a live stream has no end that could be missing
