"""A region: a connected part of a mask, and the forms in which other programs take it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shapes.outlines import Outline, outlines_of
from pipeline.shapes.run_lengths import compressed, counts_of

_DIGITS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A connected part of a class: pixels that touch by a side or a corner.

    Attributes:
        number: of its class: 1 is the subject of a network with one class; else the index, as in the mask.
        name: of its class.
        xywh: the smallest box around it: left, top, width and height in pixels of the frame.
        pixels: how many it has.
        size_hw: height and width of the frame in pixels.
        inside: (h, w) uint8, the part of the mask in its box: 1 inside, else 0. Not to be written to.
        mean_probability: of its pixels, 0 to 1; None where the mask holds class numbers.
        label: its class counted from 0 without a background, as YOLO does.
        id: the same from frame to frame, from 1 on; None where nothing follows it.
    """

    number: int
    name: str
    xywh: tuple[int, int, int, int]
    pixels: int
    size_hw: tuple[int, int]
    inside: NDArray[np.uint8] = field(repr=False)
    mean_probability: float | None = None
    label: int = 0
    id: int | None = None

    @property
    def area(self) -> float:
        """The share of the frame that it covers, 0 to 1."""
        return self.pixels / (self.size_hw[0] * self.size_hw[1])

    def mask(self) -> NDArray[np.uint8]:
        """(H, W) uint8 of the frame's size: 1 inside, else 0. The caller's own."""
        left, top, width, height = self.xywh
        mask = np.zeros(self.size_hw, np.uint8)
        mask[top : top + height, left : left + width] = self.inside
        return mask

    def polygon(self) -> Outline:
        """(N, 2) float64: its outline in pixels of the frame, holes cut open; see `outlines_of`."""
        left, top, _, _ = self.xywh
        outline: Outline = outlines_of(self.inside)[0] + (left, top)
        return outline

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths: ``{"size": [H, W], "counts": "…"}``, for ``pycocotools.mask.decode``."""
        return {"size": list(self.size_hw), "counts": compressed(self._counts())}

    def rle_counts(self) -> dict[str, Any]:
        """COCO's run lengths as numbers: ``{"size": [H, W], "counts": [0, 5, …]}``, for ``pycocotools.mask.frPyObjects``."""
        return {"size": list(self.size_hw), "counts": self._counts()}

    def yolo(self) -> str:
        """A line of YOLO's labels for segmentation: ``label``, then x and y of each point of the outline as shares of the frame."""
        height, width = self.size_hw
        shares = self.polygon() / (width, height)
        return " ".join((str(self.label), *(f"{value:.{_DIGITS}f}" for value in shares.ravel().tolist())))

    def _counts(self) -> list[int]:
        return counts_of(self.inside, self.xywh[0], self.xywh[1], self.size_hw)
