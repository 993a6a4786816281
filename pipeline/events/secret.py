"""Passwords and keys that are not on a command line, which other users see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.bundles.regular_file import read_regular
from pipeline.errors import SinkError

_MOST_BYTES = 4096


def secret_of(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """What the environment says: the variable ``NAME``, or the content of the file that ``NAME_FILE`` names; else nothing.

    Raises:
        SinkError: the file cannot be read.
    """
    if name in environment:
        return environment[name]
    path = environment.get(f"{name}_FILE", "")
    if not path:
        return ""
    try:
        return read_regular(Path(path), _MOST_BYTES).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SinkError(
            f"{name}_FILE: expected a file with the secret, got one that cannot be read ({reason})"
        ) from error
