"""What every source is: an iterator of frames with a description."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pipeline.frame import Frame, SourceInfo


class Source(ABC):
    """Opened by its constructor, which raises ``SourceError`` when it cannot be; passive, and used by one thread.

    Attributes:
        info: what is known before the first frame.
    """

    info: SourceInfo

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames in order, each with memory of its own.

        Raises:
            SourceError: the source breaks off or a frame cannot be read.
        """

    def close(self) -> None:
        """Give back file or device; safe to call twice."""
        return
