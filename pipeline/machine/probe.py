"""What a probe gives, and processes that ask where asking could crash, hang or take the memory of this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

State = Literal["ok", "missing", "note"]

# A cold import from a Jetson's SD card takes 10 s and more.
TIMEOUT_S = 30.0

_MARK = "edgemask-doctor:"
_CHILD = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
sys.path[:] = json.loads(sys.argv[2])
found, problem = {}, None
try:
    exec(sys.argv[1], {"found": found})
except BaseException as error:
    lines = str(error).strip().splitlines()
    problem = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
print("\\n" + sys.argv[3] + json.dumps([found, problem]), flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    Attributes:
        key: a stable name for scripts, such as "tensorrt_rtx".
        title: the same for people, "TensorRT-RTX".
        state: "ok"; "missing", something this machine could use is not here or broken; or "note", which needs no action.
        text: what was found.
        mend: the command that mends or adds it; None where none does.
    """

    key: str
    title: str
    state: State
    text: str
    mend: str | None = None


@dataclass(frozen=True)
class Question:
    """Something to ask in a process of its own.

    Attributes:
        code: Python that fills the dict ``found``; or
        command: a program and its arguments.
    """

    code: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        found: what the code filled in; of a program its "output" (standard output) and "status".
        problem: why there is no answer, or only part of one, in a few words.
    """

    found: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that the rows are made from.

    Attributes:
        root: the folder that holds ``proc``, ``sys``, ``etc``, ``dev`` and ``usr``: "/", or a machine made for a test.
        versions: of the distributions that pip knows, by their normalized names ("opencv-python").
        answers: of the questions that were asked; a package that is not installed was not asked for.
        environment: variables of the process.
        failed: rows for questions that could not even be put.
    """

    root: Path
    versions: Mapping[str, str]
    answers: Mapping[str, Answer]
    environment: Mapping[str, str]
    failed: tuple[Finding, ...] = ()


def ask(questions: Mapping[str, Question]) -> dict[str, Answer]:
    """Ask all at once, each in a process of its own, and wait for each no longer than its time limit."""
    with ExitStack() as stack:
        children = {name: stack.enter_context(_Child(question)) for name, question in questions.items()}
        return {name: child.answer() for name, child in children.items()}


class _Child:
    """A process that answers a question. Output goes to files: nothing that holds a pipe open can make us wait."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._streams: list[IO[bytes]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: str | None = None

    def __enter__(self) -> _Child:
        question = self._question
        command = question.command or (
            *(sys.executable or "python3", "-c", _CHILD),
            *(question.code, json.dumps(sys.path), _MARK),
        )
        self._deadline_s = time.monotonic() + question.timeout_s
        self._streams = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._streams[0], stderr=self._streams[1]
            )
        except OSError as error:
            self._problem = f"{command[0]} cannot be started: {error.strerror or error}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            # A process that hangs inside a driver cannot be killed: it is left behind.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
        for stream in self._streams:
            stream.close()

    def answer(self) -> Answer:
        if self._process is None:
            return Answer(problem=self._problem)
        try:
            status = self._process.wait(timeout=max(self._deadline_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return Answer(problem=f"no answer within {self._question.timeout_s:g} s")
        output, errors = (self._text(stream) for stream in self._streams)
        if self._question.command:
            return _program_answer(status, output, errors)
        # Libraries print and crash on their way out: what was said before counts.
        for line in reversed(output.splitlines()):
            if line.startswith(_MARK):
                with suppress(ValueError):  # cut off, or mixed with what a library printed
                    found, problem = json.loads(line[len(_MARK) :])
                    return Answer(found, problem)
        return Answer(problem=_end(status, errors))

    @staticmethod
    def _text(stream: IO[bytes]) -> str:
        stream.seek(0)
        return stream.read().decode(errors="replace")


def _program_answer(status: int, output: str, errors: str) -> Answer:
    problem = _end(status, errors or output) if status else None
    return Answer({"output": output, "status": status}, problem)


def _end(status: int, errors: str) -> str:
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"crashed ({names.get(-status, f'signal {-status}')})"
    lines = errors.strip().splitlines()
    return f"ended with status {status}" + (f": {lines[-1].strip()[:120]}" if lines else "")
