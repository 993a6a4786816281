"""What all commands share: options that fail in one line, and the exit status."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

from pipeline.errors import ERRORS_VARIABLE, EdgemaskError, OptionError
from pipeline.signals import StoppedError, ends_on_signals
from pipeline.terminal import hold_standard_streams, one_line, write_line

_OF_ANY_WIDTH: Any = partial(argparse.HelpFormatter, width=80)

_called_as: ContextVar[str | None] = ContextVar("called_as", default=None)


@contextmanager
def called_as(program: str) -> Iterator[None]:
    """Within the body commands call themselves so in their help and their errors, such as "edgemask compile"."""
    token = _called_as.set(program)
    try:
        yield
    finally:
        _called_as.reset(token)


class OptionParser(argparse.ArgumentParser):
    """argparse, with what is wrong as an ``OptionError`` of one line that names the nearest option or value there is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prog = _called_as.get() or self.prog

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse does, which makes a formatter to check each option, and asks for the terminal's width for it."""
        formatter, self.formatter_class = self.formatter_class, _OF_ANY_WIDTH
        try:
            return super().add_argument(*names, **options)
        finally:
            self.formatter_class = formatter

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message.

        Raises:
            OptionError: always.
        """
        if message.startswith("unrecognized arguments: "):
            wrong = next((word for word in message.split() if word.startswith("-")), "")
            message += nearest(wrong.partition("=")[0], self._option_string_actions)
        raise OptionError(f"{message} (see {self.prog} --help)")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # No shell has expanded "--output=~/x", nor a path in YAML: it would be a new folder of the name "~".
        return super()._get_value(action, os.path.expanduser(arg_string) if arg_string.startswith("~") else arg_string)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = nearest(str(value), choices) or f" (choose from {', '.join(choices)})"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")


def nearest(wrong: str, there: Iterable[str]) -> str:
    """What to say of a name that does not exist: ": did you mean 'NAME'?", or nothing where none is near."""
    import difflib  # only a mistake needs it

    names = list(there)
    near = difflib.get_close_matches(wrong, names, 1) or [name for name in names if wrong and name.startswith(wrong)]
    return f": did you mean {near[0]!r}?" if near else ""


def share(text: str) -> float:
    """An option's value as a number from 0 to 1, for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads an option's value as a whole number in these bounds, for argparse.

    Args:
        least: the smallest that is taken.
        most: the largest; None: there is none.
    """

    def read(text: str) -> int:
        # Not all that int() reads: neither other scripts' digits nor underscores, nor numbers that fill a screen.
        value = int(text) if re.fullmatch(r"[+-]?\d{1,12}", text, re.ASCII) else least - 1
        if value < least or (most is not None and value > most):
            to = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}{to}, got {text}")
        return value

    return read


class SaidError(EdgemaskError):
    """A mistake that another process has told the user of already."""


def run_command(command: Callable[[], None], mistakes: tuple[type[Exception], ...] = (EdgemaskError,)) -> int:
    """Run a command's body.

    SIGINT and SIGTERM end it cleanly, through ``StoppedError`` in the main thread; a second one ends the process at once.

    Args:
        command: the body.
        mistakes: exceptions that are the user's to mend: their sentence is printed, and the status is 2. Any other is a bug.

    Returns:
        The exit status: 0, 2, 130 or 143.
    """
    hold_standard_streams()
    try:
        with ends_on_signals():
            command()
    except SaidError:
        return 2
    except mistakes as error:
        _tell(one_line(str(error)))
        return 2
    except StoppedError as stopped:
        return stopped.status
    return 0


def _tell(sentence: str) -> None:
    handle = os.environ.get(ERRORS_VARIABLE, "")
    if handle.isdecimal():
        with suppress(OSError):
            os.write(int(handle), sentence.encode(errors="replace"))
            return
    write_line(f"error: {sentence}")
