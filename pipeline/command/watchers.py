"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.audit.rate import AUTO, AuditRate, Rate
from pipeline.bundles.bundle import DRIFT_NAME
from pipeline.command.run_options import RunOptions
from pipeline.engines.reference import is_reference
from pipeline.errors import OptionError
from pipeline.flow.events import Events
from pipeline.sinks.options import no_audit
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.audit.shadow_gate import ShadowGate
    from pipeline.drift.watch import InputDrift
    from pipeline.engines.base import Engine
    from pipeline.frames.audited import Audited
    from pipeline.sources.base import Source

log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Watchers:
    """Those who watch a run.

    Attributes:
        all: each is told of what happens.
        audited: gives the newest audit of a source; None where there is none.
    """

    all: Sequence[Events] = ()
    audited: Callable[[str], Audited | None] = no_audit


def open_watchers(options: RunOptions, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> Watchers:
    """Begin to watch; each is told of what happens in the run, after the frame is on its way.

    Args:
        options: what is watched.
        engine: computes the masks.
        sources: of the run.
        stack: ends the watching with the run.

    Raises:
        EdgemaskError: something cannot be watched as it is asked for.
    """
    drift = _open_drift(options, engine, sources, stack)
    gate = open_audit(options.audit, engine, sources, stack)
    watchers = [watcher for watcher in (drift, gate) if watcher is not None]
    return Watchers(watchers, no_audit if gate is None else gate.newest)


def _open_drift(options: RunOptions, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> InputDrift | None:
    """Watch the sources that ``--drift`` asks for; None where there are none, or the bundle does not know its frames."""
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


def open_audit(asked: AuditRate, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> ShadowGate | None:
    """The shadow gate as ``--audit`` asks for it; None: there is none.

    Raises:
        OptionError: it is asked for, and there is nothing to compare with.
    """
    live = any(source.info.live for source in sources)
    if asked == "off" or (asked == "auto" and (not live or is_reference(engine))):
        return None
    from pipeline.audit.shadow_gate import ShadowGate, nothing_to_compare  # a run without does not wait for it

    problem = nothing_to_compare(engine.bundle)
    if problem and asked == "auto":
        log.info(f"no audit: expected {problem}")
        return None
    if problem:
        raise OptionError(f"--audit: expected {problem}; or take --audit off")
    rate = asked if isinstance(asked, Rate) else AUTO
    gate = ShadowGate(engine.bundle, rate, [source.info.name for source in sources])
    stack.callback(gate.close)
    return gate


def with_audits(options: RunOptions, watchers: Watchers) -> RunOptions:
    """The options whose outputs tell of audits, where there are some."""
    return replace(options, recording=replace(options.recording, audited=watchers.audited))
