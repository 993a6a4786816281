"""The whole process within a limit of memory: the source that takes too much is given up, and the others go on.

What a stranger sends may make FFmpeg take gigabytes in ways that no single limit foresees. The kernel keeps no account of memory by
source, so that one is kept here: what the process has grown by is charged to the sources whose threads first touched new pages. Pages
that other threads touched (FFmpeg's, the engine's) are shared out by the bytes of the frames that came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import field

from pipeline.command.freed_memory import give_back_freed_memory
from pipeline.machine.memory import available_bytes, pages_touched, resident_bytes, threads_charged_to_nobody
from pipeline.quick_dataclass import dataclass
from pipeline.sources.base import Source
from pipeline.stages.telemetry import State
from pipeline.terminal import logger_of

log = logger_of(__name__)

_EVERY_S = 0.25
# A source that was given up needs a moment to end. malloc keeps what is freed, and giving it back takes time.
_SETTLE_S, _TRIM_EVERY_S = 1.5, 5.0
# Sources that have taken less than this share of the limit have not brought it about.
_LEAST_SHARE = 1 / 4
# A frame is on its way through the engine and the outputs for a while, and makes others take memory meanwhile, also when its source
# is given up: of the bytes that came, so much counts at the next look.
_KEPT_SHARE = 0.9
_PAGE_BYTES = 4096
_MB = 1_000_000


def limit_bytes(wanted_bytes: int | None = None) -> int | None:
    """What was asked for, or half of the machine's memory, or of what this process's cgroup may take; None where nothing tells."""
    available = available_bytes()
    return wanted_bytes or (None if available is None else available // 2)


@dataclass()
class _Account:
    """What a source took.

    Attributes:
        charged_bytes: its part of what the process has grown by.
        touched: pages that its threads had touched when they were last seen, by thread.
        frames_bytes: bytes of its frames by then.
        moving_bytes: those of its newest frames.
        processes_bytes: what its processes took by then.
    """

    source: Source
    charged_bytes: float = 0.0
    touched: dict[int, int] = field(default_factory=dict)
    processes_bytes: int = 0
    frames_bytes: int = 0
    moving_bytes: float = 0.0

    def taken(self) -> tuple[int, int]:
        """Since the last call: bytes that its threads touched, and those by which its processes grew."""
        telemetry = self.source.telemetry
        before = self.touched
        self.touched = {thread: pages_touched(thread) for thread in telemetry.threads}
        pages = sum(max(0, count - before.get(thread, 0)) for thread, count in self.touched.items())
        processes = sum(resident_bytes(process) for process in self.source.processes())
        grown = processes - self.processes_bytes
        self.moving_bytes = self.moving_bytes * _KEPT_SHARE + telemetry.bytes_in - self.frames_bytes
        self.processes_bytes, self.frames_bytes = processes, telemetry.bytes_in
        return pages * _PAGE_BYTES, max(0, grown)


class MemoryLimit:
    """Call it often; it looks at the memory a few times a second.

    Args:
        sources: those of the run, before they are read.
        limit_bytes: of the process and those that read for it; None: there is none.
        resident: measures the process.
        clock: in seconds.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        limit_bytes: int | None,
        *,
        resident: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit_bytes = limit_bytes
        self._accounts = [_Account(source) for source in sources]
        self._resident, self._clock = resident, clock
        self._first_bytes = self._last_bytes = resident()
        self._touched = pages_touched()
        self._nobodys: dict[int, int] = {}  # pages that such threads had touched
        self._due_s = self._trim_due_s = clock()
        self._has_told = False

    def join(self, source: Source) -> None:
        """Charge one more source, before it is read."""
        self._accounts.append(_Account(source))

    def leave(self, source: Source) -> None:
        """Charge it no more."""
        self._accounts = [account for account in self._accounts if account.source is not source]

    def __call__(self) -> None:
        """Look, if it is time; give a source up if it must be."""
        now_s = self._clock()
        if now_s < self._due_s or self.limit_bytes is None:
            return
        self._due_s = now_s + _EVERY_S
        if self._measured() <= self.limit_bytes:
            return
        if now_s >= self._trim_due_s:
            self._trim_due_s = now_s + _TRIM_EVERY_S
            give_back_freed_memory()
            if self._measured() <= self.limit_bytes:
                return
        self._give_up()
        self._due_s = now_s + _SETTLE_S

    def _measured(self) -> int:
        """What is taken now, after it was charged."""
        taken = [account.taken() for account in self._accounts]
        total = self._resident() + sum(account.processes_bytes for account in self._accounts)
        touched = pages_touched()
        nobodys = self._taken_by_nobody()
        others = max(0, (touched - self._touched) * _PAGE_BYTES - sum(pages for pages, _ in taken) - nobodys)
        moving = sum(account.moving_bytes for account in self._accounts) or 1
        weights = [
            pages + processes + others * account.moving_bytes / moving
            for account, (pages, processes) in zip(self._accounts, taken, strict=True)
        ]
        grown = total - self._last_bytes
        held = sum(account.charged_bytes for account in self._accounts)
        for account, weight in zip(self._accounts, weights, strict=True):
            if grown > 0 and sum(weights) > 0:
                account.charged_bytes += grown * weight / (sum(weights) + nobodys)
            elif grown < 0 and held:
                account.charged_bytes *= min(1.0, max(0, total - self._first_bytes) / held)
        self._last_bytes, self._touched = total, touched
        return total

    def _taken_by_nobody(self) -> int:
        """Bytes that threads touched since the last call that work for no source, such as one that opens another model."""
        before = self._nobodys
        self._nobodys = {thread: pages_touched(thread) for thread in threads_charged_to_nobody()}
        return _PAGE_BYTES * sum(max(0, count - before.get(thread, 0)) for thread, count in self._nobodys.items())

    def _give_up(self) -> None:
        assert self.limit_bytes is not None
        left = [one for one in self._accounts if one.source.telemetry.state not in (State.ENDED, State.FAILED)]
        worst = max(left, key=lambda one: one.charged_bytes, default=None)
        total, limit = self._last_bytes / _MB, self.limit_bytes / _MB
        if worst is None or sum(one.charged_bytes for one in left) < _LEAST_SHARE * self.limit_bytes:
            if not self._has_told:
                log.warning(
                    f"memory: expected the run within {limit:.0f} MB, got {total:.0f} MB, and no source that is left takes it: "
                    "give --memory-limit more, or take a smaller network"
                )
            self._has_told = True
            return
        taken = worst.charged_bytes / _MB
        worst.source.give_up(
            f"{worst.source.info.name}: expected the run within {limit:.0f} MB of memory, got {total:.0f} MB, and this source took "
            f"{taken:.0f} MB: it is given up; if its frames are meant to be so large, give --memory-limit more"
        )
