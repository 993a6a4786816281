"""rtsp://, rtsps://, http:// and https://: streams that FFmpeg reads, through PyAV."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import av
import av.error
from av.codec.context import Flags, Flags2

from pipeline.errors import SourceError
from pipeline.frames.frame import SourceInfo
from pipeline.frames.pixels import Pixels
from pipeline.redaction import redact
from pipeline.sources.address import Address
from pipeline.sources.decoded import MAX_PIXELS, Decoded, ToPixels, reason
from pipeline.sources.dial import require_certificates
from pipeline.sources.display import Notes, pixel_shape
from pipeline.sources.ffmpeg_memory import limited_blocks
from pipeline.sources.gstreamer import GstreamerConnection, has_jetson_decoder, jetson_rtsp
from pipeline.sources.http_stream import HttpStream
from pipeline.sources.kinds import SourceKind
from pipeline.sources.live import Connection, LifeSigns, LiveSource, LostError, Picture
from pipeline.sources.multipart import Parts
from pipeline.sources.options import LiveOptions
from pipeline.sources.tracks import film_of
from pipeline.stages.prefetch import Prefetch

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel

    from pipeline.sources.rtsp_relay import RtspRelay

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

# What FFmpeg may take content for. A playlist (HLS, DASH, concat, SDP) could name local files and other hosts.
_HTTP_FORMATS = "asf,avi,flv,h264,hevc,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,nut,ogg"
# Their time stamps are FFmpeg's own: 25 frames a second, whatever comes.
_WITHOUT_TIMES = frozenset(("h264", "hevc", "mjpeg", "mpegvideo"))
# A camera's pictures may change their size, not become a thousand times as large.
_LATER_PIXELS, _GROWTH = 1 << 25, 4
_LEAVE_S = 0.3
Way = TypeVar("Way", HttpStream, "RtspRelay", GstreamerConnection)


class StreamSource(LiveSource):
    """A network camera or a stream of a server; RTSP over TCP. On a Jetson RTSP is decoded by its decoder, through GStreamer."""

    def __init__(self, spec: str, live: LiveOptions | None = None) -> None:
        options = live or LiveOptions()
        address = Address.parse(spec)
        require_certificates(address, options.tls_verify)
        kind = "RTSP over TCP" if address.scheme.startswith("rtsp") else "stream over HTTP"

        note = Notes(address.name)  # each thing once, however often the connection is begun again
        self._is_on_gpu = False

        def connect() -> Connection:
            return StreamConnection(address, options, self.pixels, note, on_gpu=self._is_on_gpu)

        super().__init__(SourceInfo(address.name, f"{kind}, {address.name}", live=True), connect, options)

    def decode_on_gpu(self) -> None:
        """By NVDEC; the first picture of a connection says whether that can decode it.

        Raises:
            BackendUnavailableError: there is no GPU.
        """
        from pipeline.sources.nvdec import require_gpu  # few runs need it

        require_gpu()
        self._is_on_gpu = True


class StreamConnection(Connection):
    """One connection: who is spoken to is decided here, and what came is decoded by FFmpeg, or a Jetson's decoder."""

    def __init__(
        self,
        address: Address,
        options: LiveOptions,
        pixels: Pixels = "bgr",
        note: Callable[[str], None] = lambda _: None,
        *,
        on_gpu: bool = False,
    ) -> None:
        self._address, self._is_on_gpu = address, on_gpu
        self._note = note
        self._pixels = pixels
        self._options = options
        self._ways: list[HttpStream | RtspRelay | GstreamerConnection] = []
        self._cancelled = False

    def __iter__(self) -> Iterator[Picture]:
        try:
            yield from self._by_rtsp() if self._address.scheme.startswith("rtsp") else self._by_http()
        except av.error.FFmpegError as error:
            raise self._lost(error) from None  # FFmpeg's own error quotes the address

    def cancel(self) -> None:
        """End a read that waits, and the program that reads in our place, if one does."""
        self._cancelled = True
        for way in self._ways:
            way.cancel()

    def processes(self) -> Sequence[int]:
        """Those of the program that reads in our place, if one does."""
        return [process for way in self._ways if isinstance(way, GstreamerConnection) for process in way.processes()]

    def _through(self, way: Way) -> Way:
        self._ways.append(way)
        if self._cancelled:
            way.cancel()
        return way

    def _by_http(self) -> Iterator[Picture]:
        stream = self._through(HttpStream(self._address, self._options))
        try:
            stream.open()
            if stream.content_type.lower().startswith("multipart/") or stream.peek(2) == b"--":
                yield from self._motion_jpeg(Parts(stream, stream.content_type))
            else:
                options = {"protocol_whitelist": "none", "format_whitelist": _HTTP_FORMATS}
                with self._opened(stream, options) as container:
                    yield from self._pictures(container)
        except (av.error.FFmpegError, LostError, SourceError):
            if stream.problem is not None:
                raise stream.problem from None
            raise
        finally:
            stream.close()

    def _by_rtsp(self) -> Iterator[Picture]:
        from pipeline.sources.rtsp_relay import RtspRelay  # pictures over HTTP need not wait for it

        relay = self._through(RtspRelay(self._address, self._options))
        url = relay.open()
        try:
            with Prefetch(relay, 1, name="rtsp", join_s=_LEAVE_S) as carried:
                try:
                    if has_jetson_decoder() and not self._is_on_gpu:
                        yield from self._through(
                            GstreamerConnection(jetson_rtsp(url), self._address.name, (url,), pixels=self._pixels)
                        )
                        return
                    options = {
                        "protocol_whitelist": "rtsp,rtp,tcp",
                        "format_whitelist": "rtsp",
                        "rtsp_transport": "tcp",
                    }
                    with self._opened(url, options) as container:
                        yield from self._pictures(container)
                except (av.error.FFmpegError, LostError, SourceError):
                    with suppress(queue.Empty):
                        carried.within(_LEAVE_S)  # it may still have to say why
                    if relay.problem is not None:
                        raise relay.problem from None
                    raise
                finally:
                    relay.cancel()
        finally:
            relay.close()

    def _opened(self, where: str | HttpStream, own: dict[str, str]) -> av.container.InputContainer:
        address, options = self._address, self._options
        choices = {
            **own,
            "max_pixels": str(MAX_PIXELS),
            "max_streams": "16",  # a header may claim a table for each
            "fpsprobesize": "0",  # else the first second is spent on finding out the rate
            "analyzeduration": "2000000",
        }
        started_s = time.monotonic()
        try:
            with limited_blocks():
                container = av.open(
                    where,
                    "r",
                    options=choices,
                    timeout=(options.connect_s, options.read_s),
                    hwaccel=self._decoder(),
                )
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

    def _motion_jpeg(self, parts: Parts) -> Iterator[Picture]:
        if self._is_on_gpu:
            raise SourceError(
                f"{self._address.name}: --decode cuda: expected H.264, H.265 or another video, got single pictures (Motion JPEG): "
                "leave --decode cuda out"
            )
        context, is_first, to_pixels = _mjpeg(MAX_PIXELS), True, ToPixels(self._pixels, note=self._note)
        for part in parts:
            try:
                pictures = context.decode(av.Packet(part))
            except av.error.FFmpegError:
                yield Picture(None, corrupt=True)
                continue
            for decoded in pictures:
                if is_first:
                    context, is_first = _mjpeg(_later_pixels(decoded.height * decoded.width)), False
                pixels, kind, aspect, _ = to_pixels(decoded)
                yield Picture(pixels, None, decoded.is_corrupt, kind, sample_aspect=aspect)

    def _pictures(self, container: av.container.InputContainer) -> Iterator[Picture]:
        stream = film_of(container)
        assert stream is not None  # it was checked
        context = stream.codec_context
        context.options = {"max_pixels": str(_later_pixels(stream.height * stream.width))}
        context.flags |= Flags.unaligned  # or FFmpeg leaves some of the columns that are to be cropped on the left
        context.thread_type = "SLICE"  # threads that take a frame each would give every frame that much later
        if self._is_on_gpu:
            context.thread_count = 1
        if container.format.name == "rtsp" and context.name == "h264":
            # Some servers repeat the headers between a picture's slices, which then come as packets of their own: without this
            # each would become a picture, half of it green, that is not even marked as damaged.
            context.flags2 |= Flags2.chunks
        timed = container.format.name not in _WITHOUT_TIMES
        to_pixels, life = self._to_pixels(stream), LifeSigns()
        for packet in container.demux(stream):
            if not packet.size and packet.pts is not None:
                continue  # "the same picture again", which the decoder would take for the end
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                yield Picture(None, corrupt=True)
                continue
            for decoded in pictures:
                pts_s = None
                if timed and decoded.pts is not None and decoded.time_base is not None:
                    pts_s = float(decoded.pts * decoded.time_base)
                pixels, kind, aspect, device = to_pixels(decoded)
                yield Picture(pixels, pts_s, decoded.is_corrupt, kind, sample_aspect=aspect, device=device)
            if life.due() and not pictures:
                yield Picture(None)

    def _decoder(self) -> HWAccel | None:
        if not self._is_on_gpu:
            return None
        from pipeline.sources.nvdec import on_gpu

        return on_gpu()

    def _to_pixels(self, stream: av.VideoStream) -> Callable[[av.VideoFrame], Decoded]:
        aspect = pixel_shape(stream.sample_aspect_ratio)
        if not self._is_on_gpu:
            return ToPixels(self._pixels, aspect, self._note)
        from pipeline.sources.nvdec import ToDevice

        return ToDevice(self._address.name, stream.codec_context.name, self._pixels, aspect, self._note)

    def _lost(self, error: Exception, waited_s: float = 0.0) -> LostError:
        text = reason(error)
        if isinstance(error, av.error.ExitError) or waited_s >= self._options.connect_s:
            text = "no answer in time"
        return LostError(redact(text, *self._address.secrets))


def _later_pixels(first: int) -> int:
    """How many pixels later pictures may claim: those of 8K, or some times those of the first where it was larger."""
    return min(MAX_PIXELS, max(_LATER_PIXELS, _GROWTH * first))


def _mjpeg(max_pixels: int) -> av.VideoCodecContext:
    context = av.CodecContext.create("mjpeg", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.options = {"max_pixels": str(max_pixels)}
    return context
