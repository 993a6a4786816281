"""Another model under a run: read, opened and judged beside the one that runs, which it follows between two frames."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.bundles.bundle import MANIFEST_NAME, Bundle
from pipeline.command.freed_memory import give_back_freed_memory
from pipeline.command.model_trial import check_fit, judge
from pipeline.command.run_options import ModelOptions, RunOptions
from pipeline.engines import open_engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import BundleError, EdgemaskError, OptionError
from pipeline.flow.events import Events
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)

# Frames of the run that a new engine is judged by: of all sources, and how far apart those of one source are.
_KEPT, _APART_S = 8, 0.5
# From so many frames on, their rate counts more than how soon the first one is there.
_LONG_FRAMES = 8
# In so many frames what is faster has made up for finding it out.
_TUNED_FRAMES = 500

TAKEN, REFUSED = "taken", "refused"
"""What may come of a model that was to take over."""


def open_for(options: RunOptions, bundle: Bundle, infos: Sequence[SourceInfo], *, tune: bool = True) -> Engine:
    """The engine that runs a bundle as the options ask, for the frames of some sources.

    Args:
        options: of the run.
        bundle: of the model.
        infos: of the sources.
        tune: find out on the way what is the fastest, where that pays.

    Raises:
        EdgemaskError: see ``pipeline.engines.open_engine``.
    """
    model = options.model
    rebuild = partial(rebuild_plan, quiet=options.quiet) if model.may_build else None
    servers = model.servers and replace(model.servers, goes_on=any(info.live for info in infos))
    return open_engine(
        bundle,
        model.backend,
        overlap=_is_long(options, infos),
        rebuild=rebuild,
        servers=servers,
        tune=tune and model.may_tune and _is_tuned(options, infos),
    )


def _is_long(options: RunOptions, infos: Sequence[SourceInfo]) -> bool:
    """Whether more frames a second are worth that each takes longer: not for one picture, nor for a camera or a governor."""
    if options.masks.fps is not None or any(info.live for info in infos):
        return False
    counts = [count for count in (options.max_frames, *(info.frame_count for info in infos)) if count is not None]
    return not counts or min(counts) >= _LONG_FRAMES


def _is_tuned(options: RunOptions, infos: Sequence[SourceInfo]) -> bool:
    """Whether finding out what is the fastest comes back within the run, or will in the next: that of a camera, or of a long video."""
    if options.decode == "cuda":  # frames are to stay where they are, and other backends would have them copied down
        return False
    counts = [info.frame_count for info in infos if not info.live]
    counts.append(options.max_frames)
    return all(count is None or count >= _TUNED_FRAMES for count in counts)


def read_model(model: ModelOptions, *, quiet: bool) -> Bundle:
    """The bundle that the options name; compiled where it is a name that is not there yet."""
    return open_model(model.name, on_gpu=model.may_build_for_gpu, quiet=quiet)


def signature(folder: Path) -> tuple[object, ...]:
    """What tells a bundle's folder and its files from others that were put in their place; empty while nothing is there."""
    try:
        with os.scandir(folder) as entries:
            files = {entry.name: entry.stat() for entry in entries if entry.is_file()}
    except OSError:
        return ()
    if MANIFEST_NAME not in files:
        return ()
    return tuple((name, found.st_ino, found.st_mtime_ns, found.st_size) for name, found in sorted(files.items()))


class ModelSwap(Events):
    """Keeps a few frames of a run, and has another model take over.

    Args:
        engine: of the run, just opened.
        sources: of the run; the list may change.
        swapped: called when another model has taken over, on the engine's thread.

    Attributes:
        counts: how often a model was to take over, by what came of it.
        told: what came of the last one, in one line; empty before the first.
    """

    def __init__(self, engine: ReplaceableEngine, sources: Sequence[Source], swapped: Callable[[], None]) -> None:
        super().__init__()
        self.counts = {TAKEN: 0, REFUSED: 0}
        self.told = ""
        self._engine, self._sources, self._swapped = engine, sources, swapped
        self._read = engine.bundle.manifest
        self._kept: dict[str, deque[tuple[float, Frame]]] = {}

    def computed(self, frame: Frame) -> None:
        """Keep the frame, if the last one that was kept of its source is not too near."""
        if all(frame.source != source.info.name for source in self._sources):  # it has left
            return
        kept = self._kept.get(frame.source)
        most = max(1, _KEPT // max(1, len(self._sources)))
        if kept is None or kept.maxlen != most:
            kept = self._kept[frame.source] = deque(kept or (), maxlen=most)
        now_s = time.monotonic()
        if frame.mask is not None and (not kept or now_s >= kept[-1][0] + _APART_S):
            kept.append((now_s, replace(frame, mask=frame.mask.copy(), view=None, found=None)))

    def end(self) -> None:
        """The run has ended: a model that waits for the next frame is not taken any more. Closes the engine."""
        self._engine.close()

    def join(self, source: Source) -> None:
        """Its frames are kept from the first one on."""

    def leave(self, source: Source) -> None:
        """Keep nothing of a source that has gone."""
        self._kept.pop(source.info.name, None)

    def __call__(self, options: RunOptions, ready: Callable[[], None]) -> bool:
        """Have the model that the options name take over, and wait until it has; not on the engine's thread.

        Args:
            options: the model and how it is run.
            ready: called when that is decided: it takes over with the next frame, or does not.

        Returns:
            Whether there was another one; that it was not taken is logged.
        """
        self.told = ""
        try:
            with ExitStack() as stack:
                try:
                    bundle = read_model(options.model, quiet=options.quiet)
                    if bundle.manifest in (self._read, self._engine.bundle.manifest):
                        return False
                    engine, found = self._opened(options, bundle, stack)
                except MemoryError as error:
                    raise BundleError("there is too little memory for two models at once") from error
                stack.pop_all()
        except EdgemaskError as error:
            self._tell(REFUSED, f"model: not taken, the one before runs on: {' '.join(str(error).split())}")
            return True
        manifest = bundle.manifest
        height, width = manifest.network_size_hw
        what = f"model: {manifest.model}, {manifest.precision}, {height}×{width} inside, on {engine.description}"
        ready()
        if self._engine.replace(engine, self._swapped):
            self._read = manifest
            self._tell(TAKEN, f"{what}, has taken over: {found}")
        give_back_freed_memory()
        return True

    def _opened(self, options: RunOptions, bundle: Bundle, stack: ExitStack) -> tuple[Engine, str]:
        """The engine of a bundle, and what was found of its masks; closed with the stack."""
        infos = [source.info for source in self._sources]
        before = self._engine
        check_fit(bundle.manifest, before.bundle.manifest, infos)
        if options.masks.compose == "device" and not bundle.manifest.composes:
            raise OptionError("--compose device: expected a bundle whose program composes, got one that does not")
        # What is judged is what runs then, not something that may become another.
        engine = stack.enter_context(open_for(options, bundle, infos, tune=False))
        engine.try_out()
        return engine, judge(engine, list(self._frames()), infos)

    def _frames(self) -> Iterable[Frame]:
        for kept in list(self._kept.values()):
            yield from (frame for _, frame in list(kept))

    def _tell(self, result: str, line: str) -> None:
        self.counts = {**self.counts, result: self.counts[result] + 1}
        self.told = line if result == REFUSED else ""
        (log.warning if result == REFUSED else log.info)(line)
