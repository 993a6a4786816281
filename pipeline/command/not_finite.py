"""Frames with scores that are NaN or infinite: their masks are wrong and may look like empty ones, so the user is told."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.frames.frame import Frame
from pipeline.quick_dataclass import dataclass
from pipeline.stages.telemetry import Snapshot
from pipeline.terminal import logger_of

log = logger_of(__name__)

AGAIN_S = 60.0
"""After so long a source's frames are told of again if they go on; then after twice as long each time, up to ``AGAIN_MOST_S``."""

AGAIN_MOST_S = 3600.0


@dataclass(slots=True)
class _Told:
    """What was told of a source."""

    due_s: float
    wait_s: float = AGAIN_S
    since: int = 0


class NotFiniteLines:
    """Call it with each frame; the first one of a source is logged at once, those after it together."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def __call__(self, frame: Frame) -> None:
        """Tell of the frame if it is time to."""
        if not frame.not_finite:
            return
        now_s = time.monotonic()
        told = self._told.get(frame.source)
        if told is None:
            self._told[frame.source] = _Told(now_s + AGAIN_S)
            more = "check the weights, or compile with --precision fp32"
        else:
            told.since += 1
            if now_s < told.due_s:
                return
            more = f"{told.since} such frames since this was last said"
            told.wait_s = min(2 * told.wait_s, AGAIN_MOST_S)
            told.due_s, told.since = now_s + told.wait_s, 0
        log.warning(
            f"warning: {frame.source}, frame {frame.index}: expected finite scores, got {frame.not_finite} that are NaN or infinite, "
            f"where the mask is wrong: {more}"
        )


def not_finite_summary(snapshots: Sequence[Snapshot]) -> list[str]:
    """A line for each source that had such frames."""
    return [
        f"warning: {snapshot.name}: scores that are NaN or infinite in {snapshot.not_finite} of {snapshot.frames_out} frames"
        for snapshot in snapshots
        if snapshot.not_finite
    ]
