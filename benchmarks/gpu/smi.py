"""What ``nvidia-smi`` tells."""

from __future__ import annotations

import subprocess


def nvidia_smi(fields: tuple[str, ...]) -> dict[str, str]:
    """What ``nvidia-smi`` says of the first GPU; empty without a GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return {}
    return dict(zip(fields, (value.strip() for value in lines[0].split(",")), strict=False))
