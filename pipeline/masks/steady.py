"""What becomes of a mask between the engine and the picture: drawn to edges, steadied over time, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Frame
from pipeline.masks.temporal import DEFAULT_TIME_CONSTANT_S, Smoothing
from pipeline.render.overlay import Renderer
from pipeline.sources.base import Source

TIME_CONSTANTS_S = {"on": DEFAULT_TIME_CONSTANT_S, "strong": 2 * DEFAULT_TIME_CONSTANT_S}


class Steady:
    """Changes the masks of frames in place, each source's with a memory of its own.

    Args:
        smooth: "off", "on", "strong", or "auto": on for live sources. The masks of files are those that the network gives.
        edges: draw masks to the edges in the picture.
        task: what the masks are.
        renderer: its threshold is the one around which masks are held.
        sources: their names are those that frames carry.
    """

    def __init__(self, smooth: str, edges: bool, task: Task, renderer: Renderer, sources: Sequence[Source]) -> None:
        self._renderer = renderer
        self._smooth, self._task = smooth, task
        self._smoothings: dict[str, Smoothing] = {}
        for source in sources:
            self.join(source)
        self._edges = edges and task == "binary"

    def join(self, source: Source) -> None:
        """Begin a memory of a source, if it needs one."""
        chosen = self._smooth if self._smooth != "auto" else "on" if source.info.live else "off"
        if chosen != "off":
            self._smoothings[source.info.name] = Smoothing(self._task, time_constant_s=TIME_CONSTANTS_S[chosen])

    def leave(self, source: Source) -> None:
        """Forget it."""
        self._smoothings.pop(source.info.name, None)

    @property
    def changes(self) -> bool:
        """Whether any mask will be another one."""
        return self._edges or bool(self._smoothings)

    def __call__(self, frame: Frame) -> None:
        """Replace the frame's mask, if anything is asked for; one that is stale does not belong to this picture, and stays."""
        assert frame.mask is not None
        if frame.stale:
            return
        if self._edges:  # first: what edges make of noise is smoothed too
            from pipeline.masks.edges import refine_edges

            frame.mask = refine_edges(frame.image, frame.mask)
        smoothing = self._smoothings.get(frame.source)
        if smoothing is not None:
            smoothing.threshold = self._renderer.look.threshold
            frame.mask = smoothing(frame.image, frame.mask, frame.pts_s)
