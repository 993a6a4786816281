"""Pictures that NVIDIA's decoder (NVDEC) leaves in the GPU's memory, through FFmpeg and PyAV.

It has not run on a GPU yet: it is written against PyAV's interface and FFmpeg's source, and tested without one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import av
import av.error
import numpy as np
from av.codec.hwaccel import HWAccel

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.frames.frame import Image
from pipeline.frames.on_device import OnDevice, Plane
from pipeline.frames.pixels import Pixels
from pipeline.sources.decoded import Decoded, ToPixels, reason
from pipeline.sources.display import SQUARE

OPTION = "--decode cuda"


@functools.cache
def require_gpu() -> None:
    """Have FFmpeg find the first GPU, and keep it for the process.

    To be called before anything else uses CUDA: FFmpeg takes the device's primary context, which engines share, only if its flags are
    those that FFmpeg sets, and they stay what they were when the context was first used.

    Raises:
        BackendUnavailableError: there is no GPU or no driver, or something has used it before.
    """
    try:
        _KEPT.append(_accelerator().create(av.Codec("h264", "r")))
    except (av.error.FFmpegError, NotImplementedError) as error:
        raise BackendUnavailableError(
            f"{OPTION}: expected an NVIDIA GPU with its driver, and nothing that used it before in this process, got none "
            f"({reason(error)}): python -m pipeline.doctor says what is missing; or leave {OPTION} out"
        ) from error


_KEPT: list[HWAccel] = []


def _accelerator() -> HWAccel:
    # Where NVDEC cannot decode a stream FFmpeg itself does, so that its first picture says what it is.
    return HWAccel("cuda", allow_software_fallback=True, is_hw_owned=True)


def on_gpu() -> HWAccel:
    """What `av.open` takes, so that pictures are decoded on the GPU and stay there.

    Raises:
        BackendUnavailableError: see `require_gpu`.
    """
    require_gpu()
    return _accelerator()


class ToDevice:
    """Decoded pictures to those of frames, on the GPU where they lie there; for one thread.

    Later pictures that are none which a program of NV12 takes as they lie are converted on the CPU, and so are all where the engine
    that takes them is for BGR.

    Args:
        name: the source's, for messages.
        codec: FFmpeg's name of it.
        pixels: what they become.
        sample_aspect: the shape of a stored pixel, width to height.
        note: told in a sentence what of a picture is not kept, and why one does not stay on the GPU.
    """

    def __init__(
        self,
        name: str,
        codec: str,
        pixels: Pixels = "nv12",
        sample_aspect: Fraction = SQUARE,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._name, self._codec, self._pixels, self._note = name, codec, pixels, note
        self._to_pixels = ToPixels(pixels, sample_aspect, note)
        self._is_first = True

    def __call__(self, decoded: av.VideoFrame) -> Decoded:
        """One picture, upright.

        Raises:
            SourceError: of the first one alone: NVDEC does not decode it, or what it gives is not as programs of NV12 take it.
        """
        problem = self._problem(decoded)
        if problem and self._is_first:
            raise SourceError(
                f"{self._name}: {OPTION}: expected a video that NVDEC decodes to NV12 by BT.709 in limited range, upright, "
                f"progressive, with even sides, got {problem}: leave {OPTION} out"
            )
        self._is_first = False
        if not problem and self._pixels == "nv12":
            return self._to_pixels.at_rest(decoded, _on_device(decoded))
        if problem:
            self._note(f"{OPTION}: {problem}: converted on the CPU")
        return self._to_pixels(_downloaded(decoded))

    def _problem(self, decoded: av.VideoFrame) -> str:
        """Why a picture is none on the GPU that a program of NV12 takes as it lies, as what was got; empty if it is one."""
        stored = decoded.sw_format
        if stored is None:  # it is in the host's memory: FFmpeg has decoded it itself
            return f"{self._codec} in {decoded.format.name}, which NVDEC does not decode"
        if stored.name != "nv12":
            return f"{self._codec} in {stored.name}"
        if decoded.interlaced_frame:
            return "interlaced pictures"
        if decoded.height % 2 or decoded.width % 2:
            return f"pictures of {decoded.width}×{decoded.height}"
        return self._to_pixels.unlike_nv12(decoded)


def _on_device(decoded: av.VideoFrame) -> OnDevice:
    luma, chroma = (Plane(plane.buffer_ptr, plane.line_size) for plane in decoded.planes)
    size_hw = decoded.height, decoded.width
    return OnDevice(luma, chroma, size_hw, functools.partial(_to_host, decoded), decoded)


def _downloaded(decoded: av.VideoFrame) -> av.VideoFrame:
    """The picture in the host's memory as FFmpeg's own decoder gives it, with its times and colors."""
    if decoded.sw_format is None:
        return decoded
    # FFmpeg makes BGR of planes in another way than of NV12, and the first is what a run without a GPU has.
    return decoded.reformat(format="yuv420p" if decoded.sw_format.name == "nv12" else decoded.sw_format.name)


def _to_host(decoded: av.VideoFrame) -> Image:
    return np.ascontiguousarray(decoded.reformat(format="nv12").to_ndarray(), np.uint8)
