"""Child processes that do the sources of a corpus, and what becomes of a source that ends its process."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, cast

from pipeline.corpus.job import Job
from pipeline.corpus.listing import Entry
from pipeline.corpus.results import sweep
from pipeline.errors import BackendUnavailableError, SinkError
from pipeline.own_process import module_command

TRIES = 2
"""So often a source is tried before it counts as failed."""

# Read by OpenCV when it is first imported: as ``python -m pipeline`` sets them.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 27),
    "OPENCV_LOG_LEVEL": "SILENT",
}
# A process that is killed from outside as it starts says nothing of the machine; one that never starts does.
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Begin:
    """What a child is told first: the job, and the cores that are its own; none: all."""

    job: Job
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What has become of a source, or how far work on one is.

    Attributes:
        key: the source's; 0 while it is worked on.
        state: "done", "there" (another process was first), "failed", or "working".
        worker: who has done it.
        frames: done since the worker's last result.
        seconds: that they took.
        path: the source's.
        error: why it failed, in one line.
        tries: how often it was tried, if it failed.
    """

    key: int
    state: str
    worker: str
    frames: int = 0
    seconds: float = 0.0
    path: str = ""
    error: str = ""
    tries: int = 0


class Crew:
    """Some child processes with an engine each; use it in a ``with`` block, which ends them.

    They start with their first work, and are kept. A source that ends its process costs that process alone: what else the process
    held is given to the next one, each source by itself, for nobody knows which one it was. One that hangs, so that no frame comes of
    its process for the job's time, is such a source too.

    Args:
        job: what to do.
        workers: how many processes. Several share the cores of this machine.
        name: how workers are called, before their number where there are several.
    """

    def __init__(self, job: Job, workers: int = 1, name: str = "worker") -> None:
        cores = sorted(os.sched_getaffinity(0))
        shares = [tuple(cores[index::workers]) if 1 < workers <= len(cores) else () for index in range(workers)]
        self._children = [
            _Child(Begin(job, share), f"{name} {index + 1}" if workers > 1 else name)
            for index, share in enumerate(shares)
        ]
        self._output = job.output
        self._tries: Counter[int] = Counter()
        self._again: deque[list[Entry]] = deque()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def __call__(self, units: Iterable[Sequence[Entry]]) -> Iterator[Result]:
        """Do some units: each a video or some pictures.

        Yields:
            A result for each source, in the order in which they end, and "working" meanwhile.

        Raises:
            BackendUnavailableError: a child cannot begin: its engine cannot be used here.
            SinkError: the disk of the results fails.
        """
        units = iter(units)
        while True:
            for child in self._children:
                if not child.is_busy:
                    if (unit := self._again.popleft() if self._again else next(units, None)) is None:
                        break
                    child.begin(list(unit))
            busy = {child.connection: child for child in self._children if child.is_busy and child.connection}
            if not busy:
                return
            now_s = time.monotonic()
            soonest_s = min(child.until_s for child in busy.values())
            for ready in wait(list(busy), None if soonest_s == math.inf else max(0.0, soonest_s - now_s)):
                yield from self._hear(busy[cast(Connection, ready)])
            for child in busy.values():
                child.end_if_hung()

    def _hear(self, child: _Child) -> Iterator[Result]:
        try:
            said = child.listen()
        except (EOFError, OSError):
            was_ready = child.is_ready
            how = child.ended()
            sweep(self._output)
            left = child.take_left()
            if not was_ready:
                child.failed_starts += 1
                if child.failed_starts >= _STARTS:
                    raise BackendUnavailableError(
                        f"corpus: expected a process that computes masks, got one that {how} {_STARTS} times before it was ready"
                    ) from None
                self._again.append(left)
            else:
                yield from self._left(child, left, f"its process {how}", said={})
            return
        if "unusable" in said:
            raise BackendUnavailableError(said["unusable"])
        if "fatal" in said:
            raise SinkError(said["fatal"])
        if said.get("ready"):
            child.is_ready, child.failed_starts = True, 0
        elif "index" in said:
            entry = child.held.pop(said["index"])
            if said["state"] == "failed":
                yield from self._left(child, [entry], said["error"], said)
            else:
                yield _result(child, said, entry, said["state"])
        elif "left" in said:
            yield from self._left(child, child.take_left(), said["left"], said)
        else:
            yield _result(child, said, None, "working")

    def _left(self, child: _Child, left: list[Entry], error: str, said: dict[str, Any]) -> Iterator[Result]:
        """Sources that were not done."""
        if len(left) != 1:
            self._again.extend([entry] for entry in left)
            yield _result(child, said, None, "working")
            return
        entry = left[0]
        self._tries[entry.key] += 1
        if self._tries[entry.key] < TRIES:
            self._again.append([entry])
            yield _result(child, said, None, "working")
        else:
            yield _result(child, said, entry, "failed", error, self._tries.pop(entry.key))


def _result(
    child: _Child, said: dict[str, Any], entry: Entry | None, state: str, error: str = "", tries: int = 0
) -> Result:
    frames, seconds = said.get("frames", 0), said.get("seconds", 0.0)
    key, path = (0, "") if entry is None else (entry.key, entry.path)
    return Result(key, state, child.name, frames, seconds, path, error, tries)


class _Child:
    """One process.

    Attributes:
        name: for the report.
        held: the sources that it was given and has told nothing of, by their index.
        is_busy: it was given some and has not said that it is through.
        is_ready: its engine is open.
        until_s: when it counts as hung, by ``time.monotonic``.
        failed_starts: in a row.
    """

    def __init__(self, begin: Begin, name: str) -> None:
        self.name = name
        self.held: dict[int, Entry] = {}
        self.is_busy = self.is_ready = False
        self.failed_starts = 0
        self.until_s = math.inf
        self._is_hung = False
        self._begin = begin
        self._process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def begin(self, entries: list[Entry]) -> None:
        """Give it work; it is started where it is not there."""
        self.held, self.is_busy = dict(enumerate(entries)), True
        try:
            if self._process is None:
                self._start()
            assert self.connection is not None
            self._expect(self.is_ready)
            self.connection.send_bytes(pickle.dumps(entries))
        except (BrokenPipeError, ConnectionResetError):  # it has just ended, and is heard of next
            return

    def listen(self) -> dict[str, Any]:
        """What it says; raises ``EOFError`` or ``OSError`` where it is no more."""
        assert self.connection is not None
        said: dict[str, Any] = json.loads(self.connection.recv_bytes())
        self._expect("finishing" not in said)
        return said

    def _expect(self, soon: bool) -> None:
        """Something is to be heard within the job's time; or it may take as long as it takes."""
        timeout_s = self._begin.job.timeout_s
        self.until_s = time.monotonic() + timeout_s if soon and timeout_s else math.inf

    def end_if_hung(self) -> None:
        """Kill it if nothing was heard of it for too long; its socket tells when it has gone."""
        if time.monotonic() >= self.until_s and self._process is not None:
            self._is_hung, self.until_s = True, math.inf
            self._process.kill()

    def take_left(self) -> list[Entry]:
        """What it held and did not do; it is free then."""
        left, self.held, self.is_busy = list(self.held.values()), {}, False
        return left

    def ended(self) -> str:
        """Wait for the end of a process that has closed its socket; in words."""
        assert self._process is not None
        assert self.connection is not None
        self.connection.close()
        code = self._process.wait()
        is_hung, self._is_hung = self._is_hung, False
        self._process = self.connection = None
        self.is_ready, self.until_s = False, math.inf
        if is_hung:
            return f"was ended, for no frame came of it for {self._begin.job.timeout_s:g} s (--timeout)"
        return f"was ended by {_name_of(-code)}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """End it, whatever it is at."""
        if self._process is not None and self.connection is not None:
            self._process.kill()
            self.ended()

    def _start(self) -> None:
        ours, its = Pipe()
        command = [*module_command("pipeline.corpus.child"), str(its.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=(its.fileno(),), stdin=subprocess.DEVNULL, env={**_ENVIRONMENT, **os.environ}
        )
        its.close()
        self.connection = ours
        ours.send_bytes(pickle.dumps(self._begin))


def _name_of(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL, as where memory runs out"
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
