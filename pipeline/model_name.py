"""``--model``: a bundle's folder, or the name of a published network that is compiled once into the cache."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from pipeline.bundle import Bundle, cache_folder
from pipeline.command_line import SaidError
from pipeline.errors import BundleError


def open_model(model: str, say: Callable[[str], None]) -> Bundle:
    """Read a bundle, or make it first.

    Args:
        model: a folder, or a name such as "u2netp".
        say: gets one line when something is about to be compiled.

    Raises:
        BundleError: there is no such bundle and it cannot be made.
    """
    if os.path.exists(model) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", model):
        return Bundle.read(model)
    folder = cache_folder() / "bundles" / _version() / model
    if folder.is_dir():
        try:
            return Bundle.read(folder)
        except BundleError as error:
            say(f"{error}: done now")
    else:
        say(f"{model}: compiling once into {folder}")
    _compile(model, folder)
    return Bundle.read(folder)


def _compile(model: str, folder: Path) -> None:
    # A process of its own: the build half's torch never enters this one, and its memory is gone when it ends.
    home = Path(__file__).resolve().parents[1]
    search_path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "compile", "--model", model, "--output", str(folder)]
    status = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": search_path}, stdout=sys.stderr, check=False
    ).returncode
    if status != 0:
        raise SaidError(f"{model}: could not be compiled (status {status})")


def _version() -> str:
    try:
        return metadata.version("edgemask")
    except metadata.PackageNotFoundError:  # run from a clone that was not installed
        return "clone"
