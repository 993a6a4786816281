"""Networks that see frames in tiles: whole frames are judged, and searches look at tiles as frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compile.proof.raw_values import Raw
from compile.proof.verify import Expected, Masks, Reference
from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Frame
from pipeline.frames.tiles import Mosaic, Tiles
from pipeline.sources.base import Source

_CALIBRATED_TILES = 4
"""The most tiles of a frame that are calibrated on: those of one frame are much alike."""


def masks_in_tiles(masks: Masks, tiles: Tiles, task: Task) -> Masks:
    """What computes masks of whole frames, of what does so of tiles."""

    def whole(frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([_put_together(masks, image, tiles, classes=task == "classes") for image in frames_nhwc])

    return whole


def reference_in_tiles(reference: Reference, tiles: Tiles, task: Task) -> Reference:
    """The same of a reference; where it is undecided, each pixel has it from the tile that counts most there."""

    def whole(frames_nhwc: NDArray[np.uint8]) -> Expected:
        flags: dict[int, NDArray[np.bool_]] = {}
        masks: list[NDArray[np.uint8]] = []
        raw: Raw | None = None
        for index, image in enumerate(frames_nhwc):
            size_hw = image.shape[:2]
            mosaic = Mosaic(tiles, size_hw, classes=task == "classes")
            undecided = Mosaic(tiles, size_hw, classes=True)
            for place, tile in tiles.cut(image):
                expected = reference(np.ascontiguousarray(tile[None]))
                raw = raw or expected.raw  # one tile of a frame is enough
                mosaic.add(place, expected.masks_nhw[0])
                if expected.undecided_nhw is not None:
                    undecided.add(place, _enlarged(expected.undecided_nhw[0], tiles.size_hw))
                    flags[index] = undecided.mask() > 0
            masks.append(mosaic.mask())
        return Expected(np.stack(masks), np.stack(list(flags.values())) if flags else None, raw)

    return whole


def as_tiles(frames: Iterable[Frame], tiles: Tiles, most: int) -> Iterator[Frame]:
    """Up to ``most`` tiles of each frame, spread over it, as frames."""
    for frame in frames:
        cut = list(tiles.cut(frame.pixels))
        for number in sorted({int((index + 0.5) * len(cut) / most) for index in range(most)}):
            place, tile = cut[number]
            name = f"{frame.name}, row {place.row + 1}, column {place.column + 1}"
            pixels = np.ascontiguousarray(tile)
            yield Frame(pixels, frame.index, frame.pts_s, frame.source, name, frame.format)


class TiledSource(Source):
    """A few tiles of each of a source's frames; iterated over as often as the source can be."""

    def __init__(self, source: Source, tiles: Tiles) -> None:
        self._source, self._tiles = source, tiles
        self.info = replace(source.info, frame_count=None)

    def __iter__(self) -> Iterator[Frame]:
        return as_tiles(self._source, self._tiles, _CALIBRATED_TILES)


def _put_together(masks: Masks, image: NDArray[np.uint8], tiles: Tiles, *, classes: bool) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    mosaic = Mosaic(tiles, (height, width), classes=classes)
    for place, tile in tiles.cut(image):
        mosaic.add(place, masks(np.ascontiguousarray(tile[None]))[0])
    return mosaic.mask()


def _enlarged(flags_hw: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    rows, columns = (np.arange(now) * was // now for was, now in zip(flags_hw.shape, size_hw, strict=True))
    enlarged: NDArray[np.uint8] = flags_hw[rows][:, columns].astype(np.uint8)
    return enlarged
