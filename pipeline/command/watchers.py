"""Who watches a run beside its outputs, as the options ask."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.command.run_options import RunOptions
from pipeline.flow.events import Events

if TYPE_CHECKING:
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
    return []
