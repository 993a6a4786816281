"""What SIGINT and SIGTERM do: end a command cleanly, and where it matters only after what must not be cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(BaseException):
    """A signal asked the process to end; ``status`` is what a shell expects of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Put a first SIGINT or SIGTERM off until the end of the body; a second one ends the process at once."""
    came: list[int] = []

    def put_off(number: int, _: FrameType | None) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)

    before = {number: signal.signal(number, put_off) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def first_signal(number: int, _: FrameType | None) -> None:
    """Raise ``StoppedError``; a second signal ends the process at once."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, lambda again, _: os._exit(128 + again))
    raise StoppedError(number)
