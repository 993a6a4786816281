"""What FFmpeg decoded, as frames: colors and turns, for files and streams alike."""

from __future__ import annotations

from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.frames.frame import Image
from pipeline.frames.pixels import Pixels

MAX_PIXELS = 1 << 27
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG


class Decoded(NamedTuple):
    """A decoded picture, upright; owned by the receiver.

    Attributes:
        pixels: (H, W, 3) uint8, BGR, or (H·3/2, W) uint8, NV12; contiguous.
        format: which of the two.
    """

    pixels: Image
    format: Pixels


class ToPixels:
    """Decoded pictures to those of frames; keeps what it prepared for the last size and format. For one thread.

    Args:
        pixels: what they become; pictures with an odd side, and turned ones, become BGR all the same.
    """

    def __init__(self, pixels: Pixels = "bgr") -> None:
        self._pixels = pixels
        self._reformatter = VideoReformatter()

    def __call__(self, decoded: av.VideoFrame) -> Decoded:
        """One picture, upright."""
        # FFmpeg converts by BT.601 when a stream names no matrix; players take BT.709 for HD, and its writers mean it.
        guess = Colorspace.ITU709 if decoded.colorspace == _UNSPECIFIED and decoded.height >= 720 else None
        quarter_turns = round(decoded.rotation / 90) % 4
        if self._pixels == "nv12" and not (quarter_turns or decoded.height % 2 or decoded.width % 2):
            if _is_plain(decoded, guess):
                return Decoded(_as_nv12(decoded), "nv12")
            converted = self._reformatter.reformat(
                decoded,
                format="nv12",
                src_colorspace=guess,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            return Decoded(np.asarray(converted.to_ndarray(), np.uint8), "nv12")
        image = self._reformatter.reformat(decoded, format="bgr24", src_colorspace=guess).to_ndarray()
        upright = np.ascontiguousarray(np.rot90(image, quarter_turns) if quarter_turns else image, dtype=np.uint8)
        return Decoded(upright, "bgr")


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
