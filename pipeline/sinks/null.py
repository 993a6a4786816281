"""No output: for measuring."""

from __future__ import annotations

from pipeline.frames.frame import Frame
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import SinkKind

NULL = SinkKind(
    name="null", opens="NullSink", help="nothing, for measuring", order=80, forms=("null",), words=("null",)
)


class NullSink(Sink):
    """Takes every frame and keeps none."""

    leaves_views = True

    def write(self, frame: Frame) -> None:
        """Take a frame."""
        return
