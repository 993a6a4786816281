"""The process that reads, computes and writes sources of a corpus: it may die of one, and its parent starts another.

It is started with the number of a socket. Its parent pickles the job and then lists of sources into it; it answers in JSON, which
nobody who has taken it over could make a program of.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.corpus.crew import Begin
from pipeline.corpus.listing import Entry
from pipeline.errors import EdgemaskError
from pipeline.terminal import shown_log

_TELL_EVERY_S = 1.0


def main() -> None:
    """Work until there is nothing more, or nobody to work for."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they go to the whole group, and the parent decides
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    begin: Begin = pickle.loads(connection.recv_bytes())
    if begin.cores:
        os.sched_setaffinity(0, begin.cores)
    talk = _Talk(connection)
    from pipeline.command.freed_memory import keep_freed_memory  # after the cores are set, which libraries count
    from pipeline.corpus.task import Task

    keep_freed_memory()
    with shown_log(quiet=True):
        try:
            task = Task(begin.job, talk.count, talk.finishing)
        except EdgemaskError as error:
            talk.say(unusable=str(error))
            return
        talk.leave = task.leave
        with task:
            talk.say(ready=True)
            while (entries := talk.listen()) is not None:
                _do(task, entries, talk)


def _do(task: Any, entries: list[Entry], talk: _Talk) -> None:
    from pipeline.corpus.task import is_fatal, sentence_of

    problem = ""
    try:
        task(entries, talk.tell)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises at one of a million files
        if is_fatal(error):
            talk.say(fatal=str(error))
            return
        problem = sentence_of(error)
    talk.say(left=problem)


class _Talk:
    """What is said to the parent and heard from it.

    Attributes:
        leave: called when the parent is no more, before this process ends too.
    """

    def __init__(self, connection: Connection) -> None:
        self.leave: Callable[[], None] = lambda: None
        self._connection = connection
        self._lock = threading.Lock()
        self._heard: queue.Queue[list[Entry] | None] = queue.Queue()
        self._frames = 0
        self._said_s = time.monotonic()
        threading.Thread(target=self._hear, daemon=True, name="parent").start()

    def say(self, **words: Any) -> None:
        """Tell the parent, with the frames and the time since it was last told."""
        with self._lock:
            now_s = time.monotonic()
            words |= {"frames": self._frames, "seconds": now_s - self._said_s}
            self._frames, self._said_s = 0, now_s
            self._connection.send_bytes(json.dumps(words).encode())

    def tell(self, index: int, state: str, error: str) -> None:
        """As ``pipeline.corpus.task.Tell``."""
        self.say(index=index, state=state, error=error)

    def count(self) -> None:
        """A frame is done: told when a second has gone by without another word."""
        self._frames += 1
        if time.monotonic() - self._said_s > _TELL_EVERY_S:
            self.say()

    def finishing(self) -> None:
        """What comes now may take long without a frame, and is no reason to end the process."""
        self.say(finishing=True)

    def listen(self) -> list[Entry] | None:
        """The next sources; None: there are no more."""
        entries = self._heard.get()
        self._said_s = time.monotonic()
        return entries

    def _hear(self) -> None:
        # On a thread of its own, so that a process whose parent was killed ends now and not after an hour of video.
        try:
            while True:
                entries: list[Entry] | None = pickle.loads(self._connection.recv_bytes())
                self._heard.put(entries)
        except (EOFError, OSError):
            self.leave()
            os._exit(1)


if __name__ == "__main__":
    main()
