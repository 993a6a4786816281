"""A search for INT8 in a process of its own: how long it takes, what it says of that, and how much memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.bundles.bundle import Bundle, cache_folder
from pipeline.command.command_line import SaidError

_BEGINS, _SEARCHES, _ENDS = "calibrating:", "searching INT8:", "exporting the frame program, int8"
_LEFT = re.compile(r"searching INT8:\s+(\d+) %.*about (?:(\d+):)?(\d+):(\d+) left")
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a terminal's cursor, around a bar
_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Search:
    """What a search for INT8 cost.

    Attributes:
        calibration_s: seconds until all calibration pictures had been through the network.
        search_s: seconds of the search after that.
        peak_memory_mb: the most that the process had in memory, its libraries included.
        told: of some shares of the search: (share, seconds that were said to be left, seconds that really were).
    """

    calibration_s: float
    search_s: float
    peak_memory_mb: float
    told: tuple[tuple[float, float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "calibration_s": round(self.calibration_s, 1),
            "search_s": round(self.search_s, 1),
            "peak_memory_mb": round(self.peak_memory_mb),
            "time_left": [
                {"done": share, "told_s": told_s, "really_s": round(really_s, 1)}
                for share, told_s, really_s in self.told
            ],
        }


def compile_watched(name: str, arguments: Sequence[str]) -> tuple[Bundle, Search]:
    """Compile INT8 into the cache, in place of what was there, with no search of before; what this one finds is kept there.

    Args:
        name: of the bundle's folder.
        arguments: of ``python -m compile``, without ``--output``.

    Raises:
        SaidError: it failed, and the user was told.
    """
    folder = cache_folder() / "benchmarks" / name
    (cache_folder() / "weights").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgemask.") as anew:
        Path(anew, "weights").symlink_to((cache_folder() / "weights").resolve())
        process = subprocess.Popen(
            [sys.executable, "-m", "compile", *arguments, "--output", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "EDGEMASK_CACHE": anew},
        )
        assert process.stdout is not None
        with process.stdout as stream:
            said = list(_said(stream))
        # Not Popen.wait: it does not tell the memory of this child alone.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if Path(anew, "int8").is_dir():
            shutil.copytree(Path(anew, "int8"), cache_folder() / "int8", dirs_exist_ok=True)
    if process.returncode != 0:
        raise SaidError(name)
    return Bundle.read(folder), search_of(said, usage.ru_maxrss / 1024)


def search_of(said: Sequence[tuple[float, str]], peak_memory_mb: float) -> Search:
    """What a search cost, from what the command said and when.

    Args:
        said: (seconds on any clock, line), with those that a progress bar wrote over.
        peak_memory_mb: of the process.
    """
    begin_s = next(at_s for at_s, line in said if line.startswith(_BEGINS))
    search_s = next((at_s for at_s, line in said if line.startswith(_SEARCHES)), begin_s)
    end_s = next(at_s for at_s, line in said if line.startswith(_ENDS) and at_s >= search_s)
    lefts = [(at_s, match) for at_s, line in said if (match := _LEFT.match(line))]
    told = []
    for share in _SHARES:
        first = next(((at_s, match) for at_s, match in lefts if int(match[1]) >= 100 * share), None)
        if first is not None:
            at_s, match = first
            left_s = 3600 * int(match[2] or 0) + 60 * int(match[3]) + int(match[4])
            told.append((share, float(left_s), end_s - at_s))
    return Search(search_s - begin_s, end_s - search_s, peak_memory_mb, tuple(told))


def _said(stream: IO[bytes]) -> Iterator[tuple[float, str]]:
    """Each line as it comes, with its time; shown to the user as well."""
    rest = b""
    while piece := os.read(stream.fileno(), 1 << 16):
        now_s = time.monotonic()
        sys.stderr.buffer.write(piece)
        sys.stderr.flush()
        *lines, rest = re.split(rb"[\r\n]+", rest + piece)
        for line in lines:
            yield now_s, _MOVES.sub("", line.decode(errors="replace"))
