"""Events wait in a buffer until whoever carries them has delivered them, in order; nothing else waits for that."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from typing import Any

from pipeline.sinks.outbox import Outbox
from pipeline.terminal import logger_of

log = logger_of(__name__)

Message = dict[str, Any]
"""What is sent, as JSON has it."""

BUFFER = 10_000
"""So many events wait for a receiver that is away; then the oldest are lost, and counted."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
_IDLE_S = 0.2
_END_WITHIN_S = 3.0


class AwayError(Exception):
    """What was to be delivered was not, and is to be tried again. Its text says why, without secrets."""


class RefusedError(Exception):
    """The receiver does not want this event, now or later. Its text says why, without secrets."""


class Courier(ABC):
    """Carries messages to one receiver. Used by one thread, which it may keep waiting for seconds."""

    @abstractmethod
    def send(self, event: Message) -> None:
        """Deliver an event; connects first where that is necessary.

        Raises:
            AwayError: it may not have arrived.
            RefusedError: it will never be taken.
        """

    @abstractmethod
    def beat(self, state: Message) -> None:
        """Deliver a heartbeat.

        Raises:
            AwayError: it may not have arrived.
            RefusedError: it will never be taken.
        """

    def idle(self) -> None:
        """Called a few times a second while there is nothing to deliver.

        Raises:
            AwayError: the receiver has gone.
        """
        return

    def close(self) -> None:
        """Take leave; nothing is to be said any more. Raises nothing."""
        return


class Delivery:
    """Delivers events on a thread of its own: in order, each until it has arrived, or is refused, or the buffer is full.

    An event whose acknowledgment is lost is delivered again: receivers know it by its id.

    Args:
        name: of the receiver, for the log; holds no secret.
        courier: carries them; closed by the thread.
        buffer: so many events wait at most.

    Attributes:
        delivered: events that have arrived.
        refused: events that the receiver does not want.
        error: why the thread has ended by a mistake of its own; None: it has not.
    """

    def __init__(self, name: str, courier: Courier, buffer: int = BUFFER) -> None:
        self.name = name
        self.error: Exception | None = None
        self.delivered = self.refused = self._taken = 0
        self._courier = courier
        self._events: Outbox[Message] = Outbox(buffer, drop_oldest=True)
        self._beat: Message | None = None
        self._problem = ""
        self._told: set[str] = set()
        self._ending = threading.Event()
        self._give_up_s = float("inf")
        self._pause_s = FIRST_PAUSE_S
        self._thread = threading.Thread(target=self._run, name=f"events to {name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that nobody got: pushed out of the full buffer, or left at the end."""
        return self._taken - self.delivered - self.refused if self._ending.is_set() else self._events.dropped

    @property
    def waiting(self) -> int:
        """Events that were neither delivered nor lost yet."""
        return len(self._events)

    @property
    def problem(self) -> str:
        """Why nothing arrives now; empty while all is well."""
        return self._problem

    def put(self, event: Message) -> None:
        """Hand an event over; never waits."""
        self._taken += 1
        self._events.put(event)

    def beat(self, state: Message) -> None:
        """Hand a heartbeat over: the newest is delivered after the events before it, those that it replaces are not."""
        self._beat = state

    def close(self) -> None:
        """Deliver what is left, for three seconds at most. Safe to call twice."""
        if self._ending.is_set():
            return
        self._give_up_s = time.monotonic() + _END_WITHIN_S
        self._ending.set()
        self._events.close()
        self._thread.join(2 * _END_WITHIN_S)
        if self.lost or self.refused:
            log.warning(
                f"{self.name}: {self.lost} events were lost and {self.refused} refused; {self.delivered} arrived"
            )

    def _run(self) -> None:
        try:
            while True:
                try:
                    event = self._events.within(_IDLE_S)
                except queue.Empty:
                    self._beat_or_idle()
                    continue
                if event is None:
                    self._beat_or_idle()
                    return
                self._deliver(event)
        except Exception as error:  # noqa: BLE001 - handed to the pipeline's thread, which raises it
            self.error = error
        finally:
            self._courier.close()

    def _deliver(self, event: Message) -> None:
        while time.monotonic() < self._give_up_s:
            try:
                self._courier.send(event)
            except AwayError as error:
                self._away(error)
                self._pause()
            except RefusedError as error:
                self.refused += 1
                log.warning(f"{self.name}: an event was refused ({error})")
                return
            else:
                self.delivered += 1
                self._arrived()
                return

    def _beat_or_idle(self) -> None:
        state, self._beat = self._beat, None
        try:
            if state is None:
                self._courier.idle()
                return
            self._courier.beat(state)
        except AwayError as error:
            self._away(error)
            if not self._ending.is_set() and self._beat is None:
                self._beat = state  # unless there is a newer one by now
            self._pause()
        except RefusedError as error:
            self._away(AwayError(error))
        else:
            self._arrived()

    def _pause(self) -> None:
        """Wait before the next attempt, longer each time; at the end of the run the last seconds are used."""
        if self._ending.is_set():
            time.sleep(min(FIRST_PAUSE_S, max(0.0, self._give_up_s - time.monotonic())))
        else:
            self._ending.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _away(self, error: AwayError) -> None:
        self._problem = str(error)
        if self._problem not in self._told:  # each reason is told once, however often it is tried
            self._told.add(self._problem)
            log.warning(f"{self.name}: {self._problem}; events wait")

    def _arrived(self) -> None:
        if self._problem:
            log.warning(f"{self.name}: there again")
            self._told.clear()
        self._problem, self._pause_s = "", FIRST_PAUSE_S
