"""Views published to an RTSP server, as H.264 over TCP."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from pipeline.errors import SinkError, SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.h264 import Error, Muxer, Picture, encodes_on_gpu, picture_of, reason, size_of
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.rtsp_publisher import RtspPublisher
from pipeline.sinks.stream import BrokenLinkError, Link, StreamSink
from pipeline.sources.address import Address
from pipeline.sources.dial import require_certificates
from pipeline.sources.live import LostError

RTSP = SinkKind(
    name="rtsp",
    opens="RtspSink",
    help="a stream published to an RTSP server, H.264",
    order=60,
    extra="cpu",
    forms=("a stream (rtsp://host/name)",),
    prefixes=("rtsp://", "rtsps://"),
)

# For connecting, and for each packet: a server that takes none for so long is left.
_SEND_WITHIN_S = 3.0
# What fits into a datagram, although there is none here: servers pass packets on to others.
_PACKETS = {"packetsize": "1400"}


class RtspSink(StreamSink):
    """``rtsp://[user:password@]host[:port]/name``: publishes the views with ANNOUNCE and RECORD.

    The server is verified, redirections are followed and the password is told as for sources (``SinkOptions.live``).

    A source that can wait is sent at the speed of its time stamps. When the size of the views changes, the stream is announced
    again.
    """

    def _open(self) -> None:
        self._start_s: float | None = None
        try:
            self._address = Address.parse(self._spec)
        except SourceError as error:
            raise SinkError(str(error)) from error
        require_certificates(self._address, self._options.live.tls_verify)
        super()._open()

    @property
    def leaves_views(self) -> bool:  # type: ignore[override]
        """Whether NVENC encodes them there."""
        return encodes_on_gpu(self._options.encoder, self._info.size_hw, live=True)

    def _connect(self, frame: Frame) -> Link:
        return _RtspLink(self._address, self._info, self._options, frame)

    def write(self, frame: Frame) -> None:
        """Hand the frame's view over, when its time has come if the source can wait."""
        if not self._info.live:
            now_s = time.monotonic()
            self._start_s = self._start_s if self._start_s is not None else now_s - frame.pts_s
            time.sleep(max(0.0, self._start_s + frame.pts_s - now_s))
        super().write(frame)


class _RtspLink(Link):
    """FFmpeg makes packets of RTP, and connects to nobody: while it did, nothing else of this process would run."""

    def __init__(self, address: Address, info: SourceInfo, options: SinkOptions, frame: Frame) -> None:
        self._start_pts_s = frame.pts_s
        self._size_hw = size_of(_picture(frame))
        self._name = address.name
        self._session = RtspPublisher(address, replace(options.live, connect_s=_SEND_WITHIN_S))
        try:
            self._session.open()
            self._muxer = Muxer(
                self._session, info, live=True, wanted=options.encoder, container_format="rtp", options=_PACKETS
            )
        except (LostError, SourceError, ValueError, *Error) as error:
            self._session.close()
            raise self._broken(error) from error

    def send(self, frame: Frame) -> None:
        picture = _picture(frame)
        if size_of(picture) != self._size_hw:
            raise BrokenLinkError("the size of the picture has changed")
        try:
            self._muxer.write(picture, frame.pts_s - self._start_pts_s)
        except (LostError, *Error) as error:
            raise self._broken(error) from error

    def close(self, *, broken: bool) -> None:
        try:
            if broken:
                self._session.close()
            with suppress(LostError, *Error):  # a live stream has no end that could be missing
                self._muxer.close()
            with suppress(LostError):
                self._muxer.abandon()
        finally:
            self._session.close()

    def _broken(self, error: Exception) -> BrokenLinkError:
        if isinstance(error, (LostError, SourceError)):
            return BrokenLinkError(str(error).removeprefix(f"{self._name}: "))
        return BrokenLinkError(reason(error))


def _picture(frame: Frame) -> Picture:
    view = frame.lying_view
    assert view is not None
    return picture_of(view)
