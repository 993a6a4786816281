"""What came of an audit, as a record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Audited:
    """A frame's mask as it was computed in the run, compared with that of the bundle's program in FP32.

    Attributes:
        source: the frame's.
        index: the frame's.
        pts_s: its presentation time in seconds.
        captured: when it was captured, UTC, ISO 8601.
        iou: intersection over union of the two masks at 0.5, 0 to 1; of classes the mean over them. 0 where scores are not finite.
        mae: mean absolute error, 0 to 1; of classes the share of pixels that differ.
        empty: one of the masks is empty and the other is not.
        judged: there is a clear subject, so that the IoU says something: see ``pipeline.frames.iou``.
    """

    source: str
    index: int
    pts_s: float
    captured: str
    iou: float
    mae: float
    empty: bool
    judged: bool
