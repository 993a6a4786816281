"""rtsp://, rtsps://, http:// and https://: streams that FFmpeg reads, through PyAV."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import av
import av.error
from av.codec.context import Flags2

from pipeline.errors import SourceError
from pipeline.frames.frame import SourceInfo
from pipeline.frames.pixels import Pixels
from pipeline.redaction import redact
from pipeline.sources.address import Address
from pipeline.sources.decoded import MAX_PIXELS, ToPixels, reason
from pipeline.sources.display import pixel_shape
from pipeline.sources.gstreamer import GstreamerConnection, has_jetson_decoder, jetson_rtsp
from pipeline.sources.kinds import SourceKind
from pipeline.sources.live import Connection, LifeSigns, LiveSource, LostError, Picture
from pipeline.sources.login import unsupported_login
from pipeline.sources.options import LiveOptions
from pipeline.sources.tracks import film_of

STREAM = SourceKind(
    name="stream",
    opens="StreamSource",
    help="a network camera or a stream of a server: RTSP over TCP, MJPEG or a video over HTTP",
    order=40,
    extra="cpu",
    forms=("rtsp://", "http://"),
    live=True,
    prefixes=("rtsp://", "rtsps://", "http://", "https://"),
)

# What FFmpeg may open on behalf of an address. A playlist (HLS, DASH, concat, SDP) could name local files and other hosts.
_RTSP_PROTOCOLS = "rtsp,rtsps,rtp,srtp,tcp,udp,tls"
_HTTP_PROTOCOLS = "http,https,httpproxy,tcp,tls"
_HTTP_FORMATS = "asf,avi,flv,h264,hevc,matroska,webm,mjpeg,mpjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,nut,ogg"
# Their time stamps are FFmpeg's own: 25 frames a second, whatever comes.
_WITHOUT_TIMES = frozenset(("h264", "hevc", "mjpeg", "mpjpeg", "mpegvideo"))
_WHY_WAIT_S = 2.0


class StreamSource(LiveSource):
    """A network camera or a stream of a server; RTSP over TCP. On a Jetson RTSP is decoded by its decoder, through GStreamer."""

    def __init__(self, spec: str, live: LiveOptions | None = None) -> None:
        options = live or LiveOptions()
        address = Address.parse(spec)
        kind = "RTSP over TCP" if address.scheme.startswith("rtsp") else "stream over HTTP"

        def connect() -> Connection:
            return StreamConnection(address, options, self.pixels)

        super().__init__(SourceInfo(address.name, f"{kind}, {address.name}", live=True), connect, options)


class StreamConnection(Connection):
    """One connection of FFmpeg's. A read that hangs ends by the time-out alone: nothing can interrupt it."""

    def __init__(self, address: Address, options: LiveOptions, pixels: Pixels = "bgr") -> None:
        self._address = address
        self._pixels = pixels
        self._options = options
        self._other: GstreamerConnection | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Picture]:
        if self._address.scheme == "rtsp" and has_jetson_decoder():
            self._other = GstreamerConnection(
                jetson_rtsp(self._address), self._address.name, self._address.secrets, pixels=self._pixels
            )
            if not self._cancelled:
                yield from self._other
            return
        container = self._open()
        try:
            yield from self._pictures(container)
        except av.error.FFmpegError as error:
            raise self._lost(error) from None  # FFmpeg's own error quotes the address with its password
        finally:
            container.close()

    def cancel(self) -> None:
        """End the program that reads in our place, if one does."""
        self._cancelled = True
        if self._other is not None:
            self._other.cancel()

    def _open(self) -> av.container.InputContainer:
        address, options = self._address, self._options
        is_rtsp = address.scheme.startswith("rtsp")
        choices = {
            "protocol_whitelist": _RTSP_PROTOCOLS if is_rtsp else _HTTP_PROTOCOLS,
            "format_whitelist": "rtsp" if is_rtsp else _HTTP_FORMATS,
            "max_pixels": str(MAX_PIXELS),
            "fpsprobesize": "0",  # else the first second is spent on finding out the rate
            "analyzeduration": "2000000",
        }
        if is_rtsp:
            choices["rtsp_transport"] = "tcp"
        started_s = time.monotonic()
        try:
            container = av.open(address.url, options=choices, timeout=(options.connect_s, options.read_s))
        except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as error:
            asked = unsupported_login(address, options.connect_s) if address.user else ""
            todo = (
                f"it asks for {asked}, and Basic or Digest with MD5 is supported: choose that in the camera's settings"
            )
            raise SourceError(
                f"{address.name}: expected to be let in, got {_status(error)}: {todo if asked else 'check user and password'}"
            ) from None
        except (av.error.ArgumentError, av.error.ProtocolNotFoundError, av.error.DemuxerNotFoundError):
            raise SourceError(
                f"{address.name}: expected a stream (MJPEG, MPEG-TS, FLV, MP4 or Matroska over HTTP, or RTSP), got something "
                "else: playlists and single pictures are not read"
            ) from None
        except (av.error.FFmpegError, ValueError) as error:
            raise self._lost(error, time.monotonic() - started_s) from None
        film = film_of(container)
        problem = None
        if film is None:
            problem = f"{address.name}: expected a stream, got one without pictures"
        elif film.height * film.width > MAX_PIXELS:
            problem = f"{address.name}: expected frames of at most {MAX_PIXELS} pixels, got {film.width}×{film.height}"
        if problem is not None:
            container.close()
            raise SourceError(problem)
        return container

    def _pictures(self, container: av.container.InputContainer) -> Iterator[Picture]:
        stream = film_of(container)
        assert stream is not None  # it was checked
        context = stream.codec_context
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a later picture may claim more than the first
        context.thread_type = "SLICE"  # threads that take a frame each would give every frame that much later
        if container.format.name == "rtsp" and context.name == "h264":
            # Some servers repeat the headers between a picture's slices, which then come as packets of their own: without this
            # each would become a picture, half of it green, that is not even marked as damaged.
            context.flags2 |= Flags2.chunks
        timed = container.format.name not in _WITHOUT_TIMES
        to_pixels, life = ToPixels(self._pixels, pixel_shape(stream.sample_aspect_ratio)), LifeSigns()
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                yield Picture(None, corrupt=True)
                continue
            for decoded in pictures:
                assert isinstance(decoded, av.VideoFrame)
                pts_s = None
                if timed and decoded.pts is not None and decoded.time_base is not None:
                    pts_s = float(decoded.pts * decoded.time_base)
                pixels, kind, aspect = to_pixels(decoded)
                yield Picture(pixels, pts_s, decoded.is_corrupt, kind, sample_aspect=aspect)
            if life.due() and not pictures:
                yield Picture(None)

    def _lost(self, error: Exception, waited_s: float = 0.0) -> LostError:
        """FFmpeg tells most failures as invalid data: the network is asked for a better reason."""
        text = reason(error)
        if isinstance(error, av.error.ExitError) or waited_s >= self._options.connect_s:
            text = "no answer in time"
        elif isinstance(error, av.error.InvalidDataError) or error.__class__ is av.error.OSError:
            text = self._unreachable() or text
        return LostError(redact(text, *self._address.secrets))

    def _unreachable(self) -> str | None:
        try:
            socket.create_connection((self._address.host, self._address.port), _WHY_WAIT_S).close()
        except (OSError, UnicodeError) as error:
            return str(getattr(error, "strerror", None) or error).lower()
        return None


def _status(error: Exception) -> str:
    return "401 unauthorized" if isinstance(error, av.error.HTTPUnauthorizedError) else "403 forbidden"
