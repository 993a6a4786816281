"""Another model under a run: read, opened and judged beside the one that runs, which it follows between two frames."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundles.bundle import MANIFEST_NAME, Bundle
from pipeline.command.engine_of_run import open_for, read_model
from pipeline.command.freed_memory import give_back_freed_memory
from pipeline.command.model_trial import check_fit, judge
from pipeline.command.run_options import RunOptions
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import BundleError, EdgemaskError, OptionError
from pipeline.flow.events import Events
from pipeline.frames.frame import Frame
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)

# Frames of the run that a new engine is judged by: of all sources, and how far apart those of one source are.
_KEPT, _APART_S = 8, 0.5
TAKEN, REFUSED = "taken", "refused"
"""What may come of a model that was to take over."""


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
