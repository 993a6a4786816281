"""What Linux knows of another process: its memory, threads and open files."""

from __future__ import annotations

import os
import re
from pathlib import Path


def process_state(pid: int) -> dict[str, float]:
    """How much a process holds at this moment.

    Returns:
        ``resident_mb`` (RSS) and ``anonymous_mb`` (of it what no file is behind: what it has allocated), in 10⁶ bytes; ``threads``;
        ``open_files``. Neither changes with who else maps the same libraries, as PSS and USS do.

    Raises:
        OSError: it has ended, or is another user's.
    """
    folder = Path(f"/proc/{pid}")
    kilobytes = _numbers(folder / "smaps_rollup")
    return {
        "resident_mb": kilobytes["Rss"] * 1024 / 1e6,
        "anonymous_mb": kilobytes["Anonymous"] * 1024 / 1e6,
        "threads": _numbers(folder / "status")["Threads"],
        "open_files": len(os.listdir(folder / "fd")),
    }


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used so far, its ended children's not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _numbers(path: Path) -> dict[str, int]:
    text = path.read_text(encoding="ascii", errors="replace")
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)(?: kB)?$", text, re.MULTILINE)}
