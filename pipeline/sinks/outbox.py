"""The other end of a `Prefetch`: what the caller puts in, its thread takes out."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """A bounded queue from one thread to another.

    Args:
        depth: how many items may wait.
        drop_oldest: a full queue loses its oldest item in place of making `put` wait.

    Attributes:
        dropped: how many items were lost that way.
    """

    def __init__(self, depth: int, *, drop_oldest: bool) -> None:
        self.dropped = 0
        self._depth = depth
        self._drop_oldest = drop_oldest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Hand an item over; one for a closed queue is let go."""
        with self._changed:
            if self._drop_oldest and len(self._items) >= self._depth:
                self._items.popleft()
                self.dropped += 1
            while len(self._items) >= self._depth and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()

    def close(self, *, clear: bool = False) -> None:
        """Take no more items; those that wait still come out unless ``clear``."""
        with self._changed:
            self._closed = True
            if clear:
                self._items.clear()
            self._changed.notify_all()

    def within(self, wait_s: float | None) -> T | None:
        """The next item, or None when there will be none.

        Args:
            wait_s: how long to wait for it; None: as long as it takes.

        Raises:
            queue.Empty: none came in this time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items) or self._closed, wait_s):
                raise queue.Empty
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        while (item := self.within(None)) is not None:
            yield item
