"""What every source is: an iterator of frames with a description."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.frames.pixels import Pixels
from pipeline.stages.telemetry import State, Telemetry


class Source(ABC):
    """Opened by its constructor, which raises ``SourceError`` when it cannot be; passive, and used by one thread.

    Attributes:
        info: what is known before the first frame.
        telemetry: what is known while it runs. The data path counts its frames; a live source tells its state and the frames
            that it drops itself.
        pixels: what the engine takes; ``pipeline.flow.run`` sets it before the first frame. Sources that decode then give frames of
            it where they can, which saves a conversion; every frame converts itself where they do not.
        given_up: why it must end, once somebody has said so.
    """

    info: SourceInfo
    pixels: Pixels = "bgr"
    given_up: str = ""

    @cached_property
    def telemetry(self) -> Telemetry:
        """Made on first use, named after the source."""
        return Telemetry(self.info.name)

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

    def decode_on_gpu(self) -> None:
        """Have its pictures decoded by the GPU and stay there, in NV12; before the first frame, and before an engine is opened.

        Raises:
            SourceError: this is no source that can, or its pictures are not such.
            BackendUnavailableError: there is no GPU.
        """
        raise SourceError(
            f"{self.info.name}: --decode cuda: expected a video or a stream that FFmpeg decodes, got {self.info.description}: leave "
            "--decode cuda out"
        )

    def give_up(self, problem: str) -> None:
        """End it with an error as soon as it can, while others go on; from any thread.

        Args:
            problem: the error's sentence, redacted.
        """
        self.given_up = problem
        self.telemetry.enter(State.FAILED, problem)

    def processes(self) -> Sequence[int]:
        """The numbers of processes that read in its place, whose memory counts as its own; from any thread."""
        return ()
