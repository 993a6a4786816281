"""Audits frames while they run: who is audited when, and what becomes of the process that computes."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.audit.process import AuditProcess
from pipeline.audit.rate import Rate
from pipeline.audit.verdict import Gate, Verdict
from pipeline.bundles.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.flow.events import Events
from pipeline.frames.audited import Audited
from pipeline.frames.frame import Frame, Image
from pipeline.machine.idle_time import IdleTime
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.sources.base import Source

log = logger_of(__name__)

BUSY, LOAD, FAILED = "busy", "load", "failed"
"""Why an audit is skipped: the one before is not done; no core has time; the process that computes is gone."""

# A core must have been idle for this part of the last while, and so often that is looked at.
_LEAST_IDLE_CORES = 0.2
_LOOK_EVERY_S = 0.5
# What could not be audited at its time is tried again after this, at most.
_AGAIN_S = 5.0
# So much of a core's time a frame may take before its process counts as hung: 4K in tiles is minutes of it.
_HUNG_S = 300.0
# So often in a row it is begun, after 1, 4, 16 and 64 seconds.
_TRIES = 5
_WAIT_S = 1.0
_LONGER = 4
# Spreads sources over a period, however many there are.
_GOLDEN = 0.618034


_Given = tuple[Frame, str] | Bundle | None
"""To the thread: a frame with the time when it was captured, another bundle, or the end."""


def nothing_to_compare(bundle: Bundle) -> str:
    """Why frames of a bundle cannot be audited: what is expected, got, and to do; empty if they can."""
    if bundle.reference_path is None:
        return f"its program in FP32 in {bundle.folder}, got none: compile the bundle again without --no-reference"
    if bundle.manifest.contract.get("state"):
        return "masks that depend on one frame alone, got a recurrent network, which cannot be audited"
    return ""


class ShadowGate(Events):
    """Has every so many frames computed by the bundle's FP32 program too, in a process of lowest priority, and compares the masks.

    No frame waits: what is audited is handed over by reference, with a copy of its mask, to a thread that waits for the process. The
    thread is needed since a socket that the process does not read blocks. One audit is made at a time; what comes meanwhile, or
    while no core has time, is skipped and counted.

    Args:
        bundle: what runs; one of which ``nothing_to_compare`` has nothing to say.
        rate: how often, of each source.
        sources: their names.

    Attributes:
        on_below: called with one line when the agreement has fallen below the bundle's gate, on the gate's own thread; None: nobody is.
        skipped: how many audits were, by reason.
        is_busy: an audit is being made.
    """

    def __init__(self, bundle: Bundle, rate: Rate, sources: Sequence[str] = ()) -> None:
        super().__init__()
        self.on_below: Callable[[str], object] | None = None
        self.skipped: Counter[str] = Counter({BUSY: 0, LOAD: 0, FAILED: 0})
        self._verdict = Verdict(Gate.of(bundle.manifest))
        self._rate = rate
        self._due: dict[str, _Due] = {}
        for name in sources:
            self._due_of(name)
        self._newest: dict[str, Audited] = {}
        self._idle_time = IdleTime(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1024))
        self._has_time = True  # until it is known
        self._looked_s = time.monotonic()
        self._had_s = 0.0  # of a core's time that nobody else wanted, in all
        self._asked_at_s: float | None = None  # by that count, when the process was asked; None: nobody waits
        self._process = AuditProcess(bundle)
        self._given: queue.SimpleQueue[_Given] = queue.SimpleQueue()
        self.is_busy = self._has_failed = self._is_renewed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def computed(self, frame: Frame) -> None:
        """Hand a frame over to be audited, where one is due."""
        if frame.mask is None or frame.stale:
            return
        due = self._due_of(frame.source)
        if not due():
            return
        reason = FAILED if self._has_failed else BUSY if self.is_busy else "" if self._has_time else LOAD
        if reason:
            self.skipped[reason] += 1
            due.skipped()
            return
        self.is_busy = True
        # A record of its own: the run goes on with that one, and may give it another mask.
        self._given.put((replace(frame, mask=frame.mask.copy(), view=None, found=None), frame.captured_utc))
        due.taken()

    def swapped(self, bundle: Bundle) -> None:
        """Another bundle runs from the next frame on: it begins with no audits. On the thread of ``computed``; returns at once."""
        if problem := nothing_to_compare(bundle):
            log.info(f"no audit: expected {problem}")
        self._verdict = Verdict(Gate.of(bundle.manifest))
        self._newest = {}
        self._is_renewed = True  # what is still said of the one before does not count
        self.is_busy, self._has_failed = False, bool(problem)
        if not problem:
            self._given.put(bundle)
        self._process.kill()

    def pulse(self) -> None:
        """See what time the machine has left, and end a process that hangs."""
        now_s = time.monotonic()
        passed_s = now_s - self._looked_s
        if passed_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        idle_cores = self._idle_time.idle_cores(self._process.pid)
        if idle_cores is not None:
            self._has_time = idle_cores >= _LEAST_IDLE_CORES
        # Where nobody leaves it any time, it does not hang.
        self._had_s += passed_s * min(1.0, 1.0 if idle_cores is None else idle_cores)
        if self._hangs():
            self._process.kill()

    def left(self, source: Source) -> None:
        """Forget a source that has gone."""
        self._due.pop(source.info.name, None)
        self._newest.pop(source.info.name, None)

    def newest(self, source: str) -> Audited | None:
        """The last audit of a source; None where there is none yet."""
        return self._newest.get(source)

    def state(self) -> dict[str, Any]:
        """What the page shows, see ``Verdict.state``; with skipped, and skipped_by reason."""
        return self._verdict.state() | {"skipped": self.skipped.total(), "skipped_by": dict(self.skipped)}

    def on_page(self) -> Mapping[str, Any]:
        """The page tells how far masks agree."""
        return {"audit": self.state}

    def close(self) -> None:
        """End the process, and tell what came of it all."""
        self._closing.set()
        self._given.put(None)
        self._process.kill(for_good=True)
        self._thread.join()
        state = self.state()
        if state["total"] or state["skipped"]:
            mean = "" if state["mean"] is None else f", mean IoU {state['mean']:.4f}, worst {state['worst']:.4f}"
            reasons = ", ".join(f"{count} {_WORDS[name]}" for name, count in self.skipped.items() if count)
            log.info(
                f"audit: {state['total']} frames compared with the program in FP32{mean}; skipped: {reasons or 'none'}"
            )

    def _due_of(self, source: str) -> _Due:
        if source not in self._due:
            self._due[source] = _Due(self._rate, len(self._due) * _GOLDEN % 1)
        return self._due[source]

    def _work(self) -> None:
        given: _Given = self._process.bundle
        while isinstance(given, Bundle) and not self._closing.is_set():
            self._process, self._is_renewed = AuditProcess(given), False
            given = self._serve()
            self._process.ended()

    def _serve(self) -> _Given:
        """Audit until the end, or until there is another bundle; gives what comes then."""
        failures, told = 0, False
        while not self._closing.is_set():
            try:
                self._wait_for(self._process.start)
                self._has_failed = False
                while isinstance(given := self._given.get(), tuple):
                    self._take(*given)
                    failures, self.is_busy = 0, False
                return given
            except BundleError as error:
                log.warning(f"audit: {error}; no frame is audited")
                break
            except (OSError, EOFError):
                if self._is_renewed:
                    return self._next()
                self._has_failed, self.is_busy = True, False
            hung, self._asked_at_s = self._hangs(), None
            how = self._process.ended()
            how, failures = "hung" if hung else how, failures + 1
            # Not told at once: the signal that ended it may be meant for the whole run.
            if self._closing.wait(_WAIT_S * _LONGER ** (failures - 1)):
                break
            if failures == _TRIES:
                log.warning(f"audit: its process {how}, {failures} times in a row: no more frames are audited")
                break
            if not told:
                told = True
                log.warning(f"audit: its process {how}; it is begun anew")
        self._has_failed, self.is_busy = True, False
        return self._next()

    def _next(self) -> _Given:
        """The next bundle, or the end; frames of one that is no more are left out."""
        self._asked_at_s = None
        while isinstance(given := self._given.get(), tuple):
            continue
        return given

    def _wait_for(self, call: Callable[[], Any]) -> Any:
        self._asked_at_s = self._had_s
        result = call()
        self._asked_at_s = None
        return result

    def _hangs(self) -> bool:
        asked_at_s = self._asked_at_s
        return asked_at_s is not None and self._had_s - asked_at_s > _HUNG_S

    def _take(self, frame: Frame, captured: str) -> None:
        """Have one frame computed, and judge."""
        mask: Image | None = frame.mask
        assert mask is not None
        found = self._wait_for(lambda: self._process.ask(frame, mask))
        if self._is_renewed:
            return
        audited = Audited(frame.source, frame.index, frame.pts_s, captured, **found)
        self._newest[frame.source] = audited
        if line := self._verdict.add(audited):
            log.warning(line)
            if self._verdict.below and self.on_below is not None:
                self.on_below(line)


_WORDS = {BUSY: "during another audit", LOAD: "while no core was idle", FAILED: "without a process that computes"}


@dataclass(slots=True)
class _Due:
    """When a source is audited next. One whose audit is skipped waits its number of frames again, or a few seconds."""

    rate: Rate
    phase: float  # of its period
    _left: int = field(init=False)
    _due_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = int(self.phase * (self.rate.frames or 0))
        self._due_s = time.monotonic() + self.phase * (self.rate.period_s or 0.0)

    def __call__(self) -> bool:
        """Whether the frame that comes now is."""
        if self.rate.frames is None:
            return time.monotonic() >= self._due_s
        self._left = self._left - 1 if self._left else self.rate.frames - 1
        return self._left == self.rate.frames - 1

    def taken(self) -> None:
        """It is audited."""
        if self.rate.period_s is not None:
            self._due_s = max(self._due_s, time.monotonic() - self.rate.period_s) + self.rate.period_s

    def skipped(self) -> None:
        """It is not, this time."""
        if self.rate.period_s is not None:
            self._due_s = time.monotonic() + min(self.rate.period_s, _AGAIN_S)
