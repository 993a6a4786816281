"""What the processor computes in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def has_bf16(root: Path) -> bool:
    """Whether it computes in BF16, as Linux tells it of Intel's, AMD's and ARM's.

    Args:
        root: the folder that holds ``proc``.
    """
    with suppress(OSError), (root / "proc" / "cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        return any("bf16" in line for line in lines if line.startswith(("flags", "Features")))
    return False
