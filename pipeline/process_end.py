"""The end of a command's process, at once."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

_undone: list[Callable[[], object]] = []


def at_every_end(undo: Callable[[], object]) -> None:
    """Have something called when this process ends by itself, by ``leave`` too: what the system would keep without it.

    Args:
        undo: quick, safe while other threads still run, and where it is called twice.
    """
    atexit.register(undo)
    _undone.append(undo)


def leave(status: int) -> NoReturn:
    """End the process now, with nothing closed: after a second signal, or where native code hangs in another thread."""
    for undo in _undone:
        with suppress(Exception):
            undo()
    os._exit(status)


def end_process(status: int) -> NoReturn:
    """End the process, after what was registered for its end, without taking Python and its libraries apart.

    That takes a tenth of a short run, and nothing comes of it: what a command has opened it has closed. Not where somebody waits for
    the command to return, such as a profiler, or where a thread is to be waited for.
    """
    import threading  # which --version does not need

    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    try:
        if _is_called_by_python() and all(thread.daemon for thread in others):
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(status)
    finally:
        sys.exit(status)  # what could not be flushed is told there


def _is_called_by_python() -> bool:
    """Whether nothing is around who calls ``end_process``: it is a module that ``python -m`` runs, or an installed script's."""
    callers: list[dict[str, Any]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if not any(frame.f_globals is caller for caller in callers):  # they may hold arrays, which have no "=="
            callers.append(frame.f_globals)
        frame = frame.f_back
    names = [caller.get("__name__") for caller in callers]
    return [name for name in names if name != "runpy"] in (["__main__"], ["edgemask.__main__", "__main__"])
