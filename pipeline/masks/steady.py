"""What becomes of a mask between the engine and the picture: drawn to edges, steadied over time, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame
from pipeline.masks.temporal import DEFAULT_TIME_CONSTANT_S, Smoothing
from pipeline.render.overlay import Renderer
from pipeline.sources.base import Source

SMOOTH = ("auto", "off", "on", "strong")
TIME_CONSTANTS_S = {"on": DEFAULT_TIME_CONSTANT_S, "strong": 2 * DEFAULT_TIME_CONSTANT_S}


class Steady:
    """Changes the masks of frames in place, each source's with a memory of its own.

    Args:
        smooth: "off", "on", "strong", or "auto": on for live sources. The masks of files are those that the network gives.
        edges: draw masks to the edges in the picture.
        task: what the masks are.
        renderer: its threshold is the one around which masks are held.
        sources: their names are those that frames carry.

    Attributes:
        smooth: as it is set now.
        edges: likewise.
    """

    def __init__(self, smooth: str, edges: bool, task: Task, renderer: Renderer, sources: Sequence[Source]) -> None:
        self._renderer = renderer
        self._task = task
        self._live = {source.info.name: source.info.live for source in sources}  # replaced and not changed
        self._smoothings: dict[str, Smoothing] = {}
        self.smooth, self.edges = "off", False
        self.change(smooth, edges=edges)

    def change(self, smooth: str, *, edges: bool) -> None:
        """Do otherwise from the next frame on; from any thread. Where ``smooth`` is another, what was remembered is forgotten.

        Raises:
            OptionError: smooth is none of those above.
        """
        if smooth not in SMOOTH:
            raise OptionError(f"smooth: expected {', '.join(SMOOTH)}, got {smooth!r:.60}")
        if smooth != self.smooth:
            self._smoothings = self._smoothings_of(smooth, self._live)
        self.smooth, self.edges = smooth, edges and self.has_edges

    def _smoothings_of(self, smooth: str, live: Mapping[str, bool]) -> dict[str, Smoothing]:
        chosen = {name: smooth if smooth != "auto" else "on" if is_live else "off" for name, is_live in live.items()}
        return {
            name: Smoothing(self._task, time_constant_s=TIME_CONSTANTS_S[one])
            for name, one in chosen.items()
            if one != "off"
        }

    @property
    def has_edges(self) -> bool:
        """Whether masks have soft edges, which can be drawn to those of the picture."""
        return self._task == "binary"

    def join(self, source: Source) -> None:
        """Begin a memory of a source, if it needs one."""
        info = source.info
        self._live = {**self._live, info.name: info.live}
        self._smoothings = {**self._smoothings, **self._smoothings_of(self.smooth, {info.name: info.live})}

    def leave(self, source: Source) -> None:
        """Forget it."""
        gone = source.info.name
        self._live = {name: live for name, live in self._live.items() if name != gone}
        self._smoothings = {name: smoothing for name, smoothing in self._smoothings.items() if name != gone}

    @property
    def changes(self) -> bool:
        """Whether any mask will be another one, as it is set now."""
        return self.edges or bool(self._smoothings)

    def __call__(self, frame: Frame) -> None:
        """Replace the frame's mask, if anything is asked for; one that is stale does not belong to this picture, and stays."""
        assert frame.mask is not None
        if frame.stale:
            return
        if self.edges:  # first: what edges make of noise is smoothed too
            from pipeline.masks.edges import refine_edges

            frame.mask = refine_edges(frame.image, frame.mask)
        smoothing = self._smoothings.get(frame.source)
        if smoothing is not None:
            smoothing.threshold = self._renderer.look.threshold
            frame.mask = smoothing(frame.image, frame.mask, frame.pts_s)
