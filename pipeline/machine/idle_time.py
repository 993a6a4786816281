"""How much of the processor nobody wants: from Linux's /proc/stat, and from cgroups, which may not have all of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from pipeline.machine.system_file import read_text

_IDLE, _IO_WAIT = 3, 4
_USER, _SYSTEM = 11, 12  # of a process, behind its name


class IdleTime:
    """Measures between two questions.

    Args:
        cores: those that count, by number.
        root: where ``proc`` is.
    """

    def __init__(self, cores: Collection[int], root: Path = Path("/")) -> None:
        self._cores, self._root = cores, root
        self._before: tuple[float, float, int | None] | None = None
        self._held_up_us = 0

    def idle_cores(self, process: int | None = None) -> float | None:
        """How many cores were idle, on average, since the last question.

        Args:
            process: its time counts as idle: of one that takes only what nobody else wants.

        Returns:
            0 where a cgroup has held this process up meanwhile: it had used up its share of what may well be idle cores. None at the
            first question, after a change of process, and where this system does not tell.
        """
        idle_s = _idle_s(read_text(self._root / "proc/stat") or "", self._cores)
        if idle_s is None:
            return None
        now_s, before = time.monotonic(), self._before
        held_up_us, self._held_up_us = self._held_up_us, _held_up_us(self._root)
        if process is not None:
            idle_s += _used_s(read_text(self._root / f"proc/{process}/stat") or "")
        self._before = now_s, idle_s, process
        if before is None or before[2] != process or now_s <= before[0]:
            return None
        if self._held_up_us > held_up_us:
            return 0.0
        return max(0.0, (idle_s - before[1]) / (now_s - before[0]))


def _idle_s(text: str, cores: Collection[int]) -> float | None:
    """Idle seconds of these cores since the machine began; None where none of them is told."""
    ticks = [
        int(words[1 + _IDLE]) + int(words[1 + _IO_WAIT])
        for words in map(str.split, text.splitlines())
        if len(words) > 1 + _IO_WAIT
        and words[0][:3] == "cpu"
        and words[0][3:].isdecimal()
        and int(words[0][3:]) in cores
    ]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _held_up_us(root: Path) -> int:
    """For how long the cgroup of this process, and those around it, were not let run, in all; 0 where that is not told."""
    match = re.search(r"^0::/(.*)$", read_text(root / "proc/self/cgroup") or "", re.MULTILINE)
    if match is None:
        return 0
    inner = Path(match[1])
    texts = [read_text(root / "sys/fs/cgroup" / one / "cpu.stat") or "" for one in (inner, *inner.parents)]
    return sum(int(one[1]) for text in texts if (one := re.search(r"^throttled_usec (\d+)$", text, re.MULTILINE)))


def _used_s(text: str) -> float:
    """Seconds that a process has computed; 0 where it is gone."""
    words = text.rpartition(")")[2].split()
    return (int(words[_USER]) + int(words[_SYSTEM])) / os.sysconf("SC_CLK_TCK") if len(words) > _SYSTEM else 0.0
