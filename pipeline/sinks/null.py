"""No output: for measuring."""

from __future__ import annotations

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.overlay import Renderer
from pipeline.sinks.base import Sink
from pipeline.sinks.options import DEFAULTS, SinkOptions


class NullSink(Sink):
    """Takes every frame and keeps none."""

    def __init__(
        self,
        spec: str,
        info: SourceInfo,
        renderer: Renderer,
        options: SinkOptions = DEFAULTS,
    ) -> None:
        pass

    def write(self, frame: Frame) -> None:
        """Take a frame."""
        return
