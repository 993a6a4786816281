"""A run that is looked at anew while it goes on: when it is asked to (SIGHUP), or its model's folder has changed."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command.model_swap import signature
from pipeline.command.run_options import RunOptions
from pipeline.errors import EdgemaskError, OptionError
from pipeline.machine.memory import charged_to_nobody
from pipeline.process_end import leave
from pipeline.signals import Hangups, StoppedError
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.command.model_swap import ModelSwap
    from pipeline.command.service import Service
    from pipeline.command.source_changes import SourceChanges

log = logger_of(__name__)

WATCH_EVERY_S = 1.0
"""How often a model's folder is looked at; a change is acted upon when the next look finds no other."""
# Who ends a run waits ten seconds for the process, and the engine may need six of them.
_LEAVE_S = 2.0

# Options that a run takes while it goes on; all others need a restart.
_MAY_CHANGE = {"source", "sources", "model", "config"}

Reread = Callable[[], RunOptions]
"""Reads the options again, as they are now."""


class Reload:
    """Does on a thread of its own what a reload takes, one at a time; use it in a ``with`` block.

    What is asked for while one goes on is done once more after it, however often it was asked for.

    Args:
        options: those that the run began with.
        reread: gives those of now.
        hangups: tells that somebody has asked.
        changes: bring other sources.
        swap: brings another model.
        service: is told that a reload begins, and ends with a line.
        status: gives that line.
    """

    def __init__(  # Many parameters: each is another part of the run, and all are asked of one thread
        self,
        options: RunOptions,
        reread: Reread,
        hangups: Hangups,
        changes: SourceChanges,
        swap: ModelSwap,
        service: Service,
        status: Callable[[], str],
    ) -> None:
        self._options, self._reread, self._hangups = options, reread, hangups
        self._changes, self._swap = changes, swap
        self._service, self._status = service, status
        self._model = options.model
        self._seen = self._last = self._signature()
        self._changed = threading.Condition()
        self._asked = self._is_over = self._done = False
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)

    def __enter__(self) -> Reload:
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._changes.end()
        self._swap.end()
        if not isinstance(error, StoppedError):
            self._thread.join()
            return
        self._thread.join(_LEAVE_S)
        if (
            self._thread.is_alive()
        ):  # it opens or compiles something: code that still runs when Python ends would abort it
            leave(error.status)

    def pulse(self) -> None:
        """Begin what was asked for, and tell the service what has ended; on the run's thread, which this never holds up."""
        if self._hangups.came:
            self._hangups.came = False
            self._service.reloading()
            with self._changed:
                self._asked, self._done = True, False
                self._changed.notify_all()
        if self._done:
            self._done = False
            self._service.ready(self._status(), "; ".join(filter(None, (self._problem, self._swap.told))))

    def _work(self) -> None:
        with charged_to_nobody():
            self._work_until_over()

    def _work_until_over(self) -> None:
        while True:
            wait_s = WATCH_EVERY_S if self._options.watch_model else None
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._is_over, wait_s)
                if self._is_over:
                    return
                is_asked, self._asked = self._asked, False
            if not is_asked and not self._has_other_model():
                continue
            try:
                if is_asked:
                    self._reload()
                else:
                    self._take_model()
            except Exception:  # noqa: BLE001 - a bug here must not end what runs, nor be silent
                log.warning(f"reload: a bug: {traceback.format_exc()}")
            self._tell_done()

    def _reload(self) -> None:
        try:
            options = self._reread()
        except EdgemaskError as error:
            self._problem = f"reload: nothing is changed: {error}"
            log.warning(self._problem)
            return
        self._problem = ""
        fixed = sorted(
            name
            for name in {*self._options.named, *options.named} - _MAY_CHANGE
            if self._options.named.get(name) != options.named.get(name)
        )
        if fixed:
            self._problem = f"reload: needs a restart: {', '.join(name.replace('_', '-') for name in fixed)}"
            log.warning(self._problem)
        problem = self._changes(replace(self._options, sources=options.sources))
        if problem:
            self._problem = "; ".join(filter(None, (self._problem, problem)))
        self._model = replace(self._options.model, name=options.model.name)
        has_other_model = self._take_model()
        if problem is None and not has_other_model and not fixed:
            log.info("reload: nothing has changed")

    def _take_model(self) -> bool:
        self._seen = self._signature()
        return self._swap(replace(self._options, model=self._model), self._tell_done)

    def _tell_done(self) -> None:
        with self._changed:
            self._done = not self._asked

    def _has_other_model(self) -> bool:
        """Whether the model's folder has changed, and no more since the last look."""
        now, last = self._signature(), self._last
        self._last = now
        return now == last and now not in ((), self._seen)

    def _signature(self) -> tuple[object, ...]:
        return signature(Path(self._model.name)) if self._options.watch_model else ()


def check_watched(options: RunOptions) -> None:
    """Refuse to watch what is no folder.

    Raises:
        OptionError: the model is a name.
    """
    if options.watch_model and not os.path.isdir(options.model.name):
        raise OptionError(
            f"--watch-model: expected --model DIR beside it, got {options.model.name}, which is no folder"
        )
