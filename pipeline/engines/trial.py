"""Finding out which way to run a program is the fastest that agrees: on a few frames, a step at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.agreement import FEWEST_CLEAR, Agreement, compare
from pipeline.engines.base import Engine
from pipeline.engines.choices import Choice, Choices, Way
from pipeline.errors import BackendUnavailableError, EdgemaskError, PlanError
from pipeline.terminal import logger_of

log = logger_of(__name__)

BUDGET_S = 10.0
"""What all of it may take, beside the frames of the run."""

SAMPLES = 8
"""So many frames are compared."""

# So many frames are one step, so that a signal is not kept waiting.
_STEP = 4
# How often each way is timed again; its best counts, for whatever else runs here only takes time.
_ROUNDS = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """What is to be found out.

    Attributes:
        asked: the backend as the user asked for it, such as "auto".
        guess: the way in which the run is computed meanwhile.
        ways: all of them, the one first that is expected to be the fastest.
        open_way: makes the engine of one, and raises what ``pipeline.engines.open_engine`` does.
        open_reference: makes the engine whose masks others are compared with; None: the guess's are.
        choices: where the result is kept.
        photographs: of an engine, frames of other kinds, on which a way must agree too that does not compute the program as it is.
        clock: seconds, as ``time.monotonic`` has them.
        budget_s: what it may take; nothing is begun after that.
        hung_s: how long what was begun may take beyond that, until it is given up.
    """

    asked: str
    guess: Way
    ways: Sequence[Way]
    open_way: Callable[[Way], Engine]
    open_reference: Callable[[], Engine] | None
    choices: Choices
    photographs: Callable[[Engine], Sequence[NDArray[np.uint8]]]
    clock: Callable[[], float] = time.monotonic
    budget_s: float = BUDGET_S
    hung_s: float = 10.0


class _FailedError(Exception):
    """A way that cannot be taken; the message says why."""


class _OverError(_FailedError):
    """There is no time left for it."""


class _HungError(_FailedError):
    """The same, and its engine is still at work: it must not be closed."""


class Steps:
    """The steps of a trial; each is taken where nothing else is computed.

    Args:
        trial: what is to be found out.
        guess: the engine of the run; not closed here.
        samples: (1, H, W, …) each, as the engine takes frames.
        references: (H, W) uint8 each, the guess's masks of them.
    """

    def __init__(
        self,
        trial: Trial,
        guess: Engine,
        samples: Sequence[NDArray[np.uint8]],
        references: Sequence[NDArray[np.uint8]],
    ) -> None:
        self._trial, self._guess = trial, guess
        self._samples, self._references = samples, list(references)
        # For ways that are not exact: frames of a run look alike, and prove little.
        self._others = () if all(way.is_exact for way in trial.ways) else trial.photographs(guess)
        self._others_expected: list[NDArray[np.uint8]] = []
        self._engines: dict[Way, Engine] = {}
        self._opened: Engine | None = None  # of a reference, or of a way that is not judged yet
        self._found: dict[Way, Agreement] = {}
        self._ms: dict[Way, float] = {}
        self._left_out: dict[str, str] = {}
        self._unsure = self._is_over = False
        self._spent_s = 0.0
        self._begun_s: float | None = None
        self._steps = self._all()

    def take(self) -> bool:
        """Take one step; False if there was none left."""
        self._begun_s = self._trial.clock()
        try:
            return next(self._steps, "ended") is None
        finally:
            self._spent_s, self._begun_s = self._trial.budget_s - self._left_s(), None

    def close(self) -> Engine | None:
        """End it, whether or not all steps were taken.

        Returns:
            The engine that is to take the guess's place; the caller's own. None: the guess stays.
        """
        self._steps.close()
        taken = self._engines.pop(self._fastest(), None) if self._is_over else None
        self._leave()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        return taken

    def _leave(self) -> None:
        """Close what is opened."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def _fastest(self) -> Way:
        return min(self._ms, key=lambda way: (self._ms[way], way != self._trial.guess), default=self._trial.guess)

    def _all(self) -> Generator[None, None, None]:
        trial = self._trial
        with trial.choices.alone() as alone:
            if not alone:
                return
            try:
                yield from self._refer()
                self._ms[trial.guess] = self._time(self._guess, self._samples[:_STEP])[1]
            except _FailedError as error:
                if isinstance(error, _HungError):
                    self._opened = None
                log.info(f"--backend {trial.asked}: {trial.guess} stays, and is not timed beside others: {error}")
                return
            yield
            yield from self._try_all()
            for _ in range(_ROUNDS if self._engines else 0):
                for way, engine in [(trial.guess, self._guess), *self._engines.items()]:
                    try:
                        self._ms[way] = min(self._ms[way], self._time(engine, self._samples[:_STEP])[1])
                    except _HungError as error:
                        del self._engines[way], self._ms[way]
                        self._left_out[str(way)] = str(error)
                    except _FailedError:
                        pass  # it was timed before, and that stays
                    yield
            self._is_over = True
            self._tell()

    def _try_all(self) -> Generator[None, None, None]:
        """Try the other ways, those first that need no photographs."""
        for way in sorted(self._trial.ways, key=lambda way: not way.is_exact):
            if way == self._trial.guess:
                continue
            if not way.is_exact and not self._others_expected:
                try:
                    yield from self._refer_others()
                except _FailedError as error:
                    self._unsure = True
                    self._left_out[str(way)] = str(error)
                    return
            yield from self._try(way)

    def _refer(self) -> Generator[None, None, None]:
        """Have masks in FP32 of the samples; the guess's own are there already."""
        if self._trial.open_reference is not None:
            self._references.clear()
            self._opened = engine = self._within(self._trial.open_reference)
            yield from self._fill(engine, self._samples, self._references)
            self._leave()

    def _refer_others(self) -> Generator[None, None, None]:
        """Likewise of the photographs."""
        engine = self._guess
        if self._trial.open_reference is not None:
            self._opened = engine = self._within(self._trial.open_reference)
        yield from self._fill(engine, self._others, self._others_expected)
        self._leave()

    def _fill(
        self, engine: Engine, frames: Sequence[NDArray[np.uint8]], masks: list[NDArray[np.uint8]]
    ) -> Generator[None, None, float]:
        """Add the masks of frames, some in each step; gives ms per frame of the last ones, for the first ones may take longer."""
        ms = 0.0
        for first in range(0, len(frames), _STEP):
            more, ms = self._time(engine, frames[first : first + _STEP])
            masks += more
            yield
        return ms

    def _try(self, way: Way) -> Generator[None, None, None]:
        """Open another way and compare its masks; it is left out if it fails, hangs or does not agree."""
        masks: list[NDArray[np.uint8]] = []
        others: list[NDArray[np.uint8]] = []
        try:
            self._opened = engine = self._within(lambda: self._trial.open_way(way))
            yield
            ms = yield from self._fill(engine, self._samples, masks)
            if not way.is_exact:
                yield from self._fill(engine, self._others, others)
        except _FailedError as error:
            if not isinstance(error.__cause__, (BackendUnavailableError, PlanError)):  # those are for other machines
                self._left_out[str(way)] = str(error)
            self._unsure |= isinstance(error, _OverError)
            if isinstance(error, _HungError):
                self._opened = None
            self._leave()
            return
        manifest = self._guess.bundle.manifest
        agreement = compare(masks, self._references, manifest.task)
        problem = agreement.problem(manifest.gate, exact=way.is_exact)
        if others and not problem:
            elsewhere = compare(others, self._others_expected, manifest.task)
            # A network for other pictures sees nothing in these.
            if elsewhere.clear >= FEWEST_CLEAR and (problem := elsewhere.problem(manifest.gate, exact=False)):
                problem = f"on photographs of the package: {problem}"
        if not _alike(engine, self._guess):
            problem = "its program gives other outputs"
        if problem:
            self._left_out[str(way)] = problem
            self._unsure |= not way.is_exact and agreement.clear < FEWEST_CLEAR
            self._leave()
        else:
            self._opened = None
            self._engines[way], self._found[way], self._ms[way] = engine, agreement, ms

    def _time(self, engine: Engine, frames: Sequence[NDArray[np.uint8]]) -> tuple[list[NDArray[np.uint8]], float]:
        """The masks of some frames, as many of them in flight as the engine takes, and ms per frame."""

        def work() -> tuple[list[NDArray[np.uint8]], float]:
            begun_s, submitted = self._trial.clock(), 0
            masks: list[NDArray[np.uint8]] = []
            while len(masks) < len(frames):
                while submitted < len(frames) and submitted - len(masks) < engine.in_flight:
                    engine.submit(frames[submitted])
                    submitted += 1
                masks.append(engine.collect()[0])
            return masks, (self._trial.clock() - begun_s) * 1e3 / len(frames)

        if engine is self._guess:  # that would hold up the run in any case, and must be used by one thread at a time
            try:
                return work()
            except EdgemaskError as error:
                raise _FailedError(str(error)) from error
        return self._within(work)

    def _left_s(self) -> float:
        now_s = 0.0 if self._begun_s is None else self._trial.clock() - self._begun_s
        return self._trial.budget_s - self._spent_s - now_s

    def _within(self, work: Callable[[], _T]) -> _T:
        """What some work gives; on a thread of its own, for native code that does not come back can only be left alone.

        Raises:
            _FailedError: it failed, or was not done in the time that is left.
        """
        done: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

        def put() -> None:
            try:
                done.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                done.put((None, error))

        left_s = self._left_s()
        if left_s <= 0:
            raise _OverError(f"the {self._trial.budget_s:g} s for all were over")
        limit_s = left_s + self._trial.hung_s
        threading.Thread(target=put, name="backend on trial", daemon=True).start()
        try:
            result, error = done.get(timeout=limit_s)
        except queue.Empty:
            raise _HungError(f"it did not come back within {limit_s:.1f} s") from None
        if error is not None:
            told = str(error) if isinstance(error, EdgemaskError) else f"{type(error).__name__}: {error}"
            raise _FailedError(told) from error
        return result  # type: ignore[return-value]  # of work that gave no error

    def _tell(self) -> None:
        trial, taken = self._trial, self._fastest()
        times = ", ".join(f"{way} {ms:.0f} ms" for way, ms in sorted(self._ms.items(), key=lambda entry: entry[1]))
        line = f"--backend {trial.asked}: a frame takes {times}; takes {taken}"
        if taken in self._found:
            line += f", {self._found[taken]} on {len(self._samples)} frames"
        line += "".join(f"; not {name}: {reason}" for name, reason in self._left_out.items())
        if not self._unsure:  # else the next run may have the time, or frames to compare masks on
            trial.choices.write(Choice(taken, {str(way): round(ms, 2) for way, ms in self._ms.items()}, self._left_out))
            line += "; kept for the next runs"
        log.info(line)


def _alike(one: Engine, other: Engine) -> bool:
    """Whether one may take the other's place while frames go through it."""
    names = ("on_gpu", "composes", "counts", "keeps_state", "one_at_a_time", "frame_size_hw", "pixels")
    return all(getattr(one, name) == getattr(other, name) for name in names) and one.batch >= other.batch
