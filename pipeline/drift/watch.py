"""Looks at a frame of each source about once a second, and says when they are unlike everything that the bundle was verified on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pipeline.drift.farthest import FarthestFrames
from pipeline.drift.figures import figures_of, thumbnail
from pipeline.drift.summary import Distance, Summary
from pipeline.flow.events import Events
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.terminal import logger_of

# How often, and of how many frames in a row the middle one counts: a lamp, a lorry before the lens or a flash is no other season.
_EVERY_S = 1.0
_IN_A_ROW = 15
# It is over when the middle one is well within the limit, and not told again at each step around it.
_OVER = 0.9

log = logger_of(__name__)


class _Watched:
    """What is known of one source; ``facts`` is replaced as a whole, so that other threads may read it."""

    def __init__(self, info: SourceInfo) -> None:
        self.name = info.name
        self.facts: dict[str, float] | None = None
        self.is_unlike = False
        self.distances: deque[float] = deque(maxlen=_IN_A_ROW)
        self._is_live, self._has_rate = info.live, info.fps is not None
        self._last_s: float | None = None

    def is_due(self, frame: Frame) -> bool:
        """Whether it is time to look: by the clock for what is live, by time stamps for a video, and for pictures each."""
        now_s = time.monotonic() if self._is_live else frame.pts_s
        is_timed = self._is_live or self._has_rate
        if is_timed and self._last_s is not None and 0 <= now_s - self._last_s < _EVERY_S:
            return False
        self._last_s = now_s
        return True


class InputDrift(Events):
    """Tells when a source's frames are unlike those that the bundle was verified on, and when they no longer are.

    Args:
        summary: the bundle's.
        sources: that are watched; others are not looked at.
        farthest: keeps frames that are unlike; None: they are not kept.
    """

    def __init__(self, summary: Summary, sources: Sequence[SourceInfo], farthest: FarthestFrames | None = None) -> None:
        super().__init__()
        self._summary, self._farthest = summary, farthest
        self._watched = {info.name: _Watched(info) for info in sources}

    def written(self, frame: Frame, dropped: int) -> None:
        """Look at the frame if it is time."""
        watched = self._watched.get(frame.source)
        if watched is None or not watched.is_due(frame):
            return
        distance = self._summary.distance(figures_of(thumbnail(frame)))
        watched.distances.append(distance.value)
        if self._farthest is not None and distance.value > self._summary.limit:
            self._farthest.offer(frame, distance.value)
        self._judge(watched, distance)

    def facts(self, source: str) -> dict[str, float] | None:
        """What the page tells of a source: "distance", "limit", "unlike"; None of one that is not watched. On any thread."""
        watched = self._watched.get(source)
        return None if watched is None else watched.facts

    def on_page(self) -> Mapping[str, Any]:
        """The page tells how far a source's frames are."""
        return {"drift": self.facts}

    def _judge(self, watched: _Watched, newest: Distance) -> None:
        limit, middle = self._summary.limit, median(watched.distances)
        if len(watched.distances) == _IN_A_ROW:
            if not watched.is_unlike and middle > limit:
                watched.is_unlike = True
                log.warning(
                    f"{watched.name}: unlike everything that the model was verified on ({self._summary.origin}): {newest.words}, "
                    f"distance {middle:.1f} and at most {limit:.1f} is usual: its masks may be wrong, compile it with --verify or "
                    "--calib frames of this kind"
                )
            elif watched.is_unlike and middle <= _OVER * limit:
                watched.is_unlike = False
                log.info(f"{watched.name}: like what the model was verified on again, distance {middle:.1f}")
        watched.facts = {"distance": round(middle, 2), "limit": round(limit, 2), "unlike": watched.is_unlike}
