"""Pictures that lie in a GPU's memory, in NV12: where a decoder left them for an engine, or an engine for an encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.frames.pixels import frames_shape
from pipeline.quick_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Plane:
    """Rows of bytes in a GPU's memory, with gaps between them.

    Attributes:
        address: of the first byte, on the device.
        pitch_bytes: from the begin of a row to that of the next.
    """

    address: int
    pitch_bytes: int


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A picture in NV12 in the memory of the first CUDA GPU.

    What fills a decoder's is on the default stream of the device's primary context: work on another stream waits for that first. What
    an engine has drawn is complete. The memory is another picture's as soon as nobody holds this object.

    Attributes:
        luma: H rows of W bytes.
        chroma: H / 2 rows of W bytes, U and V in turn.
        size_hw: (height, width) in pixels, both even.
        to_host: copies it down, from any thread: (H·3/2, W) uint8, contiguous, owned by the caller.
        owner: what the memory belongs to for as long as it is this picture's.
        memory: of what an engine has drawn: what is not freed while somebody holds it. An encoder knows memory by its address, and must
            hold what it was given until it ends. Chroma follows luma without a gap there.
    """

    luma: Plane
    chroma: Plane
    size_hw: tuple[int, int]
    to_host: Callable[[], NDArray[np.uint8]]
    owner: object
    memory: object = None

    dtype: ClassVar[np.dtype[np.uint8]] = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H·3/2, W), of the array that ``to_host`` gives."""
        return frames_shape("nv12", 1, self.size_hw)[1:]

    @property
    def nbytes(self) -> int:
        """Of that array."""
        return math.prod(self.shape)

    @property
    def placeholder(self) -> NDArray[np.uint8]:
        """An array of that shape which takes no memory, and is not the picture."""
        return np.broadcast_to(np.zeros((), np.uint8), self.shape)


@dataclass(frozen=True, slots=True)
class FramesOnDevice:
    """Some pictures of one size, for an engine or from it, in place of an array.

    Attributes:
        pictures: at least one.

    Raises:
        ShapeError: there is none, or their sizes differ.
    """

    pictures: tuple[OnDevice, ...]

    dtype: ClassVar[np.dtype[np.uint8]] = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        sizes = sorted({one.size_hw for one in self.pictures})
        if len(sizes) != 1:
            raise ShapeError(f"frames on the GPU: expected some of one size, got those of {sizes}")

    def __iter__(self) -> Iterator[OnDevice]:
        return iter(self.pictures)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H·3/2, W), as an array of them has."""
        return (len(self.pictures), *self.pictures[0].shape)

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return math.prod(self.shape)
