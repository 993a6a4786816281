"""What every output is: it takes finished frames, in order, and ends complete or not at all."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.options import DEFAULTS, SinkOptions

if TYPE_CHECKING:
    from typing_extensions import Self

    from pipeline.render.overlay import Renderer


class Sink(ABC):
    """Opened by its constructor; used by one thread. A kind of output writes ``_open`` and ``write``, and what ends it.

    Args:
        spec: as the user gave it.
        info: the source that is written.
        renderer: tells how masks are shown.
        options: what else an output may need.

    Attributes:
        written: where the result is, for the user; empty when there is none.
        stopped: the user asked to end (a window was closed).
        comes_back: after ``write`` has failed it may be tried again, when ``again`` says so.
        leaves_views: views that lie on a GPU may stay there: it encodes them there, or looks at masks alone.
        failed: why ``write`` failed, for as long as it takes no frames because of that; kept by who writes.

    Raises:
        SinkError: nothing can be written there.
    """

    written = ""
    stopped = False
    comes_back = False
    leaves_views = False
    failed = ""

    def __init__(self, spec: str, info: SourceInfo, renderer: Renderer, options: SinkOptions = DEFAULTS) -> None:
        self._spec = spec
        self._info = info
        self._renderer = renderer
        self._options = options
        self._open()

    def _open(self) -> None:  # noqa: B027 - an output that keeps nothing has nothing to open
        """Make what is written to; raises ``SinkError`` when it cannot be."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Ctrl-C ends a recording as its user meant it to end; a mistake leaves no half result.
        if kind is not None and issubclass(kind, Exception):
            self.discard()
        else:
            self.close()

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Take one frame with its mask and view; it is not changed and not kept.

        Raises:
            SinkError: it cannot be written.
        """

    def idle(self) -> None:
        """Called a few times a second while no frame comes, for outputs that have something to do all the same."""
        return

    @property
    def problem(self) -> str:
        """Why nothing comes out now; empty while all is well."""
        return self.failed

    def again(self) -> bool:
        """After ``write`` has failed: whether it may be tried again. Asked every few seconds of a live run."""
        return False

    def close(self) -> None:
        """Finish what was written; safe to call twice.

        Raises:
            SinkError: it cannot be finished.
        """
        return

    def cut_off(self) -> None:  # noqa: B027 - most outputs show by themselves what they hold
        """Called before ``close`` where the source ended too soon: the result's name is to say so."""

    def discard(self) -> None:
        """End without a result: leave nothing half-written behind. Safe to call twice and after ``close``."""
        self.close()


def scratch_path(path: Path) -> Path:
    """Where a file is written until it is complete: in the same folder, so that the last step is a rename.

    The name is known before the file is made, so that it can be removed whatever happens; its suffix tells the format.
    """
    return path.with_name(f".edgemask.{os.urandom(8).hex()}{path.suffix}")


def cut_off_path(path: Path) -> Path:
    """What a result is called that ends before its source does: "out.cut-off.mp4"."""
    return path.with_name(f"{path.stem}.cut-off{path.suffix}")


def make_room(path: Path) -> None:
    """Make the folder of a file that will be written, so that what is wrong with it is said before any work.

    Raises:
        SinkError: it cannot be made, or the file's name is no name there.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long fails now and not after the last frame
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written ({error.strerror}): choose another --output") from error
