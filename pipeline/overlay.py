"""A frame and its mask become the picture that people see.

Most modes are one blend, ``base + (over - base) × weight``, in 8-bit integers and only inside the rectangle that holds
the mask. The result differs from the same formula in real numbers by at most 1 of 255.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Task
from pipeline.errors import OptionError, ShapeError
from pipeline.frame import Image, describe
from pipeline.palette import DEFAULT_PALETTE, Palette

RENDER_MODES = ("overlay", "mask", "side", "contour", "cutout", "blur", "replace", "heatmap")

Color = tuple[int, int, int]

GREEN_SCREEN: Color = (0x40, 0xB1, 0x00)
"""The background of "cutout" when none is given: #00b140, the green that editing programs key out."""

WHITE: Color = (255, 255, 255)
"""The background of "replace" when none is given."""

EDGE_HALF_WIDTH = 0.1
"""A soft edge runs from no weight at this much below the threshold to full weight at this much above."""

# Rows blended at a time: few enough that the intermediate pictures stay in the processor's cache.
_STRIP_ROWS = 64


@dataclass(frozen=True, eq=False)
class Look:
    """How masks are shown.

    Attributes:
        mode: one of `RENDER_MODES`.
        alpha: strength of the colour, 0 (picture only) to 1 (colour only), in "overlay", "side" and "heatmap".
        threshold: the probability, 0 to 1, from which a pixel of a binary mask is subject; class maps need none.
        palette: the colours; a binary mask is drawn in that of class 1.
        background: what "cutout" and "replace" put behind the subject: (b, g, r), or a picture (h, w, 3) uint8 BGR that
            is scaled to cover the frame (the look keeps a read-only copy), or None: green for "cutout", white for
            "replace".

    Raises:
        OptionError: a value is not what is described above.
    """

    mode: str = "overlay"
    alpha: float = 0.5
    threshold: float = 0.5
    palette: Palette = DEFAULT_PALETTE
    background: Color | Image | None = None

    def __post_init__(self) -> None:
        if self.mode not in RENDER_MODES:
            near = difflib.get_close_matches(self.mode, RENDER_MODES, n=1)
            raise OptionError(
                f"render mode: expected {', '.join(RENDER_MODES)}, got {self.mode!r}"
                + (f": did you mean {near[0]!r}?" if near else "")
            )
        for name, value in (("alpha", self.alpha), ("threshold", self.threshold)):
            # Written so that NaN is refused too.
            if not 0 <= value <= 1:
                raise OptionError(f"{name}: expected 0 to 1, got {value}")
        background = self.background
        if isinstance(background, np.ndarray):
            if background.ndim != 3 or background.shape[2] != 3 or background.dtype != np.uint8 or background.size == 0:
                raise OptionError(f"background picture: expected (h, w, 3) uint8 BGR, got {describe(background)}")
            if background.flags.writeable:
                background = background.copy()
                background.setflags(write=False)
                object.__setattr__(self, "background", background)
        elif background is not None and not (len(background) == 3 and all(0 <= value <= 255 for value in background)):
            raise OptionError(f"background colour: expected (b, g, r) of 0 to 255, got {background}")


class Renderer:
    """Draws masks over frames: ``view = renderer(image, mask)``.

    Attributes:
        look: what to draw; may be replaced between two frames:
            ``renderer.look = dataclasses.replace(renderer.look, alpha=0.7)``.
        task: "binary" (mask = probability × 255) or "classes" (mask = class index, 0 = background).
    """

    def __init__(self, look: Look, task: Task) -> None:
        if task not in ("binary", "classes"):
            raise OptionError(f"task: expected binary or classes, got {task!r}")
        self.look = look
        self.task = task
        # The background picture of the last frame, at its size, and the picture it was scaled from.
        self._covered: tuple[Image, Image] | None = None

    def __call__(self, image_hwc: Image, mask_hw: Image) -> Image:
        """Draw one frame.

        Args:
            image_hwc: (H, W, 3) uint8 BGR; not changed.
            mask_hw: (H, W) uint8 as `task` says; not changed.

        Returns:
            (H, W, 3) uint8 BGR, in mode "side" (H, 2W, 3): a new array that is the caller's.

        Raises:
            ShapeError: an array has another shape or dtype.
        """
        image, mask = _checked(image_hwc, mask_hw)
        look = self.look  # one for the whole frame, whoever replaces it meanwhile
        mode = look.mode
        if mode == "mask":
            if self.task == "binary":
                return cast(Image, cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR))
            return _colours_of(mask, look.palette)
        if mode == "side":
            return cast(Image, cv2.hconcat([image, self._overlay(look, image, mask)]))
        if mode == "contour":
            return self._contour(look, image, mask)
        if mode == "blur":
            background = blurred_background(image, _lookup(mask, _subject_weights(self.task, look.threshold)))
            return self._subject_over(look, background, image, mask)
        if mode in ("cutout", "replace"):
            return self._subject_over(look, self._background(look, image.shape[:2]), image, mask)
        if mode == "heatmap" and self.task == "binary":
            # Lightness rises with the probability all the way, for every eye; improbable pixels only grow darker.
            heat = cv2.applyColorMap(mask, cv2.COLORMAP_INFERNO)
            return cast(Image, cv2.addWeighted(image, 1 - look.alpha, heat, look.alpha, 0))
        return self._overlay(look, image, mask)

    def _overlay(self, look: Look, image: Image, mask: Image) -> Image:
        view: Image = image.copy()
        if self.task == "binary":
            weights = np.rint(255 * look.alpha * soft_edge(look.threshold)).astype(np.uint8)
        else:
            weights = np.full(256, round(255 * look.alpha), dtype=np.uint8)
            weights[0] *= not look.palette.transparent_class_0
        box = _touched_box(mask, weights)
        if box is None:
            return view
        if self.task == "binary":
            colours = _flat(look.palette.color(1), mask[box].shape)
        else:
            colours = _colours_of(mask[box], look.palette)
        _blend_into(view[box], colours, mask[box], weights)
        return view

    def _subject_over(self, look: Look, background: Image, image: Image, mask: Image) -> Image:
        """Draw the subject of ``image`` into ``background``, which is changed and returned."""
        weights = _subject_weights(self.task, look.threshold)
        box = _touched_box(mask, weights)
        if box is not None:
            _blend_into(background[box], image[box], mask[box], weights)
        return background

    def _contour(self, look: Look, image: Image, mask: Image) -> Image:
        view: Image = image.copy()
        palette = look.palette
        labels = mask
        if self.task == "binary":
            labels = cast(Image, cv2.threshold(mask, subject_level(look.threshold) - 1, 1, cv2.THRESH_BINARY)[1])
        outlined = np.ones(256, dtype=np.uint8)
        outlined[0] = self.task == "classes" and not palette.transparent_class_0
        box = _touched_box(labels, outlined, margin=1)
        if box is None:
            return view
        # A pixel is on an outline where a square around it holds another class: the line lies inside its own class, two
        # classes that touch show both colours, and the frame's border, where the object may go on, has no line.
        side = 2 * max(1, round(image.shape[0] / 240)) + 1
        inside = labels[box]
        square = np.ones((side, side), dtype=np.uint8)
        on_edge = cv2.compare(cv2.dilate(inside, square), cv2.erode(inside, square), cv2.CMP_NE)
        cv2.bitwise_and(on_edge, _lookup(inside, 255 * outlined), dst=on_edge)
        view[box] = cv2.copyTo(_colours_of(inside, palette), on_edge, view[box])
        return view

    def _background(self, look: Look, size_hw: tuple[int, int]) -> Image:
        """What "cutout" and "replace" put behind the subject: a new (H, W, 3) picture."""
        background = look.background
        if not isinstance(background, np.ndarray):
            return _flat(background or (GREEN_SCREEN if look.mode == "cutout" else WHITE), size_hw)
        if self._covered is None or self._covered[0] is not background or self._covered[1].shape[:2] != size_hw:
            self._covered = background, _cover(background, size_hw)
        covered: Image = self._covered[1].copy()
        return covered


def cutout_bgra(image_hwc: Image, mask_hw: Image, task: Task, threshold: float | None = None) -> Image:
    """The subject as a picture with transparency, for a PNG file.

    Args:
        image_hwc: (H, W, 3) uint8 BGR; not changed.
        mask_hw: (H, W) uint8 as ``task`` says; not changed.
        task: "binary" (mask = probability × 255) or "classes" (mask = class index, 0 = background).
        threshold: for a binary mask, 0 to 1: the opacity is the soft edge around this probability, as in mode "cutout".
            None: the opacity is the probability itself, which keeps hair and glass as the network sees them.

    Returns:
        (H, W, 4) uint8 B, G, R, opacity (not multiplied into the colours): a new array that is the caller's.

    Raises:
        ShapeError: an array has another shape or dtype.
        OptionError: the threshold is not 0 to 1.
    """
    image, mask = _checked(image_hwc, mask_hw)
    if threshold is not None and not 0 <= threshold <= 1:
        raise OptionError(f"threshold: expected 0 to 1, got {threshold}")
    if task == "binary" and threshold is None:
        opacity = mask
    else:
        opacity = _lookup(mask, _subject_weights(task, threshold or 0))
    picture = cast(Image, cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    picture[..., 3] = opacity
    return picture


def soft_edge(threshold: float) -> NDArray[np.float64]:
    """(256,) float64, 0 to 1: how much of the subject each value of a binary mask is.

    A straight line through 0.5 at the threshold, `EDGE_HALF_WIDTH` to either side. Nearer to 0 and 1 it is shorter,
    so that probability 0 is always background and 1 always subject, except that threshold 0 makes everything subject.
    """
    probability = np.arange(256) / 255
    half_width = min(EDGE_HALF_WIDTH, threshold, 1 - threshold)
    if half_width == 0:
        return (probability >= threshold).astype(np.float64)
    return np.clip(0.5 + (probability - threshold) / (2 * half_width), 0, 1)


def subject_level(threshold: float) -> int:
    """The smallest value of a binary mask that is subject: value ÷ 255 reaches the threshold."""
    return math.ceil(threshold * 255)


def blurred_background(image_hwc: Image, weight_hw: Image) -> Image:
    """The picture out of focus, without the subject's colours.

    Each pixel is the mean of the background around it (a Gaussian of 1/40 of the frame's shorter side); the subject
    does not bleed into it, which would show as a halo. It is computed at a fraction of the size, which nobody sees.

    Args:
        image_hwc: (H, W, 3) uint8 BGR.
        weight_hw: (H, W) uint8, how much of the subject each pixel is, 0 to 255.

    Returns:
        (H, W, 3) uint8 BGR: a new array. Where no background is near, it is the blurred subject.
    """
    height, width = weight_hw.shape
    sigma = min(height, width) / 40
    # The largest power of two that leaves the Gaussian two pixels: whole factors are what INTER_AREA is fast for.
    factor = 1 << max(0, int(math.log2(max(1.0, sigma / 2))))
    small_wh = width // factor, height // factor
    # The rows and columns past the last whole block are left out: less than a block, spread over the frame.
    rows, columns = slice(small_wh[1] * factor), slice(small_wh[0] * factor)
    small = cv2.resize(image_hwc[rows, columns], small_wh, interpolation=cv2.INTER_AREA).astype(np.float32)
    weight = cv2.resize(weight_hw[rows, columns], small_wh, interpolation=cv2.INTER_AREA)
    # The fourth power, because a small pixel that is partly subject has its colour too; never quite 0, so that the mean
    # exists inside a large subject.
    share = (1 - weight.astype(np.float32) / 255) ** 4 + np.float32(0.001)
    spread = sigma / factor
    total = cv2.GaussianBlur(small * share[..., np.newaxis], (0, 0), spread)
    mean = total / cv2.GaussianBlur(share, (0, 0), spread)[..., np.newaxis]
    blurred = np.rint(np.clip(mean, 0, 255)).astype(np.uint8)
    return cast(Image, cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR))


def _checked(image: Image, mask: Image) -> tuple[Image, Image]:
    """Both arrays, row after row in memory; copies only where they are not."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(f"image: expected (H, W, 3) uint8 BGR, got {describe(image)}")
    if mask.shape != image.shape[:2] or mask.dtype != np.uint8:
        raise ShapeError(f"mask: expected {image.shape[:2]} uint8, the image's height and width, got {describe(mask)}")
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _subject_weights(task: Task, threshold: float) -> NDArray[np.uint8]:
    """(256,) uint8: how much of the subject a mask value is, 0 to 255."""
    if task == "binary":
        return np.rint(255 * soft_edge(threshold)).astype(np.uint8)
    weights = np.full(256, 255, dtype=np.uint8)
    weights[0] = 0
    return weights


def _touched_box(mask: Image, weights: NDArray[np.uint8], margin: int = 0) -> tuple[slice, slice] | None:
    """The smallest rectangle outside which every weight is 0, or None: there is no such pixel. Weights never fall."""
    if not weights[255]:
        return None
    first = int(np.argmax(weights > 0))
    left, top, width, height = cv2.boundingRect(cv2.threshold(mask, first - 1, 255, cv2.THRESH_BINARY)[1])
    if width == 0:
        return None
    return slice(max(0, top - margin), top + height + margin), slice(max(0, left - margin), left + width + margin)


def _blend_into(base: Image, over: Image, mask: Image, weights: NDArray[np.uint8]) -> None:
    """``base += (over - base) × weights[mask] ÷ 255``, in place; all (h, w) alike."""
    for start in range(0, mask.shape[0], _STRIP_ROWS):
        rows = slice(start, start + _STRIP_ROWS)
        weight = cv2.cvtColor(_lookup(mask[rows], weights), cv2.COLOR_GRAY2BGR)
        kept = cv2.multiply(base[rows], cv2.bitwise_not(weight), scale=1 / 255)
        base[rows] = cv2.add(kept, cv2.multiply(over[rows], weight, scale=1 / 255))


def _lookup(mask: Image, table: NDArray[np.uint8]) -> Image:
    return cast(Image, cv2.LUT(mask, table))


def _colours_of(mask: Image, palette: Palette) -> Image:
    return cast(Image, cv2.applyColorMap(mask, palette.table_bgr()))


def _flat(color: Color, size_hw: tuple[int, ...]) -> Image:
    height, width = size_hw
    picture = np.empty((height, width, 3), dtype=np.uint8)
    # numpy repeats three bytes a pixel, one at a time: 40 times slower.
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), color, cv2.FILLED)
    return picture


def _cover(picture: Image, size_hw: tuple[int, int]) -> Image:
    """The picture scaled to cover the frame, its middle cut out: a new (H, W, 3) array."""
    height, width = size_hw
    scale = max(height / picture.shape[0], width / picture.shape[1])
    scaled_wh = max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale))
    scaled = cv2.resize(picture, scaled_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (scaled_wh[1] - height) // 2, (scaled_wh[0] - width) // 2
    return cast(Image, scaled[top : top + height, left : left + width].copy())
