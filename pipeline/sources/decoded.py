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
from pipeline.frames.on_device import OnDevice
from pipeline.frames.pixels import Pixels
from pipeline.sources.display import SQUARE, UPRIGHT, Orientation, orientation_of

MAX_PIXELS = 1 << 27
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_TONES = {int(ColorTrc.IEC61966_2_1): "iec61966-2-1", int(ColorTrc.GAMMA22): "bt470m", int(ColorTrc.GAMMA28): "bt470bg"}
_WIDE = {int(ColorPrimaries.BT2020): "BT.2020", int(ColorPrimaries.SMPTE431): "P3", int(ColorPrimaries.SMPTE432): "P3"}
# What comes with pictures and no output gets: FFmpeg's name of it, and what is told.
_BESIDE = {
    "A53_CC": "closed captions: left out",
    "S12M_TIMECODE": "a timecode with each picture: left out",
    "STEREO3D": "two eyes' pictures in one: left as they are",
    "SPHERICAL": "a picture of all around (360°): left as it is",
}

# A display matrix is read at least each so many pictures: see ``ToPixels._oriented``.
_MATRIX_EACH = 32


class Decoded(NamedTuple):
    """A decoded picture, upright; owned by the receiver.

    Attributes:
        pixels: (H, W, 3) uint8, BGR, or (H·3/2, W) uint8, NV12; contiguous; of BT.709's colors.
        format: which of the two.
        sample_aspect: the shape of a pixel, width to height.
        device: where the picture lies on a GPU; then ``pixels`` stand for it alone. See ``Frame.device``.
    """

    pixels: Image
    format: Pixels
    sample_aspect: Fraction
    device: OnDevice | None = None


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
        self._tone_mapping: tuple[tuple[object, ...], Graph] | None = None
        self._orientation = UPRIGHT
        self._oriented_by: tuple[int, int, int] | None = None
        self._pictures = 0

    def __call__(self, decoded: av.VideoFrame) -> Decoded:
        """One picture, upright."""
        self.tell(decoded)
        decoded = self._narrowed(decoded)
        guess = _guess(decoded)
        orientation = self._oriented(decoded)
        aspect = orientation.aspect(self._sample_aspect)
        if orientation.lost_degrees:
            self._note(f"turned by {orientation.lost_degrees:.0f}° beside quarter turns, which is left out")
        if self._pixels == "nv12" and orientation.is_upright and not (decoded.height % 2 or decoded.width % 2):
            if decoded.format.name in ("yuv420p", "nv12") and _is_plain(decoded):
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

    def at_rest(self, decoded: av.VideoFrame, picture: OnDevice) -> Decoded:
        """A picture of which `unlike_nv12` says nothing, where it lies on a GPU."""
        self.tell(decoded)
        return Decoded(picture.placeholder, "nv12", self._sample_aspect, picture)

    def unlike_nv12(self, decoded: av.VideoFrame) -> str:
        """Why a picture must be converted though it is stored as NV12, as a message says what it got; empty: it need not be."""
        if not self._oriented(decoded).is_upright:
            return "turned or mirrored pictures"
        if int(decoded.color_trc) in _HDR or int(decoded.color_primaries) in _WIDE:
            return "high dynamic range or wide colors"
        if decoded.color_range == _FULL_RANGE:
            return "pictures in full range"
        return "" if _is_plain(decoded) else "pictures of other colors than BT.709's"

    def _oriented(self, decoded: av.VideoFrame) -> Orientation:
        """How the picture becomes upright, read anew where its angle or size changes, and now and then.

        Not for each picture: PyAV's side data and its picture refer to each other, so that the picture's memory is held until the
        garbage collector comes, and the decoder takes fresh pages for the next ones.
        """
        looks = (decoded.rotation, decoded.width, decoded.height)
        if looks != self._oriented_by or self._pictures % _MATRIX_EACH == 0:
            self._orientation, self._oriented_by = orientation_of(decoded), looks
        self._pictures += 1
        return self._orientation

    def tell(self, decoded: av.VideoFrame) -> None:
        """Note what of a picture is not kept."""
        if decoded.interlaced_frame:  # of files they are separated before
            self._note("interlaced: the two fields of a frame are left woven")
        if decoded.format.name == self._told_format:  # asked of each picture, which a fast video notices
            return
        self._told_format = decoded.format.name
        bits = max((component.bits for component in decoded.format.components), default=8)
        if bits > 8:
            self._note(f"{bits} bits a color: made 8")
        if decoded.format.components and any(component.is_alpha for component in decoded.format.components):
            self._note("transparent in part (alpha), which is left out")
        for kind, sentence in _BESIDE.items():
            if decoded.side_data.get(kind) is not None:
                self._note(sentence)

    def _narrowed(self, decoded: av.VideoFrame) -> av.VideoFrame:
        """A picture of high dynamic range or wide colors in those of BT.709, by FFmpeg's own tone mapping; others as they are."""
        high, wide = _HDR.get(int(decoded.color_trc)), _WIDE.get(int(decoded.color_primaries))
        if high is None and wide is None:
            return decoded
        what = f"high dynamic range ({high})" if high else f"wide colors ({wide})"
        key = (decoded.width, decoded.height, decoded.format.name, int(decoded.color_trc), wide)
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
    # Where only the colors are wide, the tones stay as they are.
    transfer = _TONES.get(int(decoded.color_trc), "bt709")
    scale = graph.add(
        "scale", f"out_primaries=bt709:out_transfer={transfer}:out_color_matrix=bt709:out_range=full:intent=perceptual"
    )
    graph.link_nodes(source, scale, graph.add("format", "bgr24"), graph.add("buffersink")).configure()
    return graph


def _guess(decoded: av.VideoFrame) -> Colorspace | None:
    """The matrix of a picture that names none; None: as FFmpeg takes it."""
    # FFmpeg converts by BT.601 when a stream names no matrix; players take BT.709 for HD, and its writers mean it.
    return Colorspace.ITU709 if decoded.colorspace == _UNSPECIFIED and decoded.height >= 720 else None


def _is_plain(decoded: av.VideoFrame) -> bool:
    """Whether its values are those of programs: BT.709 in limited range."""
    is_bt709 = _guess(decoded) is Colorspace.ITU709 or decoded.colorspace == Colorspace.ITU709
    return is_bt709 and decoded.color_range != _FULL_RANGE


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
