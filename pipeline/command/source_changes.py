"""Sources that join a run and leave it, with their outputs and all that is kept of them."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import EdgemaskError, SinkError
from pipeline.flow.events import Events
from pipeline.sinks.of_source import OfSource
from pipeline.sources import open_sources
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.command.outputs import OutputOpener
    from pipeline.command.run_options import RunOptions
    from pipeline.flow.run import Lineup
    from pipeline.sinks.base import Sink
    from pipeline.sources.base import Source

log = logger_of(__name__)

# The last frames of a source that leaves are on their way for no longer, unless something hangs.
_LEFT_S = 10.0
_LOOK_EVERY_S = 0.01


class Follower(Protocol):
    """Who keeps something of each source."""

    def join(self, source: Source) -> None:
        """A source is about to be read."""

    def leave(self, source: Source) -> None:
        """A source is read no more, and its last frame is written."""


class SourceChanges(Events):
    """Has the sources of a run become others while it goes on; use it in a ``with`` block, which closes those that have joined.

    Args:
        sources: of the run at first, in the order of the options; changed here, on the run's thread.
        sinks: of the run, each of one source (``OfSource``) or for all; likewise.
        options: those that name the first sources.

    Attributes:
        followers: are told of each that joins and leaves, on the run's thread.
        opener: opens the outputs of one that joins; set before the run begins.
    """

    opener: OutputOpener

    def __init__(self, sources: list[Source], sinks: list[Sink], options: RunOptions) -> None:
        super().__init__()
        self.followers: list[Follower] = []
        self._sources, self._sinks = sources, sinks
        self._now = list(zip(options.sources, sources, strict=True))
        self._lineup: Lineup | None = None
        self._calls: deque[_Call] = deque()
        self._is_over = False

    def __enter__(self) -> SourceChanges:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._now:
            one[1].close()

    def begun(self, lineup: Lineup) -> None:
        """The run reads its sources."""
        self._lineup = lineup

    def pulse(self) -> None:
        """Do on the run's thread what is to be done there."""
        while self._calls:
            self._calls.popleft()()

    def end(self) -> None:
        """The run has ended: nothing is done on its thread any more."""
        self._is_over = True

    def __call__(self, options: RunOptions) -> str | None:
        """Open the sources that are new in the options, and let those leave that are not in them; not on the run's thread.

        A source whose string stays is left as it is. Where a new one cannot be opened nothing is changed.

        Returns:
            What went wrong, which is logged too; empty if nothing did; None: the sources are the same.
        """
        wanted = Counter(options.sources)
        leaving = []
        for spec, source in self._now:
            if wanted[spec]:
                wanted[spec] -= 1
            else:
                leaving.append((spec, source))
        joining = list(wanted.elements())
        lineup = self._lineup
        if lineup is None or not (leaving or joining):
            return None
        stay = [source.info.name for _, source in self._now if source not in [gone for _, gone in leaving]]
        joined: list[tuple[str, Source]] = []
        lineup.hold(on=True)  # so that the last one may be replaced
        try:
            joined = list(zip(joining, open_sources(joining, options.live, stay, options.decode), strict=True))
            problems = [self._leave(lineup, *one) for one in leaving] + [self._join(lineup, *one) for one in joined]
            return "; ".join(filter(None, problems))
        except _OverError:
            for one in joined:
                one[1].close()
            return ""
        except EdgemaskError as error:
            problem = f"sources: nothing is changed: {error}"
            log.warning(problem)
            return problem
        finally:
            lineup.hold(on=False)

    def _leave(self, lineup: Lineup, spec: str, source: Source) -> str:
        deadline_s = time.monotonic() + _LEFT_S
        lineup.leave(source)
        while not lineup.has_left(source) and time.monotonic() < deadline_s and not self._is_over:
            time.sleep(_LOOK_EVERY_S)
        problem = self._on_run(partial(self._forget, lineup, source))
        source.close()
        self._now.remove((spec, source))
        return problem

    def _forget(self, lineup: Lineup, source: Source) -> str:
        """End what is left of a source; gives what went wrong."""
        name = source.info.name
        own = [sink for sink in self._sinks if isinstance(sink, OfSource) and sink.source == name]
        lineup.forget(source, own)
        self._sources.remove(source)
        problem = ""
        for sink in own:
            self._sinks.remove(sink)
            try:
                sink.close()
            except SinkError as error:
                problem = str(error)
                log.warning(f"error: {error}; the rest goes on")
        for follower in self.followers:
            follower.leave(source)
        written = ", ".join(sink.written for sink in own if sink.written)
        log.info(f"source: {name} has left" + (f": {written}" if written else ""))
        return problem

    def _join(self, lineup: Lineup, spec: str, source: Source) -> str:
        problem = self._on_run(partial(self._add, lineup, source))
        if problem:
            source.close()
        else:
            self._now.append((spec, source))
        return problem

    def _add(self, lineup: Lineup, source: Source) -> str:
        """Open a source's outputs and have it read; gives what went wrong."""
        sinks: list[Sink] = []
        try:
            self.opener(sinks, source, many=True)
        except EdgemaskError as error:
            for sink in sinks:
                with suppress(SinkError):
                    sink.discard()
            problem = f"{source.info.name}: not taken: {error}"
            log.warning(problem)
            return problem
        for follower in self.followers:
            follower.join(source)
        self._sinks += sinks
        self._sources.append(source)
        lineup.join(source, sinks)
        log.info(f"source: {source.info.name} has joined, {source.info.description}")
        return ""

    def _on_run(self, work: Callable[[], str]) -> str:
        call = _Call(work)
        self._calls.append(call)
        while not call.done.wait(0.1):
            if self._is_over:
                raise _OverError
        return call.result


class _Call:
    """Something that is done on another thread."""

    def __init__(self, work: Callable[[], str]) -> None:
        self._work, self.done, self.result = work, threading.Event(), ""

    def __call__(self) -> None:
        self.result = self._work()
        self.done.set()


class _OverError(Exception):
    """The run has ended."""
