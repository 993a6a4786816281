"""An engine that keeps some of the frames that go through it, finds out on those what runs its program fastest, and takes that."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Computed, Engine
from pipeline.engines.trial import SAMPLES, Steps, Trial
from pipeline.errors import EdgemaskError

# Frames in a row look alike: of so many submissions one is kept.
EVERY = 8


class MeasuredEngine(Engine):
    """Passes frames on to an engine, and takes a step of a trial before each of them once there are enough.

    So no frame waits for all of it, nor does a signal; and no other way computes a frame of the run before it was found to agree.

    Args:
        engine: of the guess; closed with this one, or when another takes its place.
        trial: what is to be found out.
    """

    def __init__(self, engine: Engine, trial: Trial) -> None:
        super().__init__(engine.bundle)
        self._trial: Trial | None = trial
        self._steps: Steps | None = None
        self._ready: deque[Computed | EdgemaskError] = deque()  # collected before they were asked for
        self._inside: deque[int] = deque()  # the numbers of the submissions that the engine has
        self._count = 0
        self._samples: dict[int, NDArray[np.uint8]] = {}
        self._masks: dict[int, NDArray[np.uint8]] = {}
        self._is_now(engine)

    def _is_now(self, engine: Engine) -> None:
        """Be as an engine says of itself."""
        self._engine = engine
        self.batch, self.description, self.advice = engine.batch, engine.description, engine.advice
        self.on_gpu, self.takes_looks, self.counts = engine.on_gpu, engine.takes_looks, engine.counts
        self.keeps_state, self.one_at_a_time = engine.keeps_state, engine.one_at_a_time
        self.in_flight = max(self.in_flight, engine.in_flight)  # who submits counts on it

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to find out."""
        return self._trial is None

    @property
    def frame_size_hw(self) -> tuple[int, int] | None:
        """As the engine says."""
        return self._engine.frame_size_hw

    def try_out(self) -> None:
        """Try the engine out."""
        self._engine.try_out()

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        self._pass_on(frames, None)

    def _submit_with_look(self, frames: NDArray[np.uint8], look: NDArray[np.float32]) -> None:
        self._pass_on(frames, look)

    def _pass_on(self, frames: NDArray[np.uint8], look: NDArray[np.float32] | None) -> None:
        if self._trial is not None:
            self._go_on(self._trial, frames)
        while len(self._inside) >= self._engine.in_flight:
            self._hold()
        self._engine.submit(frames, look)
        self._inside.append(self._count)
        self._count += 1

    def _go_on(self, trial: Trial, frames: NDArray[np.uint8]) -> None:
        """Keep a frame, or take one step."""
        if len(self._samples) < SAMPLES:
            if self._count % EVERY == 0:
                self._samples[self._count] = frames[:1].copy()
            return
        while self._inside:  # nothing else is computed meanwhile
            self._hold()
        if self._steps is None:
            whole = [number for number in self._samples if number in self._masks]  # not of those that failed
            self._steps = Steps(
                trial,
                self._engine,
                [self._samples[number] for number in whole],
                [self._masks[number] for number in whole],
            )
        if not self._steps.take():
            taken = self._end()
            if taken is not None:
                self._engine.close()
                self._is_now(taken)

    def _end(self) -> Engine | None:
        taken = None if self._steps is None else self._steps.close()
        self._trial = self._steps = None
        self._samples.clear()
        self._masks.clear()
        return taken

    def _hold(self) -> None:
        """Collect the oldest; an error comes when it is asked for."""
        try:
            self._ready.append(self._collect_inside())
        except EdgemaskError as error:
            self._ready.append(error)

    def _collect_inside(self) -> Computed:
        number = self._inside.popleft()
        computed = self._engine.collect_all()
        if number in self._samples:
            self._masks[number] = computed.masks_nhw[0].copy()
        return computed

    def _collect(self) -> Computed:
        if not self._ready:
            return self._collect_inside()
        ready = self._ready.popleft()
        if isinstance(ready, EdgemaskError):
            raise ready
        return ready

    def _close(self) -> None:
        if (taken := self._end()) is not None:
            taken.close()
        self._ready.clear()
        self._inside.clear()
        self._engine.close()
