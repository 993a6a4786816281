"""An output for the frames of one source among several."""

from __future__ import annotations

from pipeline.frames.frame import Frame
from pipeline.sinks.base import Sink


class OfSource(Sink):
    """Passes on what comes from one source.

    Args:
        name: the source's.
        sink: its output, which this one ends.

    Attributes:
        source: the source's name.
    """

    def __init__(self, name: str, sink: Sink) -> None:
        self.source, self._sink = name, sink

    @property
    def written(self) -> str:  # type: ignore[override]
        """As the output says."""
        return self._sink.written

    @property
    def stopped(self) -> bool:  # type: ignore[override]
        """As the output says."""
        return self._sink.stopped

    @property
    def comes_back(self) -> bool:  # type: ignore[override]
        """As the output says."""
        return self._sink.comes_back

    @property
    def leaves_views(self) -> bool:  # type: ignore[override]
        """As the output says."""
        return self._sink.leaves_views

    def write(self, frame: Frame) -> None:
        """Pass a frame of the source on."""
        if frame.source == self.source:
            self._sink.write(frame)

    def idle(self) -> None:
        """Likewise."""
        self._sink.idle()

    def close(self) -> None:
        """Finish the output."""
        self._sink.close()

    @property
    def problem(self) -> str:
        """The output's."""
        return self.failed or self._sink.problem

    def again(self) -> bool:
        """Ask the output."""
        return self._sink.again()

    def cut_off(self) -> None:
        """Tell the output that its source ended too soon."""
        self._sink.cut_off()

    def discard(self) -> None:
        """Discard the output."""
        self._sink.discard()
