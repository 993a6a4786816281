"""Several sources before one engine: their frames in turn, so that none waits for another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame
from pipeline.stages.prefetch import Prefetch


class TakeTurns:
    """Iterate over the frames of several queues, from each in turn what is there.

    With live sources, whose queues hold the newest frame alone, each gets the same share of the engine, whatever its rate; one that
    is silent costs the others nothing.

    Args:
        queues: made with one condition for all of them.
        changed: that condition.
        lost: told of a source that has failed while others go on.

    Attributes:
        held: the end of all queues is not the end, for another will come; changed under the condition.
    """

    def __init__(
        self,
        queues: Sequence[Prefetch[Frame]],
        changed: threading.Condition,
        lost: Callable[[SourceError], None] = lambda _: None,
    ) -> None:
        self.held = False
        self._changed = changed
        self._left = list(queues)  # replaced and not changed
        self._lost = lost

    def add(self, queue: Prefetch[Frame]) -> None:
        """Take a queue in; from any thread."""
        with self._changed:
            self._left = [*self._left, queue]
            self._changed.notify_all()

    def remove(self, queue: Prefetch[Frame]) -> None:
        """Take nothing more of a queue; from any thread."""
        with self._changed:
            self._left = [other for other in self._left if other is not queue]
            self._changed.notify_all()

    def ready(self) -> bool:
        """Whether a frame is there, or the end of all, so that the iterator would not wait."""
        states = [queue.state() for queue in self._left]
        return any(state == "item" for state in states) or (not self.held and all(state == "end" for state in states))

    def __iter__(self) -> Iterator[Frame]:
        """Frames; of each source in its order.

        Raises:
            SourceError: of the last source that was left; any other error at once.
        """
        at = 0
        while True:
            error = None
            with self._changed:
                self._changed.wait_for(self._has_news)
                left = self._left
                if not left:
                    return
                turns = ((at + turn) % len(left) for turn in range(len(left)))
                at = next(turn for turn in turns if left[turn].state() != "none")
                try:
                    frame = left[at].within(0.0)
                except SourceError as failed:
                    if len(left) == 1 and not self.held:
                        raise
                    frame, error = None, failed
                if frame is None:
                    self.remove(left[at])
                else:
                    at += 1
            if error is not None:
                self._lost(error)
            if frame is not None:
                yield frame

    def _has_news(self) -> bool:
        return any(queue.state() != "none" for queue in self._left) or not (self._left or self.held)
