"""What draws in a run, made of its options: look, masks over time, annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command.run_options import LookOptions, MaskOptions, RunOptions
from pipeline.errors import OptionError, SourceError
from pipeline.flow.views import Views
from pipeline.frames.frame import Image
from pipeline.masks.steady import Steady
from pipeline.masks.tuning import Tuning
from pipeline.quick_dataclass import dataclass
from pipeline.render.annotations import Annotations
from pipeline.render.compose import composed_looks
from pipeline.render.look import Color, Look
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Task
    from pipeline.engines.base import Engine
    from pipeline.masks.governor import Governor
    from pipeline.sinks.base import Sink
    from pipeline.sources.base import Source

log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Appearance:
    """What draws, and what of it windows and the page can change.

    Attributes:
        renderer: its look is changed while it runs.
        annotations: likewise.
        views: both, with what is done to masks before.
        governor: of ``--fps``, which the views have too; None: there is none.
        tuning: what of smoothing, edges and rate can be changed while it runs.
        steady: what steadies masks, likewise.
    """

    renderer: Renderer
    annotations: Annotations
    views: Views
    governor: Governor | None = None
    tuning: Tuning | None = None
    steady: Steady | None = None

    @property
    def followers(self) -> list[Governor | Steady | Annotations]:
        """Those of it that keep something of each source."""
        return [one for one in (self.governor, self.steady, self.annotations) if one is not None]


def read_look(options: LookOptions) -> Look:
    """The look that a run begins with.

    Raises:
        OptionError: there is no such palette or background.
    """
    return Look(
        options.mode, options.alpha, options.threshold, load_palette(options.palette), _background(options.background)
    )


def make_appearance(options: RunOptions, look: Look, engine: Engine, sources: Sequence[Source]) -> Appearance:
    """Make what draws the masks of an engine over the frames of sources.

    Raises:
        OptionError: the engine's program cannot do what is asked for, or a rate is none.
    """
    manifest, masks = engine.bundle.manifest, options.masks
    renderer = Renderer(look, manifest.task)
    annotations = Annotations(manifest, engine.description, renderer, hud=options.look.hud, legend=options.look.legend)
    governor = _governor(masks, manifest.task, sources)
    steady = Steady(masks.smooth, masks.refine_edges, manifest.task, renderer, sources)
    views = Views(
        renderer,
        looks=composed_looks(masks.compose, engine, renderer, steady=steady.changes or governor is not None),
        governor=governor,
        # On the page it may be turned on later, and a source that joins may need it; where it changes nothing, the engine's view
        # stays.
        refine=steady if steady.changes or options.page is not None or options.reloads else None,
        annotate=annotations,
    )
    if options.decode == "cuda" and (views.looks is None or views.looks() is None):
        log.info(
            "--decode cuda: each frame is copied to the CPU too, which draws it: --render overlay and --smooth off, with a bundle "
            "compiled with --compose device, leave it on the GPU"
        )
    return Appearance(renderer, annotations, views, governor, Tuning(steady, governor), steady)


def leave_views(engine: Engine, appearance: Appearance, sinks: Sequence[Sink]) -> None:
    """With ``--decode cuda``: have views stay on the GPU if all outputs take them from there; else say why they come down.

    A view that stays and is asked for on the CPU all the same, by an output that joins later, is copied then.
    """
    if appearance.views.looks is None or appearance.views.looks() is None:
        return  # the CPU draws, which is told
    if engine.bundle.manifest.views != "nv12":
        problem = "the bundle gives them in BGR, and NVENC takes NV12 from there: compile it again"
    elif appearance.annotations.hud or appearance.annotations.legend:
        problem = "which draws --hud and --legend"
    elif not all(sink.leaves_views for sink in sinks):
        problem = "for not all outputs take them from the GPU, as a video, a recording and an RTSP stream that NVENC encodes do"
    else:
        engine.leaves_views = True
        return
    log.info(f"--decode cuda: views are copied to the CPU, {problem}")


def _governor(options: MaskOptions, task: Task, sources: Sequence[Source]) -> Governor | None:
    if options.fps is None:
        return None
    from pipeline.masks.governor import Governor

    return Governor(options.fps, task, live=[source.info.name for source in sources if source.info.live])


def _background(text: str | None) -> Color | Image | None:
    if text is None:
        return None
    if text.startswith("#"):
        return load_palette(text).color(1)  # the one color that is given; 0 is background
    from pipeline.sources.picture_file import read_picture

    try:
        return read_picture(Path(text))
    except SourceError as error:
        raise OptionError(f"--background: expected #rrggbb or a picture: {error}") from error
