"""An engine for large pictures, around one that would make several copies of them in FP32.

A program with the filter "area" resizes a frame bilinearly to a whole multiple of the network's size and averages blocks of so many
pixels (``FrameToInput`` in ``compile.program.program``). That is linear, and rows and columns are apart: so the averages are found
here, a few rows at a time, and the program gets a stand-in, a small frame of which it finds them once more. Its mask is enlarged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Computed, Engine
from pipeline.errors import EdgemaskError
from pipeline.frames.frame import Image

# Pixels of a stand-in for each of the network's, along a side. Odd: so a pixel of its mask lies in the middle of each of the network's,
# and the mask is straight between two of them. The mean of 49 whole numbers is at most 1/98 off; of 25 it was not enough.
_BLOCK = 7
# A frame of so many times its pixels is worth a stand-in.
_WORTH = 2


class LargeFrameEngine(Engine):
    """Passes frames to an engine, and of large ones a stand-in. Their masks are within 1 of 255 of those of the program alone.

    For that, masks must be straight between the network's pixels, which is looked at in each mask of a stand-in. Where it is not so, as
    of classes, and of networks that give fewer scores than they take pixels, the engine gets the frame itself, and all from then on.

    Args:
        inner: of a program that averages frames of any size; closed with this one.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.bundle)
        self._inner = inner
        self._stands_in = True
        self._waiting: deque[_Waiting] = deque()
        self.in_flight, self.batch, self.one_at_a_time = inner.in_flight, inner.batch, inner.one_at_a_time
        self.on_gpu, self.takes_looks, self.counts = inner.on_gpu, inner.takes_looks, inner.counts
        self.is_reference, self.description, self.advice = inner.is_reference, inner.description, inner.advice

    def try_out(self) -> None:
        """Try the engine out."""
        self._inner.try_out()

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        size_hw = self.bundle.manifest.network_size_hw
        height, width = frames.shape[1:3]
        is_large = height * width >= _WORTH * _BLOCK**2 * size_hw[0] * size_hw[1]
        if self._stands_in and is_large:
            self._inner.submit(np.stack([stand_in(frame, size_hw) for frame in frames]))
            self._waiting.append(_Waiting(frames))
        else:
            self._inner.submit(frames)
            self._waiting.append(_Waiting())

    def _submit_with_look(self, frames: NDArray[np.uint8], look: NDArray[np.float32]) -> None:
        self._inner.submit(frames, look)
        self._waiting.append(_Waiting())

    def _collect(self) -> Computed:
        one = self._waiting.popleft()
        computed = self._result(one)
        if one.frames is None:
            return computed
        if all(map(_is_straight, computed.masks_nhw)):
            masks = np.empty(one.frames.shape[:3], np.uint8)
            for small, mask in zip(computed.masks_nhw, masks, strict=True):
                _resize(small, mask)
            return computed._replace(masks_nhw=masks)
        self._stands_in = False
        for other in self._waiting:  # which the engine gives first
            try:
                other.computed = self._result(other)
            except EdgemaskError as error:
                other.computed = error
        self._inner.submit(one.frames)
        return self._inner.collect_all()

    def _result(self, one: _Waiting) -> Computed:
        if isinstance(one.computed, EdgemaskError):
            raise one.computed
        return self._inner.collect_all() if one.computed is None else one.computed

    def _close(self) -> None:
        self._waiting.clear()
        self._inner.close()


@dataclass(slots=True)
class _Waiting:
    """A submission.

    Attributes:
        frames: those for which stand-ins were submitted; None: they were submitted themselves.
        computed: what the engine gave; None: it has not been asked yet.
    """

    frames: NDArray[np.uint8] | None = None
    computed: Computed | EdgemaskError | None = None


def stand_in(image: Image, size_hw: tuple[int, int]) -> Image:
    """A small frame that a program makes the same network input of.

    Args:
        image: (H, W, 3) uint8.
        size_hw: (height, width) of the network, (h, w).

    Returns:
        (7·h, 7·w, 3) uint8: in each block of 7×7 pixels the same number, or the same and one more, so that their mean is the frame's
        mean there to 1/98.
    """
    rows, columns = (_shares(side, size) for side, size in zip(image.shape[:2], size_hw, strict=True))
    means = np.empty((*size_hw, image.shape[2]), np.float32)
    for index, (start, weights) in enumerate(zip(rows.starts, rows.weights, strict=True)):
        # Not by BLAS, whose threads cost more than they help here.
        line = np.einsum("l,lwc->wc", weights, image[start : start + len(weights)], dtype=np.float32)
        means[index] = np.einsum("nl,nlc->nc", columns.weights, line[columns.indices])
    whole, more = np.divmod(np.rint(means * _BLOCK**2).astype(np.int32), _BLOCK**2)
    order = np.arange(_BLOCK**2).reshape(1, _BLOCK, 1, _BLOCK, 1)
    blocks = whole.astype(np.uint8)[:, None, :, None] + (order < more[:, None, :, None])
    return blocks.reshape(size_hw[0] * _BLOCK, size_hw[1] * _BLOCK, -1)


class _Shares(NamedTuple):
    """How much of each pixel along a frame's side is in each of the network's n, of at most l.

    Attributes:
        starts: (n,) the first pixel of each.
        weights: (n, l) float32; they add up to 1.
    """

    starts: NDArray[np.intp]
    weights: NDArray[np.float32]

    @property
    def indices(self) -> NDArray[np.intp]:
        """(n, l): which pixels they are."""
        return self.starts[:, None] + np.arange(self.weights.shape[1])


@lru_cache(maxsize=8)
def _shares(side: int, network_side: int) -> _Shares:
    """Of the resize to the nearest whole multiple and the averages of its blocks, as ``FrameToInput`` has them."""
    block = max(1, (2 * side + network_side) // (2 * network_side))
    count = network_side * block
    places = np.clip((np.arange(count) + 0.5) * side / count - 0.5, 0, side - 1).reshape(network_side, block)
    lower = places.astype(np.intp)
    upper = np.minimum(lower + 1, side - 1)
    length = int((upper[:, -1] - lower[:, 0]).max()) + 1
    starts = np.minimum(lower[:, 0], side - length)
    weights = np.zeros((network_side, length))
    each = np.arange(network_side)[:, None]
    np.add.at(weights, (each, lower - starts[:, None]), 1 - (places - lower))
    np.add.at(weights, (each, upper - starts[:, None]), places - lower)
    return _Shares(starts, (weights / block).astype(np.float32))


def _is_straight(mask: Image) -> bool:
    """Whether a stand-in's mask follows from its pixels in the middle of the network's, but for rounding."""
    middles = np.ascontiguousarray(mask[_BLOCK // 2 :: _BLOCK, _BLOCK // 2 :: _BLOCK])
    followed = np.empty_like(mask)
    _resize(middles, followed)
    return float(cv2.norm(followed, mask, cv2.NORM_INF)) <= 1


def _resize(mask: Image, to: Image) -> None:
    cv2.resize(mask, to.shape[::-1], dst=to, interpolation=cv2.INTER_LINEAR)
