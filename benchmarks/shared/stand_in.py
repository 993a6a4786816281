"""An engine that computes nothing: what is left of a run's time is the pipeline's own."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.engines.base import Computed, Engine
from pipeline.frames.frame import Image


class Sleeper(Engine):
    """Waits, without using the processor, and gives the same mask for each frame, as a GPU would.

    Args:
        duration_ms: of each submission.
        mask_share: how much of the frame the mask covers, 0 to 1.
        in_flight: how many frames may wait; while one is waited for, the next can be submitted.
    """

    on_gpu = True

    def __init__(self, duration_ms: float, mask_share: float = 0.2, in_flight: int = 1) -> None:
        manifest = SimpleNamespace(task="binary", frame_size_hw=None, pixels="bgr", classes=("background", "subject"))
        super().__init__(cast(Bundle, SimpleNamespace(manifest=manifest)))
        self.in_flight = in_flight
        self.description = f"stand-in, {duration_ms:g} ms"
        self._duration_s = duration_ms / 1000
        self._share = mask_share
        self._waiting: deque[tuple[float, Any]] = deque()
        self._mask: Image | None = None
        self._free_s = 0.0

    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        size_hw = frames_nhwc.shape[1:3]
        if self._mask is None or self._mask.shape != size_hw:
            self._mask = disc_mask((size_hw[0], size_hw[1]), self._share)
        self._free_s = max(time.perf_counter(), self._free_s) + self._duration_s
        self._waiting.append((self._free_s, len(frames_nhwc)))

    def _collect(self) -> Computed:
        ready_s, count = self._waiting.popleft()
        left_s = ready_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        assert self._mask is not None
        return Computed(np.repeat(self._mask[None], count, axis=0))

    def _close(self) -> None:
        self._waiting.clear()


def disc_mask(size_hw: tuple[int, int], share: float) -> Image:
    """(H, W) uint8: an ellipse with a soft edge that covers a share of the frame, as a network of fewer pixels gives it."""
    small = np.zeros((320, 320), np.uint8)
    radius = round(320 * (share / np.pi) ** 0.5)
    cv2.circle(small, (160, 160), radius, 255, -1, cv2.LINE_AA)
    small = np.asarray(cv2.GaussianBlur(small, (0, 0), 2), np.uint8)
    return np.asarray(cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
