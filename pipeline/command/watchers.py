"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.audit.rate import AUTO, AuditRate, Rate
from pipeline.command.run_options import RunOptions
from pipeline.engines.reference import is_reference
from pipeline.errors import OptionError
from pipeline.flow.events import Events
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.audit.shadow_gate import ShadowGate
    from pipeline.engines.base import Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)


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
    gate = open_audit(options.audit, engine, sources, stack)
    if gate is not None:
        watchers.append(gate)
    return watchers


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


def audit_of(watchers: Sequence[Events]) -> ShadowGate | None:
    """The shadow gate among those who watch; None: there is none."""
    from pipeline.audit.shadow_gate import ShadowGate

    return next((watcher for watcher in watchers if isinstance(watcher, ShadowGate)), None)


def with_audits(options: RunOptions, watchers: Sequence[Events]) -> RunOptions:
    """The options whose outputs tell of audits, where there are some."""
    gate = audit_of(watchers)
    return options if gate is None else replace(options, recording=replace(options.recording, audited=gate.newest))
