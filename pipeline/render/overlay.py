"""A frame and its mask become the picture that people see.

Most modes are one blend, ``base + (over - base) × weight``, in 8-bit integers. A frame is drawn in strips that stay in the
processor's cache: only the columns that the mask touches are blended, and where it is one value all over, as a constant.
The result differs from the same formula in real numbers by at most 1 of 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError, ShapeError
from pipeline.frames.frame import Image, describe
from pipeline.render.blend import Blend
from pipeline.render.look import SUBJECT_MODES, Color, Look, background_color, subject_level, subject_weights
from pipeline.render.view_memory import ViewMemory

# Pixels drawn at a time: few enough to stay in the processor's cache, enough that the calls cost little.
_STRIP_PIXELS = 128 * 1024


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
        self._blend: tuple[Look, Blend] | None = None  # of the last frame
        self._views = ViewMemory()
        self._scratch = np.empty((2, 0), np.uint8)

    def __call__(self, image_hwc: Image, mask_hw: Image) -> Image:
        """Draw one frame.

        Args:
            image_hwc: (H, W, 3) uint8 BGR; not changed.
            mask_hw: (H, W) uint8 as `task` says; not changed.

        Returns:
            (H, W, 3) uint8 BGR, in mode "side" (H, 2W, 3): a new array that is the caller's. Its memory is used again when
            nothing refers to it any more.

        Raises:
            ShapeError: an array has another shape or dtype.
        """
        image, mask = _checked(image_hwc, mask_hw)
        look = self.look  # one for the whole frame, whoever replaces it meanwhile
        height, width = mask.shape
        view = self._views.take((height, 2 * width if look.mode == "side" else width, 3))
        if look.mode == "mask":
            if self.task == "binary":
                cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR, dst=view)
            else:
                cv2.applyColorMap(mask, look.palette.table_bgr(), dst=view)
        elif look.mode == "side":
            view[:, :width] = image
            self._overlay(view[:, width:], look, image, mask)
        elif look.mode == "contour":
            self._contour(view, look, image, mask)
        elif look.mode in SUBJECT_MODES:
            self._subject(view, look, image, mask)
        elif look.mode == "heatmap" and self.task == "binary":
            _heatmap(view, look.alpha, image, mask)
        else:
            self._overlay(view, look, image, mask)
        return view

    def _overlay(self, view: Image, look: Look, image: Image, mask: Image) -> None:
        blend = self._blend_of(look)
        scratch = self._scratch_of(mask)
        for rows in _strips(mask):
            drawn = view[rows]
            drawn[:] = image[rows]
            alike, others = blend.parts(mask[rows])
            for columns in alike:
                cv2.transform(drawn[:, columns], blend.matrix, dst=drawn[:, columns])
            for columns in others:
                blend.mix(drawn[:, columns], drawn[:, columns], mask[rows, columns], scratch)

    def _subject(self, view: Image, look: Look, image: Image, mask: Image) -> None:
        """Draw the subject over another background."""
        blend = self._blend_of(look)
        picture: Image | None = None
        flat: Image | None = None
        if look.mode == "blur":
            blurred_background(image, _lookup(mask, subject_weights(self.task, look.threshold)), view)
        elif isinstance(look.background, np.ndarray):
            picture = self._cover(look.background, mask.shape)
        else:
            flat = _flat(background_color(look), (_strip_rows(mask), mask.shape[1]))
        scratch = self._scratch_of(mask)
        for rows in _strips(mask):
            drawn = view[rows]
            if picture is not None:
                drawn[:] = picture[rows]
            elif flat is not None:
                drawn[:] = flat[: len(drawn)]
            alike, others = blend.parts(mask[rows])
            for columns in alike:
                drawn[:, columns] = image[rows, columns]
            for columns in others:
                blend.mix(drawn[:, columns], image[rows, columns], mask[rows, columns], scratch)

    def _scratch_of(self, mask: Image) -> NDArray[np.uint8]:
        """(2, n) uint8: memory for two pictures of a strip, the same for every frame of a size."""
        size = 3 * _strip_rows(mask) * mask.shape[1]
        if self._scratch.shape[1] < size:
            self._scratch = np.empty((2, size), np.uint8)
        return self._scratch

    def _blend_of(self, look: Look) -> Blend:
        if self._blend is None or self._blend[0] is not look:
            make = Blend.subject if look.mode in SUBJECT_MODES else Blend.colours
            self._blend = look, make(look, self.task)
        return self._blend[1]

    def _contour(self, view: Image, look: Look, image: Image, mask: Image) -> None:
        view[:] = image
        palette = look.palette
        labels = mask
        if self.task == "binary":
            labels = cast(Image, cv2.threshold(mask, subject_level(look.threshold) - 1, 1, cv2.THRESH_BINARY)[1])
        outlined = np.ones(256, dtype=np.uint8)
        outlined[0] = self.task == "classes" and not palette.transparent_class_0
        box = _box(labels, int(np.argmax(outlined)), margin=1)
        if box is None:
            return
        # A pixel is on an outline where a square around it holds another class: the line lies inside its own class, two
        # classes that touch show both colours, and the frame's border, where the object may go on, has no line.
        side = 2 * max(1, round(image.shape[0] / 240)) + 1
        inside = labels[box]
        square = np.ones((side, side), dtype=np.uint8)
        on_edge = cv2.compare(cv2.dilate(inside, square), cv2.erode(inside, square), cv2.CMP_NE)
        cv2.bitwise_and(on_edge, _lookup(inside, 255 * outlined), dst=on_edge)
        cv2.copyTo(cast(Image, cv2.applyColorMap(inside, palette.table_bgr())), on_edge, view[box])

    def _cover(self, background: Image, size_hw: tuple[int, ...]) -> Image:
        if self._covered is None or self._covered[0] is not background or self._covered[1].shape[:2] != size_hw:
            self._covered = background, _cover(background, size_hw)
        return self._covered[1]


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
        opacity = _lookup(mask, subject_weights(task, threshold or 0))
    picture = cast(Image, cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    picture[..., 3] = opacity
    return picture


def blurred_background(image_hwc: Image, weight_hw: Image, out: Image | None = None) -> Image:
    """The picture out of focus, without the subject's colours.

    Each pixel is the mean of the background around it (a Gaussian of 1/40 of the frame's shorter side); the subject
    does not bleed into it, which would show as a halo. It is computed at a fraction of the size, which nobody sees.

    Args:
        image_hwc: (H, W, 3) uint8 BGR.
        weight_hw: (H, W) uint8, how much of the subject each pixel is, 0 to 255.
        out: (H, W, 3) uint8, where to put the result; None: a new array.

    Returns:
        (H, W, 3) uint8 BGR. Where no background is near, it is the blurred subject.
    """
    height, width = weight_hw.shape
    sigma = min(height, width) / 40
    # The largest power of two that leaves the Gaussian two pixels.
    halvings = int(math.log2(max(1.0, sigma / 2)))
    factor = 1 << halvings
    # The rows and columns past the last whole block are left out: less than a block, spread over the frame.
    rows, columns = slice(height // factor * factor), slice(width // factor * factor)
    small = _reduced(image_hwc[rows, columns], halvings).astype(np.float32)
    weight = _reduced(weight_hw[rows, columns], halvings)
    # The fourth power, because a small pixel that is partly subject has its colour too; never quite 0, so that the mean
    # exists inside a large subject.
    share = (1 - weight.astype(np.float32) / 255) ** 4 + np.float32(0.001)
    spread = sigma / factor
    total = cv2.GaussianBlur(small * share[..., np.newaxis], (0, 0), spread)
    mean = total / cv2.GaussianBlur(share, (0, 0), spread)[..., np.newaxis]
    blurred = np.rint(np.clip(mean, 0, 255)).astype(np.uint8)
    return cast(Image, cv2.resize(blurred, (width, height), dst=out, interpolation=cv2.INTER_LINEAR))


def _reduced(picture: Image, halvings: int) -> Image:
    """Means of blocks of pixels, by halves: the one whole factor that OpenCV has fast code for."""
    for _ in range(halvings):
        height, width = picture.shape[:2]
        picture = cast(Image, cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return picture


def _checked(image: Image, mask: Image) -> tuple[Image, Image]:
    """Both arrays, row after row in memory; copies only where they are not."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(f"image: expected (H, W, 3) uint8 BGR, got {describe(image)}")
    if mask.shape != image.shape[:2] or mask.dtype != np.uint8:
        raise ShapeError(f"mask: expected {image.shape[:2]} uint8, the image's height and width, got {describe(mask)}")
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _box(mask: Image, first: int, margin: int) -> tuple[slice, slice] | None:
    """The smallest rectangle outside which every value is below ``first``, and a margin; None: there is no such pixel."""
    left, top, width, height = cv2.boundingRect(cv2.threshold(mask, first - 1, 255, cv2.THRESH_BINARY)[1])
    if width == 0:
        return None
    return slice(max(0, top - margin), top + height + margin), slice(max(0, left - margin), left + width + margin)


def _strip_rows(mask: Image) -> int:
    rows: int = max(1, min(mask.shape[0], _STRIP_PIXELS // mask.shape[1]))
    return rows


def _strips(mask: Image) -> Iterator[slice]:
    rows = _strip_rows(mask)
    return (slice(start, start + rows) for start in range(0, mask.shape[0], rows))


def _heatmap(view: Image, alpha: float, image: Image, mask: Image) -> None:
    # Lightness rises with the probability all the way, for every eye; improbable pixels only grow darker. The table is made once:
    # OpenCV makes its own anew in each call, which takes longer than to draw a strip.
    table = cast(Image, cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(256, 1), cv2.COLORMAP_INFERNO))
    for rows in _strips(mask):
        heat = cv2.applyColorMap(mask[rows], table)
        cv2.addWeighted(image[rows], 1 - alpha, heat, alpha, 0, dst=view[rows])


def _lookup(mask: Image, table: NDArray[np.uint8]) -> Image:
    return cast(Image, cv2.LUT(mask, table))


def _flat(color: Color, size_hw: tuple[int, ...]) -> Image:
    height, width = size_hw
    picture = np.empty((height, width, 3), dtype=np.uint8)
    # numpy repeats three bytes a pixel, one at a time: 40 times slower.
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), color, cv2.FILLED)
    return picture


def _cover(picture: Image, size_hw: tuple[int, ...]) -> Image:
    """The picture scaled to cover the frame, its middle cut out: a new (H, W, 3) array."""
    height, width = size_hw
    scale = max(height / picture.shape[0], width / picture.shape[1])
    scaled_wh = max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale))
    scaled = cv2.resize(picture, scaled_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (scaled_wh[1] - height) // 2, (scaled_wh[0] - width) // 2
    return cast(Image, scaled[top : top + height, left : left + width].copy())
