"""The one record that travels: a frame, and after the engine its mask and its rendered view."""

from __future__ import annotations

import time
from dataclasses import field
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.frames.on_device import FramesOnDevice, OnDevice
from pipeline.frames.pixels import Pixels, bands_of, expected, frames_nhw, input_type
from pipeline.quick_dataclass import dataclass

if TYPE_CHECKING:
    from pipeline.shapes.found import Found

Image = NDArray[np.uint8]


@dataclass(slots=True, repr=False)
class Frame:
    """One picture of a source, on its way to the outputs.

    Attributes:
        pixels: the picture as it was decoded, uint8 or uint16, as ``format`` says. Owned by the frame: a source never writes to it
            again, nor does any stage.
        index: position in the source, from 0; frames dropped on the way leave gaps.
        pts_s: presentation time in seconds from the start of the source.
        source: the source's name, for titles and messages.
        name: what a picture written from this frame is called, without suffix; may hold folders ("a/b").
        format: "bgr": ``pixels`` are (H, W, 3); "nv12": (H·3/2, W) with even H and W; "4x16": (H, W, 4), channels of so many bits as in
            the file, uint8 or uint16 (``pipeline.frames.pixels``).
        captured_ns: ``time.monotonic_ns()`` when the frame was complete.
        mask: (H, W) uint8 from the engine: probability × 255, or class index. None before the engine.
        view: (h, w, 3) uint8, BGR, what outputs show. None before rendering. One that an engine gave in NV12 is converted when it is
            first asked for (``take_view``).
        not_finite: how many of the network's scores, of which the mask was made, are NaN or infinite; 0 where nobody counts them.
        stale: the mask is not this picture's: of an earlier one, and this one has changed since; or empty, for no server was there.
        sample_aspect: the shape of a pixel as it is to be shown, width to height; 1 if it is square.
        shift_s: how much later ``pts_s`` is than the stamp in a video file, by which its sound is moved as well.
        alpha: (H, W) uint8, how opaque the source says the picture is, 255 where it is wholly; None: everywhere.
        found: what the mask says; None until an output asks for it (``pipeline.results.finder``).
        device: where the picture lies in a GPU's memory; then ``pixels`` are copied from there when they are first asked for, and this
            is None from then on. Made with ``device.placeholder`` as ``pixels``.
    """

    pixels: Image
    index: int
    pts_s: float
    source: str
    name: str
    format: Pixels = "bgr"
    captured_ns: int = field(default_factory=time.monotonic_ns)
    mask: Image | None = None
    view: Image | None = None
    not_finite: int = 0
    stale: bool = False
    sample_aspect: Fraction = Fraction(1)
    shift_s: float = 0.0
    alpha: Image | None = None
    found: Found | None = None
    device: OnDevice | None = None
    _bgr: Image | None = field(default=None, init=False)
    _drawn: Image | OnDevice | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        pixels = self.pixels
        bands = bands_of(self.format)
        stored = np.dtype(np.uint8) if bands is None else bands.stored
        if frames_nhw(self.format, (1, *pixels.shape)) is None or pixels.dtype != stored or pixels.size == 0:
            wanted = expected(self.format).replace("(N, ", "(").replace("int32", "uint16")
            raise ShapeError(
                f"frame {self.index} of {self.source}: expected {wanted}, got {describe(pixels)}{_remedy(pixels, self.format)}"
            )
        if self.device is not None:
            del self.pixels

    if not TYPE_CHECKING:  # else every name would be one of its attributes

        def __getattr__(self, name: str) -> Any:
            """``pixels`` of a picture that lies on a GPU, and ``view`` in NV12: no attributes until they are copied or converted."""
            device = self.device if name == "pixels" else None
            if device is not None:
                self.pixels = device.to_host()
                self.device = None
            drawn = self._drawn if name == "view" else None
            if drawn is not None:
                from pipeline.frames.nv12 import to_bgr  # FFmpeg, which not every run needs

                self.view = to_bgr(drawn.to_host() if isinstance(drawn, OnDevice) else drawn)
                self._drawn = None
            return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        where = " on the GPU" if self.device is not None else ""
        parts = [f"{self.source}#{self.index}", f"pts_s={self.pts_s:.3f}", f"pixels={describe(self._lying)}{where}"]
        lying = {"mask": self.mask, "view": self.lying_view}
        parts += [f"{key}={describe(value)}" for key, value in lying.items() if value is not None]
        return f"Frame({', '.join(parts)})"

    @property
    def _lying(self) -> Image | OnDevice:
        return self.device or self.pixels

    def take_view(self, view: Image | OnDevice | None) -> None:
        """Have the view that an engine gives.

        Args:
            view: (H, W, 3) uint8 BGR, or NV12: (H·3/2, W) uint8, or on the GPU; None: none.
        """
        if view is None or (not isinstance(view, OnDevice) and view.ndim == 3):
            self.view = view
            return
        del self.view
        self._drawn = view

    @property
    def lying_view(self) -> Image | OnDevice | None:
        """The view as it lies, for who takes NV12 too: as ``take_view`` got it, where nobody has asked for ``view`` or set it."""
        try:
            set_view: Image | None = object.__getattribute__(self, "view")
        except AttributeError:
            drawn = self._drawn
            return self.view if drawn is None else drawn  # another thread may just have asked for it
        return set_view

    @property
    def size_bytes(self) -> int:
        """What the picture takes, wherever it lies."""
        return self._lying.nbytes

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        nhw = frames_nhw(self.format, (1, *self._lying.shape))
        assert nhw is not None  # it was checked
        return nhw[1:]

    @property
    def image(self) -> Image:
        """(H, W, 3) uint8, BGR: ``pixels``, or converted when first asked for. Not to be written to.

        Of channels as in a file the first three, taken for red, green and blue, or the first alone; 16 bits are divided by the
        picture's largest value.
        """
        if self.format == "bgr":
            return self.pixels
        if self._bgr is None and self.format != "nv12":
            self._bgr = _shown(self.pixels)
        if self._bgr is None:
            from pipeline.frames.nv12 import to_bgr  # FFmpeg, which not every run needs

            self._bgr = to_bgr(self.pixels)
        return self._bgr

    @property
    def input_hwc(self) -> NDArray[Any]:
        """What a program takes that is not for NV12: (H, W, 3) uint8 BGR, or channels as in the file. Not to be written to."""
        return self.image if bands_of(self.format) is None else self.as_pixels(self.format)

    def as_pixels(self, kind: Pixels) -> Image:
        """The picture in the format that an engine takes, without a conversion where it is in that already.

        Raises:
            ShapeError: NV12, and a side is odd; or a picture of other channels than the engine takes.
        """
        if kind == self.format:
            return self.pixels.astype(input_type(kind), copy=False)
        own, wanted = bands_of(self.format), bands_of(kind)
        if own is not None or wanted is not None:
            raise ShapeError(
                f"frame {self.index} of {self.source}: expected {wanted or 'an ordinary picture'} as the network takes, "
                f"got {own or 'an ordinary picture'}: "
                + (
                    "give files of such channels (.tiff, .npy, .png)"
                    if wanted
                    else "give pictures, a video or a camera"
                )
            )
        if kind == "bgr":
            return self.image
        height, width = self.size_hw
        if height % 2 or width % 2:
            raise ShapeError(
                f"frame {self.index} of {self.source}: expected even sides, as NV12 has, got {height}×{width}: "
                "compile the bundle with --pixels bgr"
            )
        from pipeline.frames.nv12 import to_nv12

        return to_nv12(self.pixels)

    @property
    def age_ms(self) -> float:
        """Milliseconds since the frame was captured or decoded."""
        return (time.monotonic_ns() - self.captured_ns) / 1e6

    @property
    def captured_utc(self) -> str:
        """When the frame was captured or decoded, by the clock, UTC, as ISO 8601."""
        return f"{datetime.now(timezone.utc) - timedelta(milliseconds=self.age_ms):%Y-%m-%dT%H:%M:%S.%f}Z"


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What is known of a source before its first frame.

    Attributes:
        name: short name for titles and messages.
        description: one line for the user: format, size, rate.
        size_hw: (height, width) in pixels of the first frames; None when only the frames tell.
        fps: mean frame rate in Hz; None when there is none (pictures).
        time_base: the unit in which time stamps count, in seconds.
        frame_count: how many frames to expect; None when unknown or endless.
        live: frames come at their own time and cannot wait.
        paths: the local files that are read, so that no output overwrites them.
        left_out: what the source holds beside its pictures and no output gets, such as chapters, for one line; empty if nothing.
        beside: the sound and subtitles of its only file, which a video of it gets, for one line; empty if none.
    """

    name: str
    description: str
    size_hw: tuple[int, int] | None = None
    fps: Fraction | None = None
    time_base: Fraction = Fraction(1, 90_000)
    frame_count: int | None = None
    live: bool = False
    paths: tuple[str, ...] = ()
    left_out: str = ""
    beside: str = ""


def check_mask(what: str, image_hwc: Image, mask_hw: Image) -> None:
    """Refuse a frame and a mask that do not belong together.

    Args:
        what: who asks, for the message.
        image_hwc: expected (H, W, 3) uint8.
        mask_hw: expected (H, W) uint8.

    Raises:
        ShapeError: the two are not of one size, empty, or not uint8.
    """
    same_type = image_hwc.dtype == mask_hw.dtype == np.uint8
    if not same_type or image_hwc.shape != (*mask_hw.shape, 3) or mask_hw.size == 0:
        raise ShapeError(
            f"{what}: expected (H, W, 3) and (H, W) uint8 of one size, got {describe(image_hwc)} and {describe(mask_hw)}"
        )


def _shown(bands_hwc: NDArray[np.generic]) -> Image:
    first: NDArray[Any] = bands_hwc[..., 2::-1] if bands_hwc.shape[2] >= 3 else bands_hwc[..., [0, 0, 0]]
    if first.dtype == np.uint8:
        return np.ascontiguousarray(first, np.uint8)
    return np.asarray(first * (255 / max(1, int(first.max()))), np.uint8)


def _remedy(pixels: Image, kind: Pixels) -> str:
    if kind == "bgr" and pixels.ndim == 2:
        return ": a grey picture becomes one with cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), and NV12 is said with format='nv12'"
    return ": BGR is said with format='bgr'" if kind == "nv12" and pixels.ndim == 3 else ""


def describe(array: NDArray[np.generic] | OnDevice | FramesOnDevice) -> str:
    """Shape and dtype of an array in the form used by all messages, such as ``(720, 1280, 3) uint8``."""
    return f"{tuple(array.shape)} {array.dtype}"
