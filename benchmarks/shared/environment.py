"""The machine and the versions that a measurement ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.shared.throttling import jetson_state

PACKAGES = ("edgemask", "numpy", "opencv-python", "opencv-python-headless", "av", "onnxruntime", "torch", "tensorrt")


def environment() -> dict[str, Any]:
    """Processor, GPU, versions, commit and time, as JSON can hold them."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "clocks": _clocks(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "gpu_state": _gpu_state(),
        "jetson_state": jetson_state(),
        "power_mode": _output("nvpmodel", "-q"),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: version for package in PACKAGES if (version := _version(package))},
    }


def write_result(path: Path, question: str, result: dict[str, Any]) -> None:
    """Write a measurement with its environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {"question": question, "environment": environment(), **result}
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    home = str(Path.home()).rstrip("/")
    if home:  # results are passed on: whose machine it was is nobody's business
        text = text.replace(f"{home}/", "~/")
    path.write_text(text + "\n", encoding="utf-8")


def _commit() -> str | None:
    """Of the checkout that this is part of; an installed package is part of none, whatever repository lies around it."""
    root = Path(__file__).parents[2]
    return _output("git", "-C", str(root), "rev-parse", "--short", "HEAD") if (root / ".git").exists() else None


def _clocks() -> dict[str, str]:
    """The processor's governor and present clock; empty where a virtual machine does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    found = {}
    for name in ("scaling_governor", "scaling_cur_freq"):
        try:
            found[name] = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
    return found


def _gpu_state() -> dict[str, str] | None:
    """Clocks, power, temperature and what throttles an NVIDIA GPU at this moment."""
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")
    answer = _output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    if answer is None:
        return None
    return dict(zip(fields, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:  # the program is not there
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
