"""What is drawn onto a finished view: the head-up display and the legend, each of which can be switched while running."""

from __future__ import annotations

import time
from collections import deque

from pipeline.bundles.bundle import Manifest
from pipeline.frames.frame import Frame
from pipeline.render.hud import area_percent, draw_hud, draw_legend, legend_entries
from pipeline.render.overlay import Renderer
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer

_RATE_OVER_FRAMES = 30


class Annotations:
    """Call it with each rendered frame.

    Attributes:
        hud: draw rate, times and model.
        legend: draw the classes and the share of the picture that each covers.
    """

    def __init__(self, manifest: Manifest, backend: str, renderer: Renderer, *, hud: bool, legend: bool) -> None:
        self.hud = hud
        self.legend = legend
        self._manifest = manifest
        self._backend = backend
        self._renderer = renderer
        self._written_s: dict[str, deque[float]] = {}
        self._timer = StageTimer()
        self._age_ms = 0.0

    def runs(self, manifest: Manifest, backend: str) -> None:
        """Draw another model's name from now on; its classes are the same."""
        self._manifest, self._backend = manifest, backend

    def join(self, source: Source) -> None:
        """Its rate is counted with its first frame."""

    def leave(self, source: Source) -> None:
        """Forget its rate."""
        self._written_s.pop(source.info.name, None)

    def __call__(self, frame: Frame, timer: StageTimer) -> None:
        """Draw onto ``frame.view``, in place, and count the frame."""
        self._written_s.setdefault(frame.source, deque(maxlen=_RATE_OVER_FRAMES)).append(time.monotonic())
        self._timer, self._age_ms = timer, frame.age_ms
        self.redraw(frame)

    def redraw(self, frame: Frame) -> None:
        """Draw onto another view of the last frame, in place; its rate and age stay what they were."""
        if frame.lying_view is None or frame.mask is None:
            raise ValueError(f"{frame!r} has no mask or view yet")
        if not (self.legend or self.hud):
            return
        view = frame.view  # in BGR from now on
        assert view is not None
        if self.legend:
            look, task = self._renderer.look, self._renderer.task
            names = self._manifest.classes
            percents = area_percent(frame.mask, task, look.threshold, len(names))
            draw_legend(view, legend_entries(percents, names, look.palette, task))
        if self.hud:
            draw_hud(view, self._hud_lines(frame))

    def _hud_lines(self, frame: Frame) -> list[str]:
        times = "  ".join(f"{stage.name} {stage.p50_ms:.1f}" for stage in self._timer.result())
        lines = [
            f"{self.rate_hz(frame.source):.1f} FPS  {frame.source} #{frame.index}",
            f"ms p50: {times}  age {self._age_ms:.0f}",
            f"{self._manifest.model} {self._manifest.precision}  {self._backend}",
        ]
        if frame.stale:
            lines.append("stale mask")
        if frame.not_finite:
            lines.append(f"{frame.not_finite} scores NaN or infinite: the mask is wrong")
        return lines

    def rate_hz(self, source: str) -> float:
        """Frames of a source per second, over its last frames."""
        written_s = self._written_s.get(source)
        if written_s is None or len(written_s) < 2:
            return 0.0
        return (len(written_s) - 1) / max(written_s[-1] - written_s[0], 1e-9)
