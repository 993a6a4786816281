"""What every engine is: frames in, masks out, a few of them in flight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import ShapeError
from pipeline.frame import describe


class Engine(ABC):
    """Runs a bundle's frame program. Used by one thread at a time; close it, or use it in a ``with`` block.

    A backend writes ``_submit``, ``_collect`` and ``_close``; shapes and dtypes are checked here, once.

    Attributes:
        bundle: what it runs.
        in_flight: how many submissions may wait before the first must be collected; 1 on a CPU.
        batch: how many frames of one size are worth submitting together; 1 on a CPU, which gains nothing by it.
        description: backend and device for the user, such as "ONNX Runtime 1.32, CPU".
    """

    in_flight = 1
    batch = 1
    description = ""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._submitted: deque[tuple[int, int, int]] = deque()
        self._closed = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Compute the masks of some frames of one size.

        Args:
            frames_nhwc: (N, H, W, 3) uint8, BGR. Not changed.

        Returns:
            (N, H, W) uint8: probability × 255, or class index. Owned by the caller.

        Raises:
            ShapeError: the frames do not fit what was compiled.
        """
        if self._submitted:
            raise RuntimeError("submissions are in flight: collect them before a call")
        self.submit(frames_nhwc)
        return self.collect()

    def submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        """Start on some frames; ``frames_nhwc`` as for a call, unchanged until they are collected.

        Raises:
            ShapeError: the frames do not fit what was compiled.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(self._submitted) >= self.in_flight:
            raise RuntimeError(f"{self.in_flight} submissions are in flight already: collect one first")
        if frames_nhwc.ndim != 4 or frames_nhwc.shape[3] != 3 or frames_nhwc.dtype != np.uint8 or frames_nhwc.size == 0:
            raise ShapeError(f"frames: expected (N, H, W, 3) uint8, got {describe(frames_nhwc)}")
        count, height, width, _ = frames_nhwc.shape
        fixed = self.bundle.manifest.frame_size_hw
        if fixed is not None and (height, width) != fixed:
            raise ShapeError(
                f"frames: expected {fixed[0]}×{fixed[1]} (height × width), got {height}×{width}: "
                f"compile with --frame {height}x{width}, or without --frame for any size"
            )
        self._submit(frames_nhwc)
        self._submitted.append((count, height, width))

    def collect(self) -> NDArray[np.uint8]:
        """Wait for the oldest submission.

        Returns:
            (N, H, W) uint8. Owned by the caller.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        if not self._submitted:
            raise RuntimeError("nothing was submitted")
        expected = self._submitted.popleft()
        masks_nhw = self._collect()
        if masks_nhw.shape != expected or masks_nhw.dtype != np.uint8:
            raise ShapeError(f"masks of {self.description}: expected {expected} uint8, got {describe(masks_nhw)}")
        return masks_nhw

    def close(self) -> None:
        """Give back memory and device; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None: ...

    @abstractmethod
    def _collect(self) -> NDArray[np.uint8]: ...

    @abstractmethod
    def _close(self) -> None: ...
