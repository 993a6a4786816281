"""A run that is looked at anew while it goes on: when it is asked to (SIGHUP), or its model's folder has changed."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command.model_swap import signature
from pipeline.command.run_options import RunOptions
from pipeline.errors import EdgemaskError, OptionError
from pipeline.signals import Hangups, StoppedError
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.command.model_swap import ModelSwap
    from pipeline.command.service import Service

log = logger_of(__name__)

WATCH_EVERY_S = 1.0
"""How often a model's folder is looked at; a change is acted upon when the next look finds no other."""
# Who ends a run waits ten seconds for the process, and the engine may need six of them.
_LEAVE_S = 2.0

Reread = Callable[[], RunOptions]
"""Reads the options again, as they are now."""


class Reload:
    """Does on a thread of its own what a reload takes, one at a time; use it in a ``with`` block.

    What is asked for while one goes on is done once more after it, however often it was asked for.

    Args:
        options: those that the run began with.
        reread: gives those of now.
        hangups: tells that somebody has asked.
        swap: brings another model.
        service: is told that a reload begins, and ends with a line.
    """

    def __init__(
        self, options: RunOptions, reread: Reread, hangups: Hangups, swap: ModelSwap, service: Service
    ) -> None:
        self._options, self._reread, self._hangups = options, reread, hangups
        self._swap, self._service = swap, service
        self._folder = Path(options.model.name) if options.watch_model else None
        self._seen = self._last = signature(self._folder) if self._folder is not None else ()
        self._changed = threading.Condition()
        self._asked = self._is_over = self._done = self._told = False
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)

    def __enter__(self) -> Reload:
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._swap.end()
        if not isinstance(error, StoppedError):
            self._thread.join()
            return
        self._thread.join(_LEAVE_S)
        if (
            self._thread.is_alive()
        ):  # it opens or compiles something: code that still runs when Python ends would abort it
            os._exit(error.status)

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
            self._service.reloaded(self._swap.told)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._is_over, WATCH_EVERY_S if self._folder else None)
                if self._is_over:
                    return
                is_asked, self._asked = self._asked, False
            try:
                if is_asked:
                    self._reload()
                elif self._has_other_model():
                    self._swap(self._options, self._tell_done)
            except Exception:  # noqa: BLE001 - a bug here must not end what runs, nor be silent
                log.warning(f"reload: a bug: {traceback.format_exc()}")
            self._tell_done()

    def _reload(self) -> None:
        try:
            options = self._reread()
        except EdgemaskError as error:
            log.warning(f"reload: nothing is changed: {error}")
            return
        if not self._swap(options, self._tell_done):
            log.info("reload: the model is the one that runs")

    def _tell_done(self) -> None:
        with self._changed:
            self._done = not self._asked

    def _has_other_model(self) -> bool:
        """Whether the folder has changed, and no more since the last look."""
        assert self._folder is not None
        now = signature(self._folder)
        is_settled = now == self._last
        self._last = now
        if now in ((), self._seen) or not is_settled:
            return False
        self._seen = now
        return True


def check_watched(options: RunOptions) -> None:
    """Refuse to watch what is no folder.

    Raises:
        OptionError: the model is a name.
    """
    if options.watch_model and not os.path.isdir(options.model.name):
        raise OptionError(
            f"--watch-model: expected --model DIR beside it, got {options.model.name}, which is no folder"
        )
