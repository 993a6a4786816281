"""What a command shows its user: one line at a time, above a progress bar where there is one, and the log as such lines.

Everything in this project logs below the logger "edgemask": INFO is what a command says as it goes on, WARNING what it says even
with ``--quiet``. A program that imports the project gets the same records, and shows them or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGER = "edgemask"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def logger_of(module: str) -> logging.Logger:
    """Where a module logs; ``module`` is its ``__name__``."""
    return logging.getLogger(f"{LOGGER}.{module}")


def one_line(text: str) -> str:
    """A text in which the name of a file may hold line ends and a terminal's commands, without them."""
    return _CONTROL_CHARACTERS.sub(" ", text)


def write_line(line: str, file: TextIO | None = None) -> None:
    """Tell the user one line, above the bar if there is one.

    Args:
        line: without its end.
        file: where to; None: standard error. What cannot be written there is lost.
    """
    file = file or sys.stderr
    # Standard error may be closed, its disk full, its reader gone: a camera's run goes on without a log.
    with contextlib.suppress(OSError, ValueError):
        if file is None:
            return
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm  # a tenth of the time to the first mask, which only a terminal needs

            tqdm.write(line, file=file)
        else:
            file.write(f"{line}\n")
            file.flush()


def hold_standard_streams() -> None:
    """Keep 0, 1 and 2 from becoming other files where a caller has closed them: FFmpeg's messages would go into a recording.

    ``sys.stdout`` stays None where standard output is closed, for who asks for it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process


@contextmanager
def shown_log(*, quiet: bool = False, to_stdout: bool = False) -> Iterator[None]:
    """Show the log of this project as plain lines while the body runs.

    Args:
        quiet: warnings alone.
        to_stdout: on standard output, where the log is what a command was asked for.
    """
    handler = _Lines(to_stdout)
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, to_stdout: bool) -> None:
        super().__init__()
        self._to_stdout = to_stdout

    def emit(self, record: logging.LogRecord) -> None:
        write_line(record.getMessage(), sys.stdout if self._to_stdout else sys.stderr)
