"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import SinkError, SourceError
from pipeline.frames.frame import Frame
from pipeline.stages.stage_timer import StageTimer

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle
    from pipeline.flow.run import Lineup
    from pipeline.sources.base import Source


class Events:
    """Hears of a run; a subclass overrides what it wants to know.

    Args:
        timer: gets the time of each stage; None: one of its own.
    """

    def __init__(self, timer: StageTimer | None = None) -> None:
        self.timer = timer or StageTimer()

    def begun(self, lineup: Lineup) -> None:
        """The run reads its sources now, and others may join. On the thread of ``run``."""

    def written(self, frame: Frame, dropped: int) -> None:
        """A frame is in all outputs; so many were dropped so far. On the thread of ``run``."""

    def computed(self, frame: Frame) -> None:
        """The engine has computed this frame's mask, and nothing has been done to it yet.

        On the thread of the engine, which waits until this returns. The frame and its arrays belong to the run: what is kept is
        copied, but for ``pixels``, which nobody writes to.
        """

    def swapped(self, bundle: Bundle) -> None:
        """The engine runs this other bundle from the next frame on. On the thread of the engine, which waits until this returns."""

    def pulse(self) -> None:
        """The loop has come round: after each frame, and a few times a second while none comes. On the thread of ``run``."""

    def on_page(self) -> Mapping[str, Any]:
        """What the page tells of it and may ask of it: fields of ``pipeline.page.options.Watched``."""
        return {}

    def joined(self, source: Source) -> None:
        """A source is about to be read from now on. On the thread of ``run``."""

    def left(self, source: Source) -> None:
        """A source is read no more, and its last frame is written. On the thread of ``run``."""

    def lost(self, error: SinkError | SourceError) -> None:
        """An output or a source has failed while others go on. On any thread."""
