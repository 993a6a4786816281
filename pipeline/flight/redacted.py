"""What is written of a run's options and messages: no password, no token."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.redaction import HIDDEN, redact, secrets_of

_SECRET = re.compile(r"(?:.*_)?(?:token|password|passwd|secret|key|credentials?)", re.IGNORECASE)
# What is shorter stands in other words too.
_LEAST = 6


def redacted(value: Any, secrets: Sequence[str]) -> Any:
    """Options, messages and the like as JSON has them, without what nobody may read.

    Args:
        value: of mappings, sequences, text, numbers, and anything else, which becomes text.
        secrets: what must not be seen in any text, beside the credentials of addresses, which never are.

    Returns:
        A new value; under a name such as "token" there is no text at all.
    """
    if isinstance(value, Mapping):
        return {
            str(name): HIDDEN if _is_hidden(str(name), entry) else redacted(entry, secrets)
            for name, entry in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(entry, secrets) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return redact(text, *secrets, *secrets_of(text))


def known_secrets(
    addresses: Iterable[str], values: Iterable[str | None] = (), environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """What must not be seen in any text of a run.

    Args:
        addresses: of its sources and outputs.
        values: tokens that it was given.
        environment: of the process; what is called a token, a password, a secret or a key there is one.
    """
    found = [secret for address in addresses for secret in secrets_of(address)]
    found += [value for value in values if value]
    found += [value for name, value in environment.items() if _SECRET.fullmatch(name) and len(value) >= _LEAST]
    return tuple(dict.fromkeys(found))


def _is_hidden(name: str, entry: Any) -> bool:
    return bool(entry) and isinstance(entry, str) and _SECRET.fullmatch(name) is not None
