"""What the system tells of itself in small files."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """A small file of ``/proc``, ``/sys`` or ``/etc`` without its end (a NUL byte in a device tree); None if there is none."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return None
