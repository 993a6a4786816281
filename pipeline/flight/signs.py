"""Signs in a source's pictures and masks that something is wrong: a mask that is gone, masks that flicker."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Frame, Image
from pipeline.masks.agreement import agreement

# A mask that shrinks below this share of the picture before it is gone has left it, as a person does.
_CLEAR_SHARE = 0.01
_GONE_S = 0.5
_GONE_FRAMES = 3
# A picture stands still whose tiles all differ by less than this, of 255, as masks between computed masks have it.
_STILL_LEVELS = 3.0
_TILES_WH = (32, 18)
_LEAST_IOU = 0.8
# So many of the last pairs of masks: one may be a lamp that was switched on.
_FLICKERS, _PAIRS = 3, 10
# Looking at masks takes no longer for large ones.
_MASK_SIDE = 256


class Signs:
    """What one source's frames show, one after another.

    Args:
        task: of its masks.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._least = 128 if task == "binary" else 1  # of what is no background
        self._share = 0.0  # of the last mask that was not empty, while it is recent
        self._gone_since_s = 0.0
        self._gone_frames = 0
        self._tiles: Image | None = None
        self._mask: Image | None = None
        self._flickers: deque[bool] = deque(maxlen=_PAIRS)

    def of(self, frame: Frame) -> list[tuple[str, str]]:
        """What is wrong since this frame: (kind, sentence) each; a frame that the engine has computed, with its own mask."""
        assert frame.mask is not None
        found = []
        if frame.not_finite:
            found.append(("not-finite", f"{frame.not_finite} scores are NaN or infinite"))
        if text := self._gone(frame.mask, frame.captured_ns / 1e9):
            found.append(("empty", text))
        if text := self._flicker(frame, frame.mask):
            found.append(("flicker", text))
        return found

    def _gone(self, mask_hw: Image, now_s: float) -> str:
        if mask_hw.max() >= self._least:
            self._share, self._gone_frames = self._covered(_small(mask_hw)), 0
            return ""
        self._gone_frames += 1
        if self._gone_frames == 1:
            self._gone_since_s = now_s
        if self._share < _CLEAR_SHARE or self._gone_frames < _GONE_FRAMES or now_s - self._gone_since_s < _GONE_S:
            return ""
        share, self._share = self._share, 0.0  # told once
        return f"the mask is empty, and covered {share:.1%} of the picture just before"

    def _covered(self, mask_hw: Image) -> float:
        return float(np.mean(mask_hw >= self._least))

    def _flicker(self, frame: Frame, mask_hw: Image) -> str:
        tiles, mask = _tiles(frame), _small(mask_hw)
        before, mask_before = self._tiles, self._mask
        self._tiles, self._mask = tiles, mask
        if before is None or mask_before is None or mask_before.shape != mask.shape:
            self._flickers.clear()
            return ""
        is_still = float(cv2.absdiff(tiles, before).max()) < _STILL_LEVELS
        is_clear = max(self._covered(mask), self._covered(mask_before)) >= _CLEAR_SHARE
        iou = agreement(mask, mask_before, self._task) if is_still and is_clear else 1.0
        self._flickers.append(iou < _LEAST_IOU)
        if sum(self._flickers) < _FLICKERS:
            return ""
        self._flickers.clear()
        return f"masks flicker: IoU {iou:.2f} with the one before, and the picture stands still"


def _tiles(frame: Frame) -> Image:
    """The picture's gray, or its first channel, in tiles."""
    height = frame.size_hw[0]
    plane = frame.pixels[:height] if frame.format == "nv12" else frame.pixels[..., min(1, frame.pixels.shape[2] - 1)]
    step = max(1, height // 256)
    small = np.ascontiguousarray(plane[::step, ::step])
    tiles = np.asarray(cv2.resize(small, _TILES_WH, interpolation=cv2.INTER_AREA))
    return np.asarray(tiles // (1 if tiles.dtype == np.uint8 else 256), np.uint8)


def _small(mask_hw: Image) -> Image:
    step = max(1, min(mask_hw.shape) // _MASK_SIDE)
    return np.ascontiguousarray(mask_hw[::step, ::step])
