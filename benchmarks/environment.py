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

PACKAGES = ("edgemask", "numpy", "opencv-python", "opencv-python-headless", "av", "onnxruntime", "torch", "tensorrt")


def environment() -> dict[str, Any]:
    """Processor, GPU, versions, commit and time, as JSON can hold them."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: version for package in PACKAGES if (version := _version(package))},
    }


def write_result(path: Path, question: str, result: dict[str, Any]) -> None:
    """Write a measurement with its environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {"question": question, "environment": environment(), **result}
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
