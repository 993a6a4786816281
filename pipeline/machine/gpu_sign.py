"""Whether this machine looks as if it had an NVIDIA GPU: so cheap that every start asks, for no driver and no package is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# What a driver puts there: on a desktop, on a Jetson, under Windows.
_SIGNS = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu*", "usr/lib/wsl/lib/libcuda.so.1")


def is_seen(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether there is a sign of a GPU, usable or not, that ``CUDA_VISIBLE_DEVICES`` does not hide.

    Args:
        root: the folder that holds ``dev``, ``sys`` and ``usr``.
        environment: variables of the process.
    """
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(next(root.glob(sign), None) for sign in _SIGNS) or is_on_the_bus(root)


def is_on_the_bus(root: Path) -> bool:
    """Whether a GPU of NVIDIA's is plugged in, also one without a driver."""
    return any(
        _text(vendor) == "0x10de" and _text(vendor.parent / "class").startswith("0x03")
        for vendor in root.glob("sys/bus/pci/devices/*/vendor")
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
