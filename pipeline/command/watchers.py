"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.bundles.bundle import DRIFT_NAME
from pipeline.command.run_options import RunOptions
from pipeline.errors import OptionError
from pipeline.flow.events import Events

if TYPE_CHECKING:
    from pipeline.drift.watch import InputDrift
    from pipeline.engines.base import Engine
    from pipeline.sources.base import Source


def open_watchers(options: RunOptions, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> Sequence[Events]:
    """Begin to watch; each is told of what happens in the run, after the frame is on its way.

    Args:
        options: what is watched.
        engine: computes the masks.
        sources: of the run.
        stack: ends the watching with the run.

    Raises:
        EdgemaskError: something cannot be watched as it is asked for.
    """
    watchers: list[Events] = []
    drift = open_drift(options, engine, sources, stack)
    if drift is not None:
        watchers.append(drift)
    return watchers


def drift_of(watchers: Sequence[Events]) -> InputDrift | None:
    """The watch on the input among those who watch; None: there is none."""
    from pipeline.drift.watch import InputDrift

    return next((watcher for watcher in watchers if isinstance(watcher, InputDrift)), None)


def open_drift(options: RunOptions, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> InputDrift | None:
    """Watch the sources that ``--drift`` asks for; None where there are none, or the bundle does not know its frames.

    Raises:
        OptionError: it is asked for, and the bundle does not know; or its folder cannot be used.
        BundleError: what the bundle knows is of another form.
    """
    infos = [source.info for source in sources if source.info.live or options.drift.when == "on"]
    bundle = engine.bundle
    if options.drift.folder is not None and not infos:
        raise OptionError(
            "--drift-frames: expected --drift on beside it for files, which are not watched by themselves, got auto"
        )
    if options.drift.when == "off" or not infos:
        return None
    if DRIFT_NAME not in bundle.manifest.files:
        if options.drift.when == "on" or options.drift.folder is not None:
            raise OptionError(
                f"--drift: expected a bundle that knows what frames it was verified on, got {bundle.folder} without {DRIFT_NAME}: "
                "compile it again with this version"
            )
        return None
    from pipeline.drift.farthest import FarthestFrames
    from pipeline.drift.summary import Summary
    from pipeline.drift.watch import InputDrift

    path = bundle.folder / DRIFT_NAME
    summary = Summary.from_json(path.read_text(encoding="utf-8"), str(path))
    farthest = None
    if options.drift.folder is not None:
        farthest = FarthestFrames(options.drift.folder)
        stack.callback(farthest.close)
    return InputDrift(summary, infos, farthest)
