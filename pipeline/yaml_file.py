"""YAML files that people write: small, plain and safe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import OptionError

LIMIT_BYTES = 64 * 1024
DEPTH_LIMIT = 20


class _Texts(yaml.SafeLoader):
    """Plain values as they are spelled; only a null that is written out is one."""


_NULL = "tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL)\Z")
_Texts.yaml_implicit_resolvers = {first: [_NULL] for first in "~nN"}


def read_yaml(path: Path, what: str, *, as_text: bool = False) -> Any:
    """Read a file of plain values, lists and mappings; JSON is YAML too.

    Args:
        path: the file.
        what: how messages call it, such as "--config".
        as_text: give every value as it is spelled: an empty text for one that is left out.

    Returns:
        What ``yaml.safe_load`` makes of it, or texts alone.

    Raises:
        OptionError: it cannot be read, is too large, is not YAML, or has aliases or deep nesting, which make a few lines into
            gigabytes or take minutes.
    """
    # Asked first because opening a named pipe would wait.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OptionError(f"{what} {path}: expected a file, got something else")
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OptionError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > LIMIT_BYTES:
        raise OptionError(f"{what} {path}: expected at most {LIMIT_BYTES} bytes, got more")
    try:
        depth = 0
        for event in yaml.parse(content, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEPTH_LIMIT:
                raise OptionError(f"{what} {path}: expected plain values and lists, got aliases or deep nesting")
        return yaml.load(content, _Texts if as_text else yaml.SafeLoader)
    except OptionError:
        raise
    except Exception as error:  # beside its own errors PyYAML lets those of int() and of dates through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OptionError(f"{what} {path}: expected YAML, got: {reason[:160]}") from error
