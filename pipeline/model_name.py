"""``--model``: a bundle's folder, or the name of a published network that is compiled once into the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from pipeline.build_half import compile_in_process
from pipeline.bundle import Bundle, cache_folder
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
    from pipeline.version import version

    folder = cache_folder() / "bundles" / version() / model
    if folder.is_dir():
        try:
            return Bundle.read(folder)
        except BundleError as error:
            say(f"{error}: done now")
    else:
        say(f"{model}: compiling once into {folder}")
    compile_in_process(["--model", model, "--output", str(folder)], model)
    return Bundle.read(folder)
