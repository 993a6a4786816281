"""An engine whose place another one takes while frames go through it."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Computed, Engine, State
from pipeline.frames.on_device import FramesOnDevice
from pipeline.frames.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.bundles.bundle import Bundle


class ReplaceableEngine(Engine):
    """Passes frames to an engine, and from the next ``renew`` after a `replace` on to another one.

    What was submitted to the old one is collected from it, in order, while the new one computes already; then the old one is closed,
    on the thread that gave the new one. So no frame is lost or computed twice, and none waits for either engine to be made or ended.

    Args:
        engine: the first one; closed with this one, or when another has taken its place.
    """

    def __init__(self, engine: Engine) -> None:
        self._now = engine
        self._next: Engine | None = None
        self._taken: Callable[[], None] = lambda: None
        self._computing: deque[Engine] = deque()  # whom each submission that is in flight was given to
        self._changed = threading.Condition()
        super().__init__(engine.bundle)

    # What the engine that is used now says of itself; it changes in ``renew`` alone, on the thread that submits.

    @property
    def bundle(self) -> Bundle:
        """Of the engine that computes now."""
        return self._now.bundle

    @bundle.setter
    def bundle(self, _: Bundle) -> None:
        """It is the engine's."""

    @property
    def on_gpu(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.on_gpu

    @property
    def takes_looks(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.takes_looks

    @property
    def takes_device(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.takes_device

    @property
    def leaves_views(self) -> bool:
        """As was set; the next engine has it too."""
        return self._now.leaves_views

    @leaves_views.setter
    def leaves_views(self, leaves: bool) -> None:
        self._now.leaves_views = leaves

    @property
    def counts(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.counts

    @property
    def keeps_state(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.keeps_state

    @property
    def one_at_a_time(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.one_at_a_time

    @property
    def is_reference(self) -> bool:  # type: ignore[override]
        """As the engine says."""
        return self._now.is_reference

    @property
    def in_flight(self) -> int:  # type: ignore[override]
        """As the engine says."""
        return self._now.in_flight

    @property
    def batch(self) -> int:  # type: ignore[override]
        """As the engine says."""
        return self._now.batch

    @property
    def description(self) -> str:  # type: ignore[override]
        """As the engine says."""
        return self._now.description

    @property
    def advice(self) -> str:  # type: ignore[override]
        """As the engine says."""
        return self._now.advice

    @property
    def frame_size_hw(self) -> tuple[int, int] | None:
        """As the engine says."""
        return self._now.frame_size_hw

    @property
    def pixels(self) -> Pixels:
        """As the engine says."""
        return self._now.pixels

    @property
    def composes(self) -> bool:
        """As the engine says."""
        return self._now.composes

    def new_state(self) -> State:
        """One for the engine that computes now."""
        return self._now.new_state()

    def replace(self, engine: Engine, taken: Callable[[], None] = lambda: None) -> bool:
        """Have another engine take over before the next frame, wait until it has, and close the old one.

        From any thread but the one that submits, one call at a time.

        Args:
            engine: opened and tried out; closed with this one, or at once where this one is closed before.
            taken: called as soon as it has taken over, on the thread that submits.

        Returns:
            Whether it has; not where this engine was closed first.
        """
        with self._changed:
            old, self._next, self._taken = self._now, engine, taken
            self._changed.wait_for(lambda: self._closed or (self._now is engine and old not in self._computing))
            has_taken = self._now is engine
            self._next = None
        (old if has_taken else engine).close()
        return has_taken

    def renew(self) -> None:
        """Let the engine take over that was given last."""
        if self._next is None:
            return
        with self._changed:
            if self._next is None or self._closed:
                return
            self._next.leaves_views = self._now.leaves_views
            self._now, self._next = self._next, None
            self._taken()
            self._changed.notify_all()

    def submit(
        self,
        frames: NDArray[np.uint8] | FramesOnDevice,
        look: NDArray[np.float32] | None = None,
        state: State | None = None,
    ) -> None:
        """Start on some frames, with the engine that computes now."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        self._now.submit(frames, look, state)
        with self._changed:
            self._computing.append(self._now)
        self._submitted.append(((frames.shape[0], 0, 0), look is not None))  # who gets it has checked it

    def collect_all(self) -> Computed:
        """Wait for the oldest submission, of the engine that it was given to."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if not self._computing:
            raise RuntimeError("nothing was submitted")
        self._submitted.popleft()
        engine = self._computing[0]
        try:
            return engine.collect_all()
        finally:
            with self._changed:
                self._computing.popleft()
                if engine is not self._now:
                    self._changed.notify_all()

    def try_out(self) -> None:
        """Try the engine out."""
        self._now.try_out()

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        raise NotImplementedError  # submit is another

    def _collect(self) -> Computed:
        raise NotImplementedError

    def _close(self) -> None:
        with self._changed:
            self._changed.notify_all()
            engines = {id(engine): engine for engine in (*self._computing, self._now)}
        for engine in engines.values():
            engine.close()
