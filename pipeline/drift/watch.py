"""Looks at a frame of each source about once a second, and says when they are unlike everything that the bundle was verified on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pipeline.bundles.bundle import DRIFT_NAME, Bundle
from pipeline.drift.farthest import FarthestFrames
from pipeline.drift.figures import figures_of, thumbnail
from pipeline.drift.summary import Distance, Summary
from pipeline.errors import BundleError
from pipeline.flow.events import Events
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source
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

    def forget(self) -> None:
        """Begin anew: another model is asked."""
        self.facts, self.is_unlike, self.distances = None, False, deque(maxlen=_IN_A_ROW)

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
        sources: of the run; of them, and of those that join, live ones are watched.
        farthest: keeps frames that are unlike; None: they are not kept.
        files: watch what is not live too.
    """

    def __init__(
        self,
        summary: Summary,
        sources: Sequence[SourceInfo],
        farthest: FarthestFrames | None = None,
        *,
        files: bool = False,
    ) -> None:
        super().__init__()
        self._summary: Summary | None = summary
        self._farthest, self._files = farthest, files
        self._watched = {info.name: _Watched(info) for info in sources if info.live or files}

    def swapped(self, bundle: Bundle) -> None:
        """Compare with what another bundle was verified on from now on; with nothing, if it does not know that."""
        try:
            self._summary = Summary.in_bundle(bundle)
            problem = "" if self._summary else f"got one without {DRIFT_NAME}"
        except BundleError as error:  # the run goes on
            self._summary, problem = None, str(error)
        if problem:
            log.info(f"no drift is told: expected a bundle that knows what frames it was verified on: {problem}")
        for watched in list(self._watched.values()):
            watched.forget()

    def joined(self, source: Source) -> None:
        """Watch one more."""
        if source.info.live or self._files:
            self._watched[source.info.name] = _Watched(source.info)

    def left(self, source: Source) -> None:
        """Forget a source that has gone."""
        self._watched.pop(source.info.name, None)

    def written(self, frame: Frame, dropped: int) -> None:
        """Look at the frame if it is time."""
        watched, summary = self._watched.get(frame.source), self._summary
        if watched is None or summary is None or not watched.is_due(frame):
            return
        distance = summary.distance(figures_of(thumbnail(frame)))
        watched.distances.append(distance.value)
        if self._farthest is not None and distance.value > summary.limit:
            self._farthest.offer(frame, distance.value)
        self._judge(watched, distance, summary)

    def facts(self, source: str) -> dict[str, float] | None:
        """What the page tells of a source: "distance", "limit", "unlike"; None of one that is not watched. On any thread."""
        watched = self._watched.get(source)
        return None if watched is None else watched.facts

    def on_page(self) -> Mapping[str, Any]:
        """The page tells how far a source's frames are."""
        return {"drift": self.facts}

    def _judge(self, watched: _Watched, newest: Distance, summary: Summary) -> None:
        limit, middle = summary.limit, median(watched.distances)
        if len(watched.distances) == _IN_A_ROW:
            if not watched.is_unlike and middle > limit:
                watched.is_unlike = True
                log.warning(
                    f"{watched.name}: unlike everything that the model was verified on ({summary.origin}): {newest.words}, "
                    f"distance {middle:.1f} and at most {limit:.1f} is usual: its masks may be wrong, compile it with --verify or "
                    "--calib frames of this kind"
                )
            elif watched.is_unlike and middle <= _OVER * limit:
                watched.is_unlike = False
                log.info(f"{watched.name}: like what the model was verified on again, distance {middle:.1f}")
        watched.facts = {"distance": round(middle, 2), "limit": round(limit, 2), "unlike": watched.is_unlike}
