"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.audit.rate import AUTO, AuditRate, Rate
from pipeline.bundles.bundle import DRIFT_NAME
from pipeline.command.memory_limit import limit_bytes
from pipeline.command.run_options import RunOptions
from pipeline.engines.reference import is_reference
from pipeline.errors import OptionError
from pipeline.flight.redacted import known_secrets, redacted
from pipeline.flow.events import Events
from pipeline.quick_dataclass import dataclass
from pipeline.sinks.kinds import shown
from pipeline.sinks.options import no_audit
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.audit.shadow_gate import ShadowGate
    from pipeline.drift.watch import InputDrift
    from pipeline.engines.base import Engine
    from pipeline.flight.recorder import FlightRecorder
    from pipeline.frames.audited import Audited
    from pipeline.sources.base import Source
    from pipeline.stages.stage_timer import StageTimer

# Frames of the last seconds take this share of --memory-limit at most, or so much where there is none.
_FLIGHT_SHARE, _FLIGHT_BYTES = 4, 256_000_000

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


def open_watchers(
    options: RunOptions, engine: Engine, sources: Sequence[Source], timer: StageTimer, stack: ExitStack
) -> Watchers:
    """Begin to watch; each is told of what happens in the run, after the frame is on its way.

    Args:
        options: what is watched.
        engine: computes the masks.
        sources: of the run.
        timer: has the times of its stages.
        stack: ends the watching with the run.

    Raises:
        EdgemaskError: something cannot be watched as it is asked for.
    """
    drift = open_drift(options, engine, sources, stack)
    gate = open_audit(options.audit, engine, sources, stack)
    recorder = _open_flight(options, engine, sources, timer, stack)
    if gate is not None and recorder is not None:
        gate.on_below = partial(recorder.event, "audit")
    watchers = [watcher for watcher in (drift, gate, recorder) if watcher is not None]
    return Watchers(watchers, no_audit if gate is None else gate.newest)


def open_drift(options: RunOptions, engine: Engine, sources: Sequence[Source], stack: ExitStack) -> InputDrift | None:
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

    summary = Summary.in_bundle(bundle)
    assert summary is not None  # it was looked for
    farthest = None
    if options.drift.folder is not None:
        farthest = FarthestFrames(options.drift.folder)
        stack.callback(farthest.close)
    return InputDrift(summary, infos, farthest, files=options.drift.when == "on")


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


def with_audits(options: RunOptions, audited: Callable[[str], Audited | None]) -> RunOptions:
    """The options whose outputs tell of audits, where there are some."""
    return replace(options, recording=replace(options.recording, audited=audited))


def _open_flight(
    options: RunOptions, engine: Engine, sources: Sequence[Source], timer: StageTimer, stack: ExitStack
) -> FlightRecorder | None:
    """The recorder that ``--flight`` asks for; None: there is none."""
    if options.flight is None:
        return None
    from pipeline.flight.recorder import About, FlightRecorder  # only now: few runs record, and it reads OpenCV

    addresses = [*options.sources, *options.outputs.names, options.outputs.save or ""]
    servers = options.model.servers
    tokens = [None if options.page is None else options.page.token, None if servers is None else servers.token]
    secrets = known_secrets(addresses, tokens)
    outputs = replace(options.outputs, names=tuple(map(shown, options.outputs.names)))
    memory_bytes = limit_bytes(options.memory_bytes)
    about = About(
        redacted(asdict(replace(options, outputs=outputs, named={})), secrets),
        secrets,
        options.live.stall_s,
        _FLIGHT_BYTES if memory_bytes is None else memory_bytes // _FLIGHT_SHARE,
    )
    recorder = FlightRecorder(options.flight, engine, sources, about, timer)
    stack.callback(recorder.close)
    if threading.current_thread() is threading.main_thread():
        stack.callback(signal.signal, signal.SIGUSR1, signal.signal(signal.SIGUSR1, recorder.asked_by_signal))
    return recorder
