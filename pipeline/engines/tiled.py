"""An engine for pictures of any size, around one whose program takes tiles of them."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Computed, Engine
from pipeline.frames.frame import Image
from pipeline.frames.tiles import Mosaic, Place, Tiles


class TiledEngine(Engine):
    """Cuts frames into tiles, has their masks computed, and puts them together.

    No more tiles are in memory than are in flight: besides, a frame costs 4 bytes a pixel.

    Args:
        inner: of the same bundle; closed with this one.
        tiles: how frames are cut.
    """

    def __init__(self, inner: Engine, tiles: Tiles) -> None:
        super().__init__(inner.bundle)
        self._inner, self._tiles = inner, tiles
        self._computed: deque[Computed] = deque()
        self.on_gpu, self.counts, self.is_reference = inner.on_gpu, inner.counts, inner.is_reference
        self.description, self.advice = inner.description, inner.advice

    @property
    def frame_size_hw(self) -> None:
        """Frames of any size."""
        return None

    def try_out(self) -> None:
        """Find out whether the device can run the tiles."""
        self._inner.try_out()

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        try:
            masks, counts = zip(*map(self._mask, frames), strict=True)
        except BaseException:
            self._inner.drain()
            raise
        self._computed.append(Computed(np.stack(masks), None, np.array(counts, np.int32) if self.counts else None))

    def _mask(self, image: Image) -> tuple[Image, int]:
        """The mask of one frame, and how many scores of all its tiles are not finite."""
        height, width = image.shape[:2]
        mosaic = Mosaic(self._tiles, (height, width), classes=self.bundle.manifest.task == "classes")
        waiting: deque[list[Place]] = deque()
        not_finite = 0

        def collect() -> None:
            nonlocal not_finite
            computed = self._inner.collect_all()
            not_finite += 0 if computed.not_finite is None else int(computed.not_finite.sum())
            for place, mask in zip(waiting.popleft(), computed.masks_nhw, strict=True):
                mosaic.add(place, mask)

        tiles = self._tiles.cut(image)
        while group := list(islice(tiles, self._inner.batch)):
            self._inner.submit(np.stack([tile for _, tile in group]))
            waiting.append([place for place, _ in group])
            if len(waiting) == self._inner.in_flight:
                collect()
        while waiting:
            collect()
        return mosaic.mask(), not_finite

    def _collect(self) -> Computed:
        return self._computed.popleft()

    def _close(self) -> None:
        self._computed.clear()
        self._inner.close()
