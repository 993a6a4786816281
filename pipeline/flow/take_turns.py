"""Several sources before one engine: their frames in turn, so that none waits for another."""

from __future__ import annotations

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
        lost: told of a source that has failed while others go on.
    """

    def __init__(self, queues: Sequence[Prefetch[Frame]], lost: Callable[[SourceError], None] = lambda _: None) -> None:
        self._queues = list(queues)
        self._lost = lost

    def ready(self) -> bool:
        """Whether a frame is there, or the end of all, so that the iterator would not wait."""
        states = [queue.state() for queue in self._queues]
        return any(state == "item" for state in states) or all(state == "end" for state in states)

    def __iter__(self) -> Iterator[Frame]:
        """Frames; of each source in its order.

        Raises:
            SourceError: of the last source that was left; any other error at once.
        """
        left = list(self._queues)
        changed = self._queues[0].changed
        at = 0
        while left:
            with changed:
                changed.wait_for(lambda: any(queue.state() != "none" for queue in left))
            for turn in range(len(left)):
                queue = left[(at + turn) % len(left)]
                if queue.state() == "none":
                    continue
                at = (at + turn) % len(left)
                try:
                    frame = queue.within(0.0)
                except SourceError as error:
                    if len(left) == 1:
                        raise
                    self._lost(error)
                    frame = None
                if frame is None:
                    del left[at]
                    at = at % len(left) if left else 0
                else:
                    at = (at + 1) % len(left)
                    yield frame
                break
