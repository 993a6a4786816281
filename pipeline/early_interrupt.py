"""Ctrl-C while a command still imports what it needs: ``pipeline.signals`` answers it later, and is itself to be imported."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what ``signal`` is made of: built in
import os
from typing import Any, NoReturn

_STATUS = 130


def end_on_interrupt() -> None:
    """From now on SIGINT ends the process at once, silently, with the status that it has later too; ignored, it stays so."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _end)


def _end(*_: Any) -> NoReturn:
    os._exit(_STATUS)
