"""test://: a bright disc that wanders over a dark gradient, for trying things without a camera or a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.sources.base import Source
from pipeline.sources.kinds import SourceKind

SYNTHETIC = SourceKind(
    name="test",
    opens="SyntheticSource",
    help="a disc that wanders over a gradient, for trying things: test://?size=1280x720&fps=30&frames=300",
    order=60,
    extra="cpu",
    forms=("test://",),
    prefixes=("test:",),
)

_LEAST_HZ, _MOST = Fraction(1, 1000), 10**9
_DEFAULTS = {"size": "1280x720", "fps": "30", "frames": "300", "step": "1"}


class SyntheticSource(Source):
    """``test://?size=WIDTHxHEIGHT&fps=N&frames=N&step=N``; every part may be left out.

    ``step`` shows every Nth frame. The same address gives the same frames.
    """

    def __init__(self, spec: str) -> None:
        form = f"{spec}: expected a form such as test://?size=1280x720&fps=30&frames=300"
        address = urlsplit(spec)
        if address.netloc or address.path or address.fragment:
            raise SourceError(f"{form}, got other text before or after the question mark")
        given = dict(parse_qsl(address.query, keep_blank_values=True))
        if unknown := given.keys() - _DEFAULTS.keys():
            raise SourceError(
                f"{spec}: expected {', '.join(_DEFAULTS)} after the question mark, got {sorted(unknown)[0]!r}"
            )
        options = _DEFAULTS | given
        try:
            width, height = (int(side) for side in options["size"].split("x"))
            fps = Fraction(options["fps"])
            frame_count = int(options["frames"])
            self._step = int(options["step"])
            counts, sides = (frame_count, self._step), (width, height)
            if min(*counts, *sides) < 1 or max(sides) > 16384 or max(counts) > _MOST or not _LEAST_HZ <= fps <= 1000:
                raise ValueError
        except (ValueError, ZeroDivisionError) as error:
            raise SourceError(form) from error
        self._size_hw = height, width
        self.info = SourceInfo(
            name="test",
            description=f"synthetic, {width}×{height}, {float(fps):g} FPS",
            size_hw=(height, width),
            fps=fps,
            time_base=1 / fps,
            frame_count=frame_count,
        )
        ramp = (
            np.linspace(40, 90, width, dtype=np.float32)[None, :]
            + np.linspace(0, 30, height, dtype=np.float32)[:, None]
        )
        self._background: Image = np.repeat(ramp.astype(np.uint8)[:, :, None], 3, axis=2)

    def disc(self, index: int) -> tuple[tuple[int, int], int]:
        """Where the disc of a frame lies: its center (x, y) and its radius, in pixels."""
        height, width = self._size_hw
        angle = 2 * math.pi * index * self._step / 150
        center = round(width * (0.5 + 0.25 * math.cos(angle))), round(height * (0.5 + 0.2 * math.sin(2 * angle)))
        return center, max(1, round(0.2 * min(height, width)))

    def __iter__(self) -> Iterator[Frame]:
        fps, frame_count = self.info.fps, self.info.frame_count
        for index in range(frame_count or 0):
            image = self._background.copy()
            center, radius = self.disc(index)
            cv2.circle(image, center, radius, (40, 170, 250), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(image, center, max(1, radius // 2), (60, 80, 220), cv2.FILLED, cv2.LINE_AA)
            yield Frame(image, index, float(index / (fps or 1)), self.info.name, f"{index:06d}")
