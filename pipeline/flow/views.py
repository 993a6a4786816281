"""From frames to views: the mask, what is done to it, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from pipeline.flow.inference import Looks, infer
from pipeline.frames.frame import Frame, Image
from pipeline.quick_dataclass import dataclass
from pipeline.stages.stage_timer import StageTimer

if TYPE_CHECKING:
    from pipeline.engines.base import Engine


class Governing(Protocol):
    """Who decides which frames the engine computes, such as ``pipeline.masks.governor.Governor``."""

    def masked(
        self, frames: Iterable[Frame], engine: Engine, timer: StageTimer, computed: Callable[[Frame], None]
    ) -> Iterator[Frame]:
        """Add its mask to each frame; all come, in order. ``computed`` is told of those that the engine has computed."""
        ...


@dataclass(frozen=True, slots=True)
class Views:
    """How a frame gets its mask and its view.

    Attributes:
        render: (image, mask) to the view.
        looks: the look in which the engine draws the view beside the mask; None: ``render`` draws all. It draws too where ``looks``
            gives None, and where ``refine`` gives a frame another mask.
        governor: decides which frames are computed; None: every one.
        refine: gives a frame another mask before it is drawn; never writes to the one that is there.
        annotate: draws onto the finished view.
    """

    render: Callable[[Image, Image], Image]
    looks: Looks | None = None
    governor: Governing | None = None
    refine: Callable[[Frame], None] | None = None
    annotate: Callable[[Frame, StageTimer], None] | None = None

    def masked(
        self,
        frames: Iterable[Frame],
        engine: Engine,
        timer: StageTimer,
        more: Callable[[], bool],
        computed: Callable[[Frame], None] = lambda _: None,
    ) -> Iterator[Frame]:
        """Add its mask to each frame; for the arguments see `infer`."""
        if self.governor is not None:
            return self.governor.masked(frames, engine, timer, computed)
        return infer(frames, engine, timer, more, self.looks, computed)

    def finish(self, frame: Frame, timer: StageTimer) -> None:
        """Give a frame that has a mask its view."""
        drawn_from = frame.mask
        if self.refine is not None:
            self.refine(frame)
        assert frame.mask is not None
        if frame.lying_view is None or frame.mask is not drawn_from:
            frame.view = self.render(frame.image, frame.mask)
        if self.annotate is not None:
            self.annotate(frame, timer)
