"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pipeline.command.memory_limit import limit_bytes
from pipeline.command.run_options import RunOptions
from pipeline.flight.redacted import known_secrets, redacted
from pipeline.flow.events import Events
from pipeline.sinks.kinds import shown

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.flight.options import FlightOptions
    from pipeline.sources.base import Source
    from pipeline.stages.stage_timer import StageTimer

# Frames of the last seconds take this share of --memory-limit at most, or so much where there is none.
_FLIGHT_SHARE, _FLIGHT_BYTES = 4, 256_000_000


def open_watchers(
    options: RunOptions, engine: Engine, sources: Sequence[Source], timer: StageTimer, stack: ExitStack
) -> Sequence[Events]:
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
    watchers: list[Events] = []
    if options.flight is not None:
        watchers.append(_flight_recorder(options, options.flight, engine, sources, timer, stack))
    return watchers


def _flight_recorder(
    options: RunOptions,
    flight: FlightOptions,
    engine: Engine,
    sources: Sequence[Source],
    timer: StageTimer,
    stack: ExitStack,
) -> Events:
    from pipeline.flight.recorder import About, FlightRecorder  # only now: few runs record, and it reads OpenCV

    addresses = [*options.sources, *options.outputs.names, options.outputs.save or ""]
    servers = options.model.servers
    tokens = [None if options.page is None else options.page.token, None if servers is None else servers.token]
    secrets = known_secrets(addresses, tokens)
    outputs = replace(options.outputs, names=tuple(map(shown, options.outputs.names)))
    memory_bytes = limit_bytes(options.memory_bytes)
    about = About(
        redacted(asdict(replace(options, outputs=outputs)), secrets),
        secrets,
        options.live.stall_s,
        _FLIGHT_BYTES if memory_bytes is None else memory_bytes // _FLIGHT_SHARE,
    )
    recorder = FlightRecorder(flight, engine, sources, about, timer)
    stack.callback(recorder.close)
    if threading.current_thread() is threading.main_thread():
        stack.callback(signal.signal, signal.SIGUSR1, signal.signal(signal.SIGUSR1, recorder.asked_by_signal))
    return recorder
