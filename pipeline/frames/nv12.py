"""NV12, as decoders give pictures, from and to BGR: by BT.709 in limited range, with FFmpeg's own converter."""

from __future__ import annotations

import threading

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.errors import ShapeError
from pipeline.frames.frame import Image, describe
from pipeline.frames.pixels import frames_nhw


class _Converters(threading.local):
    """A converter keeps what it prepared for the last size and format, and is for one thread."""

    def __init__(self) -> None:
        self.to_nv12, self.to_bgr = VideoReformatter(), VideoReformatter()


_converters = _Converters()


def to_nv12(image_hwc: Image) -> Image:
    """One picture as NV12.

    Args:
        image_hwc: (H, W, 3) uint8 BGR, H and W even.

    Returns:
        (H·3/2, W) uint8, contiguous. Owned by the caller.

    Raises:
        ShapeError: it is no such picture.
    """
    fits = image_hwc.ndim == 3 and image_hwc.shape[2] == 3 and image_hwc.dtype == np.uint8 and image_hwc.size > 0
    if not fits or image_hwc.shape[0] % 2 or image_hwc.shape[1] % 2:
        raise ShapeError(f"to NV12: expected (H, W, 3) uint8 with even H and W, got {describe(image_hwc)}")
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_hwc), format="bgr24")
    converted = _converters.to_nv12.reformat(
        picture, format="nv12", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
    return np.ascontiguousarray(converted.to_ndarray(), np.uint8)


def to_bgr(nv12: Image) -> Image:
    """One picture of NV12 as BGR, as a video's frame of the same values becomes BGR.

    Args:
        nv12: (H·3/2, W) uint8, H and W even.

    Returns:
        (H, W, 3) uint8 BGR, contiguous. Owned by the caller.

    Raises:
        ShapeError: it is no such picture.
    """
    nhw = frames_nhw("nv12", (1, *nv12.shape))
    if nhw is None or nv12.dtype != np.uint8 or nv12.size == 0:
        raise ShapeError(f"from NV12: expected (H·3/2, W) uint8 with even H and W, got {describe(nv12)}")
    height, width = nhw[1:]
    # FFmpeg's short way to BGR starts from planes; from NV12 it takes three times as long.
    planes = np.empty(nv12.shape, np.uint8)
    planes[:height] = nv12[:height]
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    chroma[0], chroma[1] = nv12[height:, 0::2], nv12[height:, 1::2]
    converted = _converters.to_bgr.reformat(
        av.VideoFrame.from_ndarray(planes, format="yuv420p"),
        format="bgr24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
    )
    return np.ascontiguousarray(converted.to_ndarray(), np.uint8)
