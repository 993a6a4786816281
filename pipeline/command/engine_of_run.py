"""The engine of a run: which model, and how it is opened; begun as soon as the options are known."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import PUBLISHED, open_model
from pipeline.command.run_options import ModelOptions, RunOptions
from pipeline.engines import ENGINES, is_undecided, open_engine
from pipeline.errors import EdgemaskError, SourceError
from pipeline.machine.gpu_sign import is_seen
from pipeline.sources.kinds import kind_of, name_and_spec
from pipeline.stages.prefetch import Prefetch

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle
    from pipeline.engines.base import Engine
    from pipeline.frames.frame import SourceInfo

# From so many frames on, their rate counts more than how soon the first one is there.
_LONG_FRAMES = 8
# In so many frames what is faster has made up for finding it out.
_TUNED_FRAMES = 500
# After a power cut a camera may need minutes until it knows its users, and a server until it has its models.
_BEGINS_S = 120.0


def refused_s(options: RunOptions) -> float:
    """How long a peer is tried that refuses us or is not there: not at all for a person who waits and can mend the one address."""
    if len(options.sources) > 1 or "NOTIFY_SOCKET" in os.environ:
        return math.inf
    return 0.0 if sys.stderr.isatty() else _BEGINS_S


def open_for(
    options: RunOptions,
    bundle: Bundle,
    infos: Sequence[SourceInfo],
    *,
    tune: bool = True,
    begun: HeadStart | None = None,
) -> Engine:
    """The engine that runs a bundle as the options ask, for the frames of some sources.

    Args:
        options: of the run.
        bundle: of the model.
        infos: of the sources.
        tune: find out on the way what is the fastest, where that pays.
        begun: has perhaps opened it already.

    Raises:
        EdgemaskError: see ``pipeline.engines.open_engine``.
    """
    model = options.model
    is_live, counts = any(info.live for info in infos), [info.frame_count for info in infos]
    overlap = _is_long(options, counts, live=is_live)
    tune = tune and model.may_tune and _is_tuned(options, infos)
    if begun is not None and (engine := begun.take(bundle, overlap=overlap, tune=tune)) is not None:
        return engine
    return open_engine(
        bundle,
        model.backend,
        overlap=overlap,
        rebuild=partial(rebuild_plan, quiet=options.quiet) if model.may_build else None,
        servers=model.servers and replace(model.servers, goes_on=is_live, refused_s=refused_s(options)),
        tune=tune,
    )


def _is_long(options: RunOptions, counts: Sequence[int | None], *, live: bool) -> bool:
    """Whether more frames a second are worth that each takes longer: not for one picture, nor for a camera or a governor."""
    if options.masks.fps is not None or live:
        return False
    known = [count for count in (options.max_frames, *counts) if count is not None]
    return not known or min(known) >= _LONG_FRAMES


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


class HeadStart:
    """Opens a run's engine on a thread while the command imports what reads and shows frames.

    A thread, for a runtime loads a program without Python's lock, so that it takes no time from the rest. How the engine is opened
    depends on the sources, which are not open yet: where they are not what their names promise, what was opened is closed again.

    Only for processors: a GPU's runtimes belong to the thread that begins with them. Nor for a network that must be compiled first.

    Args:
        options: of the run.
    """

    def __init__(self, options: RunOptions) -> None:
        self._model = options.model
        self._overlap = False
        self._opening: Prefetch[Engine] | None = None
        self._engine: Engine | None = None
        if not _has_output(options) or not _runs_here(options.model):
            return
        specs = [name_and_spec(source)[1] for source in options.sources]
        try:
            kinds = [kind_of(spec) for spec in specs]
        except SourceError:  # is told when it is opened
            return
        pictures = (kind.folders and os.path.isfile(spec) for kind, spec in zip(kinds, specs, strict=True))
        counts = [1 if is_picture else None for is_picture in pictures]
        self._overlap = _is_long(options, counts, live=any(kind.live for kind in kinds))
        self._opening = Prefetch(_opened(options.model, self._overlap), 1, name="engine", join_s=None)

    def __enter__(self) -> HeadStart:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._close()

    def wait(self) -> None:
        """Until it is open, or cannot be."""
        if self._opening is None:
            return
        with self._opening as opening, suppress(EdgemaskError):  # which is told when it is opened once more
            self._engine = opening.within(None)
        self._opening = None

    def take(self, bundle: Bundle, *, overlap: bool, tune: bool) -> Engine | None:
        """The engine, which is the caller's then; None if there is none that is asked for.

        Args:
            bundle: that it runs.
            overlap: as ``pipeline.engines.open_engine`` has it, as the next.
            tune: find out what is faster, if that is not known.
        """
        self.wait()
        is_other = self._engine is None or self._engine.bundle != bundle or self._overlap != overlap
        if is_other or (tune and is_undecided(bundle, self._model.backend, overlap=overlap)):
            self._close()
        engine, self._engine = self._engine, None
        return engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _has_output(options: RunOptions) -> bool:
    """Whether one is named: where a window cannot be shown, a run without is refused."""
    return bool(options.outputs.names) or options.outputs.save is not None or options.page is not None


def _runs_here(model: ModelOptions) -> bool:
    """Whether a processor of this machine runs it, and nothing is to be made first, as far as that is known without a look inside."""
    if model.servers is not None:
        return False
    if model.backend == "auto":
        is_cpu = not is_seen(Path("/"), os.environ)
    else:
        kind = ENGINES.own.get(model.backend)
        is_cpu = kind is not None and not (kind.gpu or kind.remote or kind.device_files)
    return is_cpu and (os.path.isdir(model.name) or (PUBLISHED / model.name).is_dir())


def _opened(model: ModelOptions, overlap: bool) -> Iterator[Engine]:
    bundle = open_model(model.name)
    if not bundle.manifest.engines:  # why plans are not used is told once
        yield open_engine(bundle, model.backend, overlap=overlap)
