"""What FFmpeg decoded, as frames: colors and turns, for files and streams alike."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import av
import av.error
import cv2
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from pipeline.frames.frame import Image
from pipeline.frames.pixels import Pixels
from pipeline.sources.display import SQUARE, UPRIGHT, Orientation, orientation_of

MAX_PIXELS = 1 << 27
# Pictures after which their orientation is looked up again, although size, format and angle are the same: a mirror may be new.
_ORIENTATION_EVERY = 50
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_WIDE = {int(ColorPrimaries.BT2020): "BT.2020", int(ColorPrimaries.SMPTE431): "P3", int(ColorPrimaries.SMPTE432): "P3"}


class Decoded(NamedTuple):
    """A decoded picture, upright; owned by the receiver.

    Attributes:
        pixels: (H, W, 3) uint8, BGR, or (H·3/2, W) uint8, NV12; contiguous; of BT.709's colors.
        format: which of the two.
        sample_aspect: the shape of a pixel, width to height.
    """

    pixels: Image
    format: Pixels
    sample_aspect: Fraction


class ToPixels:
    """Decoded pictures to those of frames; keeps what it prepared for the last size and format. For one thread.

    Args:
        pixels: what they become; pictures with an odd side, and turned or mirrored ones, become BGR all the same.
        sample_aspect: the shape of a stored pixel, width to height.
        note: told in a sentence what of a picture is not kept.
    """

    def __init__(
        self, pixels: Pixels = "bgr", sample_aspect: Fraction = SQUARE, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self._pixels = pixels
        self._sample_aspect = sample_aspect
        self._note = note
        self._reformatter = VideoReformatter()
        self._told_format = ""
        self._oriented: tuple[tuple[object, ...], Orientation] = (), UPRIGHT
        self._orientation_due = 0
        self._tone_mapping: tuple[tuple[object, ...], Graph] | None = None

    def __call__(self, decoded: av.VideoFrame) -> Decoded:
        """One picture, upright."""
        self._tell(decoded)
        decoded = self._narrowed(decoded)
        # FFmpeg converts by BT.601 when a stream names no matrix; players take BT.709 for HD, and its writers mean it.
        guess = Colorspace.ITU709 if decoded.colorspace == _UNSPECIFIED and decoded.height >= 720 else None
        orientation = self._orientation(decoded)
        aspect = orientation.aspect(self._sample_aspect)
        if orientation.lost_degrees:
            self._note(f"turned by {orientation.lost_degrees:.0f}° beside quarter turns, which is left out")
        if self._pixels == "nv12" and orientation.is_upright and not (decoded.height % 2 or decoded.width % 2):
            if _is_plain(decoded, guess):
                return Decoded(_as_nv12(decoded), "nv12", aspect)
            converted = self._reformatter.reformat(
                decoded,
                format="nv12",
                src_colorspace=guess,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            return Decoded(np.asarray(converted.to_ndarray(), np.uint8), "nv12", aspect)
        image = self._reformatter.reformat(decoded, format="bgr24", src_colorspace=guess).to_ndarray()
        return Decoded(np.ascontiguousarray(orientation.upright(np.asarray(image, np.uint8))), "bgr", aspect)

    def _orientation(self, decoded: av.VideoFrame) -> Orientation:
        """How a picture is to be shown, looked up again where something has changed, and from time to time.

        PyAV ties a picture whose side data were looked at to itself: it stays in memory until Python looks for such circles, and with
        it dozens before it.
        """
        key = (decoded.width, decoded.height, decoded.format.name, decoded.rotation)
        if key != self._oriented[0] or self._orientation_due == 0:
            self._oriented, self._orientation_due = (key, orientation_of(decoded)), _ORIENTATION_EVERY
        self._orientation_due -= 1
        return self._oriented[1]

    def _tell(self, decoded: av.VideoFrame) -> None:
        if decoded.interlaced_frame:
            self._note(
                "interlaced: the two fields of a frame are left woven (ffmpeg -i IN -vf bwdif OUT separates them)"
            )
        if decoded.format.name == self._told_format:  # asked of each picture, which a fast video notices
            return
        self._told_format = decoded.format.name
        bits = max((component.bits for component in decoded.format.components), default=8)
        if bits > 8:
            self._note(f"{bits} bits a color: made 8")
        if decoded.format.components and any(component.is_alpha for component in decoded.format.components):
            self._note("transparent in part (alpha), which is left out")

    def _narrowed(self, decoded: av.VideoFrame) -> av.VideoFrame:
        """A picture of high dynamic range or wide colors in those of BT.709, by FFmpeg's own tone mapping; others as they are."""
        high, wide = _HDR.get(int(decoded.color_trc)), _WIDE.get(int(decoded.color_primaries))
        if high is None and wide is None:
            return decoded
        what = f"high dynamic range ({high})" if high else f"wide colors ({wide})"
        key = (decoded.width, decoded.height, decoded.format.name, high, wide)
        try:
            if self._tone_mapping is None or self._tone_mapping[0] != key:
                self._tone_mapping = key, _tone_mapping(decoded)
            graph = self._tone_mapping[1]
            graph.push(decoded)
            narrowed = graph.pull()
        except (av.error.FFmpegError, ValueError) as error:  # FFmpeg before 7.1 cannot
            self._note(
                f"{what}: shown as it is, for this FFmpeg does not convert it ({reason(error)}): pip install -U av"
            )
            return decoded
        assert isinstance(narrowed, av.VideoFrame)
        self._note(f"{what}: brought to BT.709")
        return narrowed


def _tone_mapping(decoded: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=decoded.width, height=decoded.height, format=decoded.format, time_base=Fraction(1, 90_000)
    )
    scale = graph.add(
        "scale", "out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:out_range=full:intent=perceptual"
    )
    graph.link_nodes(source, scale, graph.add("format", "bgr24"), graph.add("buffersink")).configure()
    return graph


def _is_plain(decoded: av.VideoFrame, guess: Colorspace | None) -> bool:
    """Whether its values are those of programs: BT.709 in limited range, in planes or as NV12."""
    is_bt709 = guess is Colorspace.ITU709 or decoded.colorspace == Colorspace.ITU709
    return decoded.format.name in ("yuv420p", "nv12") and is_bt709 and decoded.color_range != _FULL_RANGE


def _as_nv12(decoded: av.VideoFrame) -> Image:
    """What is in planes as NV12. FFmpeg's converter takes three times as long as to BGR."""
    height, width = decoded.height, decoded.width
    nv12 = np.empty((height * 3 // 2, width), np.uint8)
    luma, *chroma = (np.asarray(memoryview(plane)).reshape(-1, plane.line_size) for plane in decoded.planes)
    nv12[:height] = luma[:height, :width]
    if len(chroma) == 1:
        nv12[height:] = chroma[0][: height // 2, :width]
    else:
        halves = [plane[: height // 2, : width // 2] for plane in chroma]
        cv2.merge(halves, dst=nv12[height:].reshape(height // 2, width // 2, 2))
    return nv12


def reason(error: Exception) -> str:
    """What FFmpeg says of an error, without the address or path, in the form in which messages quote it."""
    return str(getattr(error, "strerror", None) or error).lower()
