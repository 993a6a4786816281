"""System, board, power mode and memory, read from ``/proc`` and ``/etc``."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine.probe import Facts, Finding, Question
from pipeline.machine.system_file import read_text

# L4T release -> JetPack; the longest beginning that fits counts.
_JETPACKS = {
    "32.": "4",
    "35.": "5",
    "36.2": "6.0 (developer preview)",
    "36.3": "6.0",
    "36.4": "6.1 or 6.2",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.": "7.2",
}
_FIRST_L4T = (36, 4)
"""The first L4T whose JetPack has TensorRT 10.3."""
_LITTLE_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Board:
    """What kind of machine it is.

    Attributes:
        model: of an embedded board, by its device tree.
        l4t: release of NVIDIA's Linux for Tegra, such as "36.4.3".
        container: whether this runs in one, where drivers come from the host.
    """

    model: str | None
    jetson: bool
    l4t: str | None
    container: bool


def read_board(root: Path) -> Board:
    """Read what kind of machine it is below ``root``."""
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    model = read_text(root / "proc/device-tree/model")
    release = read_text(root / "etc/nv_tegra_release")
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return Board(
        model=model,
        jetson=release is not None or "nvidia,tegra" in compatible or "Jetson" in (model or ""),
        l4t=f"{match[1]}.{match[2]}" if match else None,
        container=any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv")),
    )


def driver_command(root: Path) -> str:
    """How NVIDIA's driver is installed on a machine that is no Jetson."""
    family = re.findall(r"^ID(?:_LIKE)?=(.*)$", read_text(root / "etc/os-release") or "", re.MULTILINE)
    if "ubuntu" in " ".join(family):
        return "sudo ubuntu-drivers install && sudo reboot"
    if "debian" in " ".join(family):
        return "sudo apt install nvidia-driver && sudo reboot"
    return "xdg-open https://www.nvidia.com/drivers"


def jetpack_command(root: Path, module: str) -> str:
    """How a Python module that JetPack brings becomes importable on a Jetson."""
    if any(root.glob(f"usr/lib/python3*/dist-packages/{module}")):
        # It is there, for the system's Python, and this interpreter does not see it.
        install = "PATH=/usr/local/cuda/bin:$PATH .venv/bin/pip install 'edgemask[pycuda]'"
        return f"/usr/bin/python3 -m venv --system-site-packages .venv && {install}"
    return "sudo apt install nvidia-jetpack"


def questions(root: Path, environment: Mapping[str, str]) -> dict[str, Question]:
    """What is asked in processes of their own."""
    nvpmodel = shutil.which("nvpmodel", path=os.pathsep.join((environment.get("PATH", ""), "/usr/sbin")))
    return {"nvpmodel": Question(command=(nvpmodel, "-q"))} if nvpmodel and read_board(root).jetson else {}


def system_findings(facts: Facts) -> list[Finding]:
    """Operating system, Python and edgemask."""
    names = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(facts.root / "etc/os-release") or "", re.MULTILINE)
    board = read_board(facts.root)
    parts = [names[1] if names else platform.system(), platform.machine(), f"Python {platform.python_version()}"]
    parts += [board.model] if board.model and not board.jetson else []
    parts += ["in a container"] if board.container else []
    parts += [f"edgemask {facts.versions['edgemask']}"] if "edgemask" in facts.versions else []
    return [Finding("system", "System", "ok", ", ".join(parts))]


def jetson_findings(facts: Facts) -> list[Finding]:
    """Model, L4T and power mode; nothing on another machine."""
    board = read_board(facts.root)
    if not board.jetson:
        return []
    findings = [Finding("jetson", "Jetson", "ok", board.model or "a Jetson whose device tree names no model")]
    return [*findings, _l4t_finding(board), _power_finding(facts, board)]


def memory_findings(facts: Facts) -> list[Finding]:
    """Memory that programs can have now."""
    text = read_text(facts.root / "proc/meminfo") or ""
    sizes_bytes = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}
    if not {"MemAvailable", "MemTotal"} <= sizes_bytes.keys():
        return [Finding("memory", "Memory", "note", "unknown: /proc/meminfo does not say")]
    available_bytes = sizes_bytes["MemAvailable"]
    words = f"{available_bytes / 2**30:.1f} GiB free of {sizes_bytes['MemTotal'] / 2**30:.1f} GiB"
    if read_board(facts.root).jetson:
        words += ", which the GPU shares"
    if available_bytes < _LITTLE_MEMORY_BYTES:
        words += ": little, compiling u2net takes 3 GiB; close other programs, or compile on another machine"
        return [Finding("memory", "Memory", "note", words)]
    return [Finding("memory", "Memory", "ok", words)]


def _l4t_finding(board: Board) -> Finding:
    if board.l4t is None:
        place = "in a container it may be absent" if board.container else "is this NVIDIA's image?"
        return Finding("l4t", "L4T", "note", f"/etc/nv_tegra_release names no release ({place})")
    fits = [start for start in _JETPACKS if (board.l4t + ".").startswith(start if start.endswith(".") else start + ".")]
    jetpack = f"JetPack {_JETPACKS[max(fits, key=len)]}" if fits else "a JetPack not known here"
    words = f"{board.l4t} ({jetpack})"
    major, minor = (int(part) for part in (board.l4t + ".0").split(".")[:2])
    if (major, minor) < _FIRST_L4T:
        words += ": its TensorRT is older than 10.3; write JetPack 6.1 or later to the board, from a PC"
        return Finding("l4t", "L4T", "missing", words, "sdkmanager")
    return Finding("l4t", "L4T", "ok", words)


def _power_finding(facts: Facts, board: Board) -> Finding:
    title = ("power_mode", "Power mode")
    answer = facts.answers.get("nvpmodel")
    match = re.search(r"NV Power Mode:\s*(\S+)", answer.found.get("output", "")) if answer else None
    if match is None:
        reason = "nvpmodel is not here" if answer is None else answer.problem or "nvpmodel -q does not say"
        where = "ask on the host" if board.container else "ask as root"
        return Finding(*title, "note", f"unknown: {reason}; {where}", "sudo nvpmodel -q")
    if match[1].startswith("MAXN"):
        return Finding(
            *title, "ok", f"{match[1]}, the fastest; `sudo jetson_clocks` keeps the clocks up for steady times"
        )
    modes = re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read_text(facts.root / "etc/nvpmodel.conf") or ""
    )
    fastest = [number for number, name in modes if name.startswith("MAXN")]
    words = f"{match[1]}; MAXN is faster"
    if not fastest:
        words += " (its number differs from board to board: see /etc/nvpmodel.conf)"
    return Finding(*title, "note", words, f"sudo nvpmodel -m {fastest[-1] if fastest else 0}")
