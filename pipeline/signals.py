"""What SIGINT, SIGTERM and SIGHUP do: end a command cleanly, and where it matters only after what must not be cut.

SIGHUP can also ask for a new look at the configuration.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.process_end import leave

# Long enough for a finalizer to end, too short for anybody to see.
_AGAIN_S = 0.05


class Hangups:
    """What has come of SIGHUP.

    Attributes:
        came: there was one that is no end; who answers it sets this back.
    """

    def __init__(self) -> None:
        self.came = False


class StoppedError(BaseException):
    """A signal asked the process to end; ``status`` is what a shell expects of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.status = 128 + number


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Put a first signal that ends the process off until the end of the body; a second one ends the process at once.

    Yields:
        The signal that came, once it has: a body that loops looks at it and raises ``StoppedError`` itself.
    """
    came: list[int] = []

    def put_off(number: int, _: FrameType | None) -> None:
        if _is_no_end(number):
            return
        if came:
            leave(128 + number)
        came.append(number)

    before = {number: signal.signal(number, put_off) for number in _signals()}
    is_answered = False
    try:
        yield came
    except BaseException as error:
        is_answered = isinstance(error, StoppedError) or isinstance(error.__cause__, StoppedError)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came and not is_answered:
            signal.raise_signal(came[0])


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Within the body these signals raise ``StoppedError`` in the main thread; a second one ends the process at once.

    Python drops what is raised inside a finalizer or a callback from C, and whoever sent the signal would wait without end: it
    is then raised again, a little later.
    """
    before = sys.unraisablehook

    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, StoppedError):
            before(dropped)
            return
        _listen()
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.number))
        again.daemon = True
        again.start()

    sys.unraisablehook = unraisable
    _listen()
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def reloads_on_hangup() -> Iterator[Hangups]:
    """Within the body SIGHUP does not end the process, unless its terminal has been closed; for the main thread.

    Under ``nohup`` SIGHUP does nothing, here as elsewhere.
    """
    global _hangups, _had_terminal
    if not hasattr(signal, "SIGHUP"):  # nobody can ask
        yield Hangups()
        return
    _hangups, _had_terminal = Hangups(), _has_terminal()
    try:
        yield _hangups
    finally:
        _hangups = None


_hangups: Hangups | None = None
_had_terminal = False


def _has_terminal() -> bool:
    """Whether the process has a terminal that was not closed: the kernel takes a closed one away before it sends SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _is_no_end(number: int) -> bool:
    if _hangups is None or number != signal.SIGHUP or (_had_terminal and not _has_terminal()):
        return False
    _hangups.came = True
    return True


def _signals() -> list[int]:
    """Those that end a command: a closed terminal too, but under ``nohup``."""
    ends = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    return list(ends)


def _listen() -> None:
    for number in _signals():
        signal.signal(number, _first)


def _first(number: int, _: FrameType | None) -> None:
    if _is_no_end(number):
        return
    for other in _signals():
        signal.signal(other, _second)
    raise StoppedError(number)


def _second(number: int, _: FrameType | None) -> None:
    if not _is_no_end(number):
        leave(128 + number)
