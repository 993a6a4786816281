"""The build half, run from the run half: in a process of its own, so that its memory and its PyTorch are gone when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.bundle import Bundle
from pipeline.command_line import SaidError


def compile_in_process(arguments: Sequence[str], what: str) -> None:
    """Run ``python -m compile`` with these arguments; it prints to standard error.

    Raises:
        SaidError: it failed, and has told the user why; ``what`` is how the message calls what was wanted.
    """
    home = Path(__file__).resolve().parents[1]
    search_path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    status = subprocess.run(
        [sys.executable, "-m", "compile", *arguments],
        env={**os.environ, "PYTHONPATH": search_path},
        stdout=sys.stderr,
        check=False,
    ).returncode
    if status != 0:
        raise SaidError(f"{what}: could not be compiled (status {status})")


def rebuild_plan(bundle: Bundle, runtime: str) -> Bundle:
    """Build a bundle's plan for this machine's GPU from the bundle's own program.

    Args:
        bundle: on disk; it gets the plan, and loses one for the same runtime and GPU.
        runtime: as ``--target`` names it.

    Returns:
        The bundle, read again.

    Raises:
        SaidError: it cannot be built here.
        BundleError: the bundle was changed meanwhile.
    """
    compile_in_process(["--bundle", str(bundle.folder), "--target", runtime], f"{bundle.folder} for {runtime}")
    return Bundle.read(bundle.folder)
