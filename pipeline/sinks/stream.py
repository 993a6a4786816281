"""Views sent to somebody else: on a thread of their own, over a connection that comes back by itself."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import shown
from pipeline.sinks.outbox import Outbox
from pipeline.stages.prefetch import Prefetch
from pipeline.terminal import logger_of

log = logger_of(__name__)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
# A connection that has lasted so long was none that breaks at once: the next wait is short again.
_STEADY_S = 10.0
# A live run ends whether the other side listens or not.
_LIVE_END_S = 3.0
_DEPTH = 2


class BrokenLinkError(Exception):
    """A connection is gone or cannot be made now; the message says why, without address."""


class Link(ABC):
    """One connection, made by `StreamSink._connect`; used by the sink's thread alone."""

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Send a frame's view; its image and mask may have changed since.

        Raises:
            BrokenLinkError: it did not go out.
        """

    @abstractmethod
    def close(self, *, broken: bool) -> None:
        """End the connection; ``broken``: the other side may not answer.

        Raises:
            SinkError: what was sent has not arrived.
        """


class StreamSink(Sink):
    """Sends views; of a live source the newest, and none waits for the connection.

    Live: a connection that breaks, or that cannot be made, is tried again without end, after 0.5 to 30 s; frames meanwhile are
    dropped. A source that can wait is sent whole, and a connection that breaks ends the run.

    Attributes:
        dropped: frames that were not sent.
    """

    def _open(self) -> None:
        self._where = shown(self._spec)
        self._lost = 0
        self._problem = self._trying = ""
        self._given_up = threading.Event()
        self._outbox: Outbox[Frame] = Outbox(1 if self._info.live else _DEPTH, drop_oldest=self._info.live)
        self._thread = Prefetch(self._send(), 1, name="output", join_s=_LIVE_END_S if self._info.live else None)

    @property
    def dropped(self) -> int:
        """How many frames were not sent: a newer one came first, or there was no connection."""
        return self._outbox.dropped + self._lost

    @property
    def problem(self) -> str:
        """Why nothing arrives now."""
        return self.failed or self._trying

    def write(self, frame: Frame) -> None:
        """Hand the frame's view over; the frame is kept until it was sent.

        Raises:
            SinkError: the connection of a source that can wait is gone, or the output makes no sense at all.
        """
        if frame.lying_view is None:
            raise ValueError(f"{frame!r} has no view")
        self._raise_problem()
        self._outbox.put(frame)

    def close(self) -> None:
        """Send what waits and end the connection; of a live source for three seconds at most.

        Raises:
            SinkError: not everything was sent.
        """
        self._outbox.close(clear=self._info.live)
        self._end()
        self._raise_problem()

    def discard(self) -> None:
        """End the connection at once."""
        self._given_up.set()
        self._outbox.close(clear=True)
        self._end()

    @abstractmethod
    def _connect(self, frame: Frame) -> Link:
        """Make a connection for views like this frame's.

        Raises:
            BrokenLinkError: not now.
            SinkError: never.
        """

    def _end(self) -> None:
        self._thread.close()
        for _ in self._thread:  # raises what went wrong on it, which only a bug does
            pass

    def _raise_problem(self) -> None:
        if self._problem:
            problem, self._problem = self._problem, ""
            raise SinkError(problem)

    def _send(self) -> Iterator[None]:
        link: Link | None = None
        wait_s, due_s, start_s = _FIRST_WAIT_S, 0.0, 0.0
        runs = failing = False
        try:
            for frame in self._outbox:
                now_s = time.monotonic()
                if link is None and now_s < due_s:
                    self._lost += 1
                    continue
                try:
                    if link is None:
                        link, start_s = self._connect(frame), now_s
                    link.send(frame)
                    if not runs:  # what is told is what has changed, however often it was tried
                        runs, failing, self._trying = True, False, ""
                        log.info(f"{self._where}: sending")
                    if now_s - start_s > _STEADY_S:
                        wait_s = _FIRST_WAIT_S
                except BrokenLinkError as error:
                    self._lost += 1
                    gone, link = link, None
                    if gone is not None:
                        gone.close(broken=True)
                    if not self._info.live:
                        raise SinkError(f"{self._where}: cannot be sent ({error})") from error
                    self._trying = f"{self._where}: not sent ({error})"
                    if not failing:
                        runs, failing = False, True
                        log.info(f"{self._trying}: trying again")
                    due_s = time.monotonic() + wait_s * random.uniform(0.5, 1)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            done, link = link, None
            if done is not None:
                done.close(broken=self._given_up.is_set())
        except SinkError as error:
            self._problem = str(error)
        finally:
            self._outbox.close(clear=True)  # nobody waits for room any more
            if link is not None:
                link.close(broken=True)
        yield from ()
