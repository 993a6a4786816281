"""Pictures that are larger than a network, in tiles of its size that overlap, and their masks put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.frame import Image
from pipeline.quick_dataclass import dataclass


class Place(NamedTuple):
    """Which tile of a picture: its row and column among the tiles, and the pixel that it begins at."""

    row: int
    column: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """How pictures are cut.

    Attributes:
        size_hw: (height, width) of each tile in pixels.
        overlap: of two neighbors, in pixels, at most half of a side; the last of a row or column overlaps more, for it is moved inside
            the picture.
    """

    size_hw: tuple[int, int]
    overlap: int

    @classmethod
    def from_contract(cls, contract: Any) -> Tiles | None:
        """As the contract of a manifest has them: ``"tile": [[height, width], overlap]``; None without.

        Raises:
            ValueError, TypeError: it is something else.
        """
        entry = contract.get("tile")
        if entry is None:
            return None
        (height, width), overlap = entry
        tiles = cls((int(height), int(width)), int(overlap))
        if min(tiles.size_hw) < 1 or not 0 <= 2 * tiles.overlap <= min(tiles.size_hw):
            raise ValueError(f"tiles of {entry}")
        return tiles

    def places(self, size_hw: tuple[int, int]) -> list[Place]:
        """The tiles of a picture of (height, width), row by row."""
        tops, lefts = (self._starts(side, axis) for axis, side in enumerate(size_hw))
        return [Place(row, column, top, left) for row, top in enumerate(tops) for column, left in enumerate(lefts)]

    def cut(self, image_hwc: NDArray[Any]) -> Iterator[tuple[Place, NDArray[Any]]]:
        """The tiles of a picture (H, W, C), each (h, w, C); one that is smaller than a tile goes on as its edge.

        A tile is a view of the picture, where it is not smaller.
        """
        height, width = self.size_hw
        rows, columns = image_hwc.shape[:2]
        if rows < height or columns < width:
            beyond = ((0, max(0, height - rows)), (0, max(0, width - columns)), (0, 0))
            image_hwc = np.pad(image_hwc, beyond, mode="edge")
        for place in self.places((rows, columns)):
            yield place, image_hwc[place.top : place.top + height, place.left : place.left + width]

    def weights(self, side: int, axis: int) -> NDArray[np.float32]:
        """How much each tile counts at each pixel of a side, (tiles, pixels): a pixel's numbers add up to 1.

        Each tile lies over those before it, with a linear ramp over all that it overlaps them.
        """
        size, starts = self.size_hw[axis], self._starts(side, axis)
        weights = np.zeros((len(starts), max(side, size)))
        for index, start in enumerate(starts):
            covered = starts[index - 1] + size - start if index else 0
            over = np.ones(size)
            over[:covered] = np.arange(1, covered + 1) / (covered + 1)
            weights[:index, start : start + size] *= 1 - over
            weights[index, start : start + size] = over
        return weights[:, :side].astype(np.float32)

    def _starts(self, side: int, axis: int) -> list[int]:
        size = self.size_hw[axis]
        last = max(0, side - size)
        return [*range(0, last, size - self.overlap), last]


class Mosaic:
    """The mask of a picture out of those of its tiles.

    Probabilities are blended, each tile with its weight, and rounded once; of classes, whose numbers cannot be averaged, each pixel has
    the one of the tile that counts most there.

    Args:
        tiles: how it was cut.
        size_hw: (height, width) of the picture.
        classes: masks are class indices.
    """

    def __init__(self, tiles: Tiles, size_hw: tuple[int, int], *, classes: bool) -> None:
        self._tiles, self._size_hw, self._classes = tiles, size_hw, classes
        self._weights = [tiles.weights(side, axis) for axis, side in enumerate(size_hw)]
        self._first = [weights.argmax(0) for weights in self._weights]
        self._whole = np.zeros(size_hw, np.uint8 if classes else np.float32)

    def add(self, place: Place, mask_hw: NDArray[np.uint8]) -> None:
        """Put in a tile's mask, (h, w) uint8."""
        height, width = self._tiles.size_hw
        across = slice(place.top, place.top + height), slice(place.left, place.left + width)
        there = self._whole[across]
        rows, columns = there.shape
        mask_hw = mask_hw[:rows, :columns]
        if self._classes:
            mine = np.ix_(self._first[0][across[0]] == place.row, self._first[1][across[1]] == place.column)
            there[mine] = mask_hw[mine]
            return
        down = self._weights[0][place.row, across[0], None]
        there += mask_hw * (down * self._weights[1][place.column, across[1]])

    def mask(self) -> Image:
        """(H, W) uint8, when all tiles are in."""
        whole = self._whole
        return whole if whole.dtype == np.uint8 else np.rint(whole, out=whole).astype(np.uint8)
