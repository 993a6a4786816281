"""What recurrent networks keep between frames: one memory for each source, begun anew where the picture does not go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline.frames.frame import Frame
from pipeline.masks.temporal import LONGEST_GAP_S, SceneCuts

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle
    from pipeline.engines.base import Engine, State


class Memories:
    """The states of all sources of an engine: ``engine.submit(…, state=memories.of(frame))``, frame after frame.

    A state begins anew at a source's first frame, at a scene cut, at another frame size, and where time goes back or leaps, as it does
    where a file begins again or a camera was lost; and where the engine has become another one.

    Args:
        engine: that the states are for; one whose program keeps none costs nothing.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sources: dict[str, _Source] = {}

    def of(self, frame: Frame) -> State | None:
        """The state to compute a frame with; None where the program keeps none. Each frame once, in its source's order."""
        if not self._engine.keeps_state:
            return None
        known = self._sources.get(frame.source)
        bundle = self._engine.bundle
        if known is None or known.bundle is not bundle or not known.goes_on(frame):
            known = self._sources[frame.source] = _Source(frame, self._engine.new_state(), bundle)
        return known.state


class _Source:
    def __init__(self, frame: Frame, state: State, bundle: Bundle) -> None:
        self.state, self.bundle = state, bundle
        self._size_hw, self._pts_s = frame.size_hw, frame.pts_s
        self._is_cut = SceneCuts()
        self._is_cut(_grey(frame))

    def goes_on(self, frame: Frame) -> bool:
        step_s = frame.pts_s - self._pts_s
        self._pts_s = frame.pts_s
        if frame.size_hw != self._size_hw or not 0 <= step_s <= LONGEST_GAP_S:  # false for NaN
            return False
        return not self._is_cut(_grey(frame))


def _grey(frame: Frame) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The picture in gray; a large one at a quarter of its size, which is enough to tell scenes apart."""
    if frame.format == "nv12":
        return frame.pixels[: frame.size_hw[0]]  # luma
    image = frame.image
    if min(image.shape[:2]) >= 512:
        image = np.ascontiguousarray(image[::4, ::4])
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
