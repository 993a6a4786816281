"""Pictures into a file or an address by FFmpeg's libraries, and which encoder of H.264 this machine has."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import av
import av.error
import cv2
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.errors import SinkError
from pipeline.frames.frame import Image, SourceInfo
from pipeline.frames.on_device import OnDevice
from pipeline.sinks.beside import Beside

if TYPE_CHECKING:
    from pipeline.sinks.nvenc import PicturesOnGpu

_BT709 = 1  # FFmpeg's number for the matrix, the primaries and the transfer function alike
# FFmpeg's bilinear with exact rounding and chroma of every pixel: its default darkens a picture by two levels of 255. PyAV names
# these flags from version 18 on.
EXACT_BILINEAR = 0x2 | 0x40000 | 0x4000
_PICTURES_PER_S = Fraction(1)  # a video made of pictures shows each for a second
_LIVE_FPS = Fraction(30)  # of a camera that does not tell
_MAX_LIVE_FPS = 240  # some cameras announce the clock of their time stamps
_LIVE_TIME_BASE = Fraction(1, 90_000)
_KEYFRAME_EVERY_S = 1.0
_TRIAL_FRAMES = 3

# Closed groups without B-frames and without lookahead: every picture leaves the encoder when it came in, and the next second can
# be played without the one before it.
_X264 = {"preset": "veryfast", "crf": "20"}
_X264_LIVE = {**_X264, "tune": "zerolatency", "forced-idr": "1"}
_NVENC_NAME = "h264_nvenc"
_NVENC = {"preset": "p4", "rc": "vbr", "cq": "21", "b": "0", "bf": "0"}
_NVENC_LIVE = {**_NVENC, "tune": "ll", "zerolatency": "1", "delay": "0", "forced-idr": "1"}

Error = (av.error.FFmpegError, OSError)
"""What FFmpeg's libraries raise when a picture cannot be written; `reason` words it."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of FFmpeg with its settings.

    Attributes:
        name: as FFmpeg calls it.
        options: as FFmpeg spells them.
        description: for the user.
        pix_fmt: of what is encoded, in FFmpeg's words.
    """

    name: str
    options: Mapping[str, str]
    description: str
    pix_fmt: str = "yuv420p"


def choose_encoder(wanted: str, size_hw: tuple[int, int], *, live: bool) -> Encoder:
    """The encoder for pictures of a size.

    Args:
        wanted: "nvenc", "x264", or "auto": NVENC where a few pictures of this size go through it.
        size_hw: height and width in pixels, both even.
        live: every picture must come out at once.

    Raises:
        SinkError: NVENC was asked for and does not work.
    """
    if wanted != "x264":
        problem = _nvenc_problem(size_hw, live)
        if not problem:
            return Encoder(_NVENC_NAME, _NVENC_LIVE if live else _NVENC, "H.264 by the GPU (NVENC)")
        if wanted == "nvenc":
            raise SinkError(f"--encoder nvenc: expected a GPU that encodes H.264, got: {problem}: use --encoder auto")
    return Encoder("libx264", _X264_LIVE if live else _X264, "H.264 by the CPU (x264)")


def encodes_on_gpu(wanted: str, size_hw: tuple[int, int] | None, *, live: bool) -> bool:
    """Whether views that lie on a GPU are encoded there, as far as it is known before the first: NVENC takes them from its memory.

    Args:
        wanted: as in `choose_encoder`.
        size_hw: of the views, both even; None: nobody knows.
        live: as in `choose_encoder`.
    """
    from pipeline.sinks.nvenc import encodes_from_gpu  # as few runs need it

    return wanted != "x264" and size_hw is not None and encodes_from_gpu() and not _nvenc_problem(size_hw, live)


Picture: TypeAlias = "Image | OnDevice | av.VideoFrame"
"""What is encoded: (H, W, 3) uint8 BGR, (H, W, 4) with opacity or (H, W) gray; or NV12, on the GPU or as FFmpeg has it."""


def picture_of(view: Image | OnDevice) -> Picture:
    """A view as it lies in a frame, BGR or NV12, for `Muxer.write`; it must stay what it is."""
    if isinstance(view, OnDevice) or view.ndim == 3:
        return view
    return _of_nv12(view)


def size_of(picture: Picture) -> tuple[int, int]:
    """Height and width in pixels."""
    if isinstance(picture, OnDevice):
        return picture.size_hw
    if isinstance(picture, av.VideoFrame):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]


class Writable(Protocol):
    """What a container may be written to, piece by piece."""

    def write(self, piece: bytes, /) -> int:
        """Take all of a piece."""


class Muxer:
    """One stream of pictures in one container, begun with its first picture.

    Errors come as FFmpeg's libraries raise them (`Error`), so that each output can say what they mean for it.

    Args:
        target: a path after "file:", or what has ``write``.
        info: the source; gives frame rate and unit of time.
        live: no picture waits in the encoder, and each second begins with a keyframe.
        wanted: the encoder, or which of H.264 as in `choose_encoder`.
        beside: what comes into a file beside its pictures.
        container_format: FFmpeg's name of it; None: told by the target's suffix.
        options: of the container.

    Attributes:
        size_hw: of the pictures in it; None before the first.
        description: what encodes, for the user; empty before the first picture.
    """

    def __init__(
        self,
        target: str | Writable,
        info: SourceInfo,
        *,
        live: bool,
        wanted: str | Encoder = "auto",
        beside: Beside | None = None,
        container_format: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.size_hw: tuple[int, int] | None = None
        self.description = ""
        self._live = live
        self._wanted, self._beside = wanted, beside
        self._fps = info.fps or (_LIVE_FPS if info.live else _PICTURES_PER_S)
        self._time_base = info.time_base
        if live:
            self._fps = self._fps if 0 < self._fps <= _MAX_LIVE_FPS else _LIVE_FPS
            self._time_base = _LIVE_TIME_BASE
        self._last_pts = -1
        self._keyframe_due_s = 0.0
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._container = av.open(target, "w", format=container_format, options=dict(options or {}))
        # The last, for attributes go in their order: PyAV ends the encoder with the container, and then goes the memory that it knows.
        self._on_gpu: PicturesOnGpu | None = None

    def add_comment(self, comment: str) -> None:
        """Let the container carry a comment; before the first picture."""
        self._container.metadata["comment"] = comment

    def write(self, view: Picture, pts_s: float, sample_aspect: Fraction = Fraction(1)) -> None:
        """Encode a picture.

        Args:
            view: as the encoder takes it; one of another size than the first is scaled into it. One on the GPU is kept until it is
                encoded, no other.
            pts_s: its time stamp; moved forward where it does not increase.
            sample_aspect: the shape of its pixels, width to height; the first picture's is that of the stream.
        """
        if isinstance(view, np.ndarray) and (isinstance(self._wanted, str) or "420" in self._wanted.pix_fmt):
            view = even(view)
        stream = self._stream or self._start(view, sample_aspect)
        picture = self._as_encoded(view, stream)
        # Players refuse time that stands still or runs backward; a source's rounding must not stop the recording.
        self._last_pts = max(round(pts_s / self._time_base), self._last_pts + 1)
        picture.pts, picture.time_base = self._last_pts, self._time_base
        if self._live:
            now_s = float(self._last_pts * self._time_base)
            is_due = now_s >= self._keyframe_due_s - 1e-4  # the rate of a camera is a mean: time decides
            picture.pict_type = PictureType.I if is_due else PictureType.NONE
            if is_due:
                self._keyframe_due_s = now_s + _KEYFRAME_EVERY_S
        # With no line of Python between encoder and file, where a signal that ends the run would lose a packet.
        deque(map(self._container.mux, map(stream.encode, (picture,))), 0)

    def _as_encoded(self, view: Picture, stream: av.VideoStream) -> av.VideoFrame:
        size_hw = stream.height, stream.width
        if isinstance(view, OnDevice):
            if self._on_gpu is not None and view.size_hw == size_hw:
                return self._on_gpu(view)
            view = _of_nv12(view.to_host())
        # What does not lie on the GPU while others do is uploaded by PyAV, which converts no colors then.
        pix_fmt = "nv12" if self._on_gpu is not None else stream.pix_fmt
        if isinstance(view, np.ndarray):
            if view.ndim == 2:  # a mask, whose values are not to be mixed
                if view.shape != size_hw:
                    view = np.asarray(cv2.resize(view, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
                return av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="gray")
            kind = "bgra" if view.shape[2] == 4 else "bgr24"
            view = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format=kind)
        elif size_of(view) == size_hw and view.format.name == pix_fmt:
            return view
        return self._reformatter.reformat(
            view,
            width=stream.width,
            height=stream.height,
            format=pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT_BILINEAR,
        )

    def close(self) -> None:
        """Write what the encoder still holds, and the container's end."""
        if self._stream is not None:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self._container.close()

    def abandon(self) -> None:
        """Give everything back; what was written is not finished."""
        with contextlib.suppress(*Error):
            self._container.close()

    def _start(self, first: Picture, sample_aspect: Fraction) -> av.VideoStream:
        encoder, size_hw = self._wanted, size_of(first)
        if isinstance(encoder, str):
            encoder = self._for_nv12(choose_encoder(encoder, size_hw, live=self._live), first)
        try:
            added = self._container.add_stream(encoder.name, rate=self._fps, options=dict(encoder.options))
        except ValueError as error:
            raise SinkError(
                f"this FFmpeg has no {encoder.name}: pip install av, or write a folder of pictures"
            ) from error
        stream = cast(av.VideoStream, added)
        stream.height, stream.width = size_hw
        stream.pix_fmt = encoder.pix_fmt
        stream.time_base = stream.codec_context.time_base = self._time_base
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = _BT709, _BT709, _BT709
        context.color_range = ColorRange.JPEG if encoder.pix_fmt == "gray" else ColorRange.MPEG
        if sample_aspect != 1:
            # The codec keeps 16 bits of each number, and some containers are written from the stream's alone.
            context.sample_aspect_ratio = sample_aspect.limit_denominator(1000)
        if self._live:
            context.gop_size = max(1, round(self._fps * Fraction(_KEYFRAME_EVERY_S)))
        if self._beside is not None:
            self._beside.add_to(self._container)
        self._stream, self.size_hw, self.description = stream, size_hw, encoder.description
        return stream

    def _for_nv12(self, encoder: Encoder, first: Picture) -> Encoder:
        """The encoder of H.264, which takes NV12 as it lies where the first picture is in NV12."""
        if isinstance(first, np.ndarray):
            return encoder
        if isinstance(first, OnDevice) and first.memory is not None and encoder.name == _NVENC_NAME:
            from pipeline.sinks.nvenc import PicturesOnGpu, encodes_from_gpu

            if encodes_from_gpu():
                self._on_gpu = PicturesOnGpu()
                return replace(
                    encoder, pix_fmt="cuda", description="H.264 by the GPU (NVENC), from the GPU's own memory"
                )
        return replace(encoder, pix_fmt="nv12")


def _of_nv12(nv12: Image) -> av.VideoFrame:
    picture = av.VideoFrame.from_numpy_buffer(nv12, format="nv12")
    picture.colorspace, picture.color_range = Colorspace.ITU709, ColorRange.MPEG
    return picture


def even(view: Image) -> Image:
    """The picture, row after row in memory, its last row or column repeated where the size is odd: 4:2:0 has no half pixels."""
    height, width = view.shape[:2]
    if height % 2 or width % 2:
        return np.pad(view, ((0, height % 2), (0, width % 2), (0, 0))[: view.ndim], mode="edge")
    return np.ascontiguousarray(view)


def reason(error: Exception) -> str:
    """Why FFmpeg or the system refused, in lower case and without the name of file or address, which may hold a password."""
    return str(getattr(error, "strerror", None) or error).lower()


@lru_cache(maxsize=32)
def _nvenc_problem(size_hw: tuple[int, int], live: bool) -> str:
    """Why pictures of this size cannot go through NVENC; empty where they can.

    That FFmpeg knows the encoder says nothing: a driver, a GPU and a free session belong to it, and it has its own smallest size.
    """
    try:
        context = av.CodecContext.create(_NVENC_NAME, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width = size_hw
        context.pix_fmt = "yuv420p"
        context.time_base, context.framerate = _LIVE_TIME_BASE, _LIVE_FPS
        context.options = dict(_NVENC_LIVE if live else _NVENC)
        picture = av.VideoFrame.from_ndarray(np.full((*size_hw, 3), 128, np.uint8), format="bgr24").reformat(
            format="yuv420p"
        )
        packets = 0
        for number in range(_TRIAL_FRAMES):
            picture.pts, picture.time_base = 3000 * number, _LIVE_TIME_BASE
            packets += len(context.encode(picture))
        packets += len(context.encode(None))
    except (ValueError, *Error) as error:  # a ValueError where FFmpeg was built without it
        return reason(error)
    return "" if packets == _TRIAL_FRAMES else f"{packets} of {_TRIAL_FRAMES} pictures"
