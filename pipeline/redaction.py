"""Take passwords out of text before anybody reads it: messages, names, logs, pages, metrics."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

HIDDEN = "***"

# From "://" to the last "@" of the line: a password may hold "/", "@", "#", ":", "?" and spaces, so nothing before that "@" can
# be known to be the host. Two addresses on a line are told apart by a space, another scheme and an "@" before them.
_USER_INFO = re.compile(
    rf"(?P<scheme>[a-z][a-z0-9+.-]*://)(?!{re.escape(HIDDEN)}@)"
    r"(?:(?:(?!\s(?:rtsps?|rtspt|rtmps?|https?|wss?|srt|ftps?|sftp|tcp|udp)://)[^\r\n])*@|[^\r\n]*@)",
    re.IGNORECASE,
)
_NAMES = "pass(?:word|wd|phrase)?|passwort|pwd|pw|token|secret|(?:api|stream)?key|auth|sig|signature|credentials?"
# "password=…" in a query, in a path ("/user=a_password=b_channel=1.sdp") and among a pipeline's properties ("user-pw=…").
_NAMED = re.compile(
    rf"(?P<name>(?<![a-z0-9])(?:[a-z0-9]+[_-])*?(?:{_NAMES})\s*=\s*)"
    r"(?:\"(?:[^\"\\\r\n]|\\.)*\"|'[^'\r\n]*'|\S*?(?=&|\s|_[a-z]+=|$))",
    re.IGNORECASE,
)


# The same in an address that stands alone, where a value may hold spaces.
_QUERY = re.compile(rf"[?&](?:[a-z0-9]+[_-])*?(?:{_NAMES})=(?P<value>[^&]*)", re.IGNORECASE)


def redact(text: str, *secrets: str) -> str:
    r"""Text without the credentials of any address in it.

    Hidden are the user and password of every ``scheme://user:password@host``, the values of names such as ``password=``,
    ``token=`` and ``key=``, and what is given as secret, in the spellings that libraries use. Rather too much is hidden than too
    little: an "@" in an address's path hides the host.

    Args:
        text: any text; lines are taken one by one.
        secrets: what must not be seen in it, as ``secrets_of`` gives it.
    """
    spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, HIDDEN)
    text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _NAMED.sub(rf"\g<name>{HIDDEN}", text)


def secrets_of(address: str) -> tuple[str, ...]:
    """What ``redact`` must hide when a library speaks of this address: whole credentials, passwords, values of the query."""
    found: list[str] = []
    if match := _USER_INFO.search(address):
        user_info = match.group()[len(match["scheme"]) : -1]
        found += [user_info, user_info.partition(":")[2]]
    found += [match.group()[len(match["name"]) :].strip("\"'") for match in _NAMED.finditer(address)]
    found += [match["value"] for match in _QUERY.finditer(address)]
    return tuple(dict.fromkeys(found))


def _spellings(secret: str) -> set[str]:
    plain = unquote(secret)
    spellings = {
        secret,
        plain,
        quote(secret),
        quote(plain),
        quote(plain, safe=""),
        repr(secret)[1:-1],
        repr(plain)[1:-1],
    }
    # What is shorter is found by where it stands: hiding every "a" of a message would hide the message.
    return {spelling for spelling in spellings if len(spelling) >= 3 and spelling != HIDDEN}
