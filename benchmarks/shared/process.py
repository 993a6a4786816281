"""A call in a process of its own: its memory is its own, and a crash ends that process alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from pipeline.errors import BackendUnavailableError

Result = TypeVar("Result")


def in_its_own_process(call: Callable[..., Result], *arguments: object) -> Result:
    """The result of a call in a new process: libraries of CUDA are not beside others there, and an error of CUDA ends with it.

    Args:
        call: at the top of a module; what it raises is raised here.
        arguments: they and the result can be pickled.

    Raises:
        BackendUnavailableError: the process crashed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_talk_to_standard_error) as process:
        try:
            return process.submit(call, *arguments).result()
        except BrokenProcessPool as error:
            raise BackendUnavailableError(
                "its process ended before it was done: what is above on standard error may say why"
            ) from error


def peak_memory_mb() -> float:
    """The most memory of this process that was in the machine's at once, in MB of 10⁶ bytes.

    Not ``getrusage``, whose figure a new process inherits from the one that started it.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        (kilobytes,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024 / 1e6


def _talk_to_standard_error() -> None:
    os.dup2(2, 1)  # the table goes to standard output; libraries talk
