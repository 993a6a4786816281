"""Run an iterator ahead of its consumer on one background thread: the only place where threads are made."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over ``items`` in order while a thread computes up to ``depth`` of them ahead.

    An error in ``items`` is raised by the iterator, after the items before it. ``close()`` (or leaving the ``with`` block)
    ends the iteration and stops the thread, even while it waits for room in the queue. A thread that is blocked inside ``items``,
    in a camera's read for example, cannot be stopped: it is abandoned, and ends with the process.

    Args:
        items: what to run ahead; its ``close`` is called on the thread at the end if it has one.
        depth: how many finished items may wait.
        drop_oldest: a full queue drops its oldest item, in place of making ``items`` wait (back-pressure). For live sources: with a
            depth of 1 the consumer always gets the newest frame.
        dropped: called on the thread for each item that was dropped.
        changed: a condition to share between queues that one consumer waits for; None: one of its own.
        name: the thread's name.
        join_s: seconds that ``close`` waits for the thread. None: until it has ended. That is for items that are computed, because
            native code that still runs when the process ends aborts the process.

    Attributes:
        dropped: items that a newer one replaced.
        given: items that the consumer has got.
    """

    def __init__(
        self,
        items: Iterable[T],
        depth: int,
        *,
        drop_oldest: bool = False,
        dropped: Callable[[], None] = lambda: None,
        changed: threading.Condition | None = None,
        name: str = "prefetch",
        join_s: float | None = 1.0,
    ) -> None:
        self.dropped = self.given = 0
        self.changed = changed or threading.Condition()
        self._tell_dropped = dropped
        self._items = items
        self._depth = depth
        self._drop_oldest = drop_oldest
        self._join_s = join_s
        self._ready: deque[T] = deque()
        self._stop = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        while (item := self.within(None)) is not None:
            yield item

    def within(self, timeout_s: float | None) -> T | None:
        """The next item, for a consumer that has a deadline (None: it has none); None at the end and after ``close``.

        Raises:
            queue.Empty: none came in that time.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: self._ready or self._ended or self._stop, timeout_s):
                raise queue.Empty
            if self._ready:
                self.given += 1
                item = self._ready.popleft()
                self.changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            return None

    def ready(self) -> bool:
        """Whether the next item is there, or the thread has ended."""
        with self.changed:
            return bool(self._ready) or self._ended

    def state(self) -> Literal["item", "none", "end"]:
        """What the iterator would give now: an item, nothing yet, or the end (after an error and ``close`` too)."""
        with self.changed:
            return "item" if self._ready else "end" if self._ended or self._stop else "none"

    def close(self) -> None:
        """Stop the thread. Waits at most ``join_s`` for it: a blocked read of a device cannot be interrupted."""
        self.stop(self._join_s)

    def stop(self, wait_s: float | None) -> bool:
        """The same with another time to wait; whether the thread has ended."""
        with self.changed:
            self._stop = True
            self._ready.clear()
            self.changed.notify_all()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            iterator = iter(self._items)
            try:
                for item in iterator:
                    if not self._put(item):
                        break
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._error = error
        finally:
            with self.changed:
                self._ended = True
                self.changed.notify_all()

    def _put(self, item: T) -> bool:
        with self.changed:
            if self._drop_oldest and len(self._ready) >= self._depth:
                self._ready.popleft()
                self.dropped += 1
                self._tell_dropped()
            while len(self._ready) >= self._depth and not self._stop:
                self.changed.wait()
            if self._stop:
                return False
            self._ready.append(item)
            self.changed.notify_all()
            return True
