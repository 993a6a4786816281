"""Logging in to cameras: Basic, and Digest with MD5, SHA-256 or SHA-512/256."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence

_HASHES = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}


class Login:
    """The credentials of one connection, said in the way that the server asks for, never before it asks.

    Args:
        user: decoded.
        password: decoded.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._way: dict[str, str] | None = None
        self._count = 0

    def asked(self, challenges: Sequence[str]) -> bool:
        """Take the best of the ways that a server offers; whether there is one that is known.

        Args:
            challenges: the values of its WWW-Authenticate headers.
        """
        ways = [_way(challenge) for challenge in challenges]
        order = ["basic", *_HASHES]
        known = [way for way in ways if not _unknown(way)]
        self._way = max(known, key=lambda way: order.index(_hash_name(way)), default=None)
        self._count = 0
        return self._way is not None

    def header(self, method: str, uri: str) -> str | None:
        """The value of Authorization for one request; None before a way was chosen."""
        way = self._way
        if way is None:
            return None
        if way["scheme"] == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        self._count += 1
        realm, nonce = way.get("realm", ""), way.get("nonce", "")
        count, own = f"{self._count:08x}", secrets.token_hex(8)
        first = self._hashed(f"{self._user}:{realm}:{self._password}")
        if _algorithm(way).endswith("-SESS"):
            first = self._hashed(f"{first}:{nonce}:{own}")
        second = self._hashed(f"{method}:{uri}")
        between = f"{nonce}:{count}:{own}:auth" if "qop" in way else nonce
        fields = {
            "username": self._user.replace("\\", "\\\\").replace('"', '\\"'),
            "realm": realm,
            "nonce": nonce,
            "uri": uri,
        }
        fields["response"] = self._hashed(f"{first}:{between}:{second}")
        if "opaque" in way:
            fields["opaque"] = way["opaque"]
        text = ", ".join(f'{name}="{value}"' for name, value in fields.items())
        text += f", algorithm={way['algorithm']}" if "algorithm" in way else ""
        if "qop" in way or _algorithm(way).endswith("-SESS"):
            text += f', cnonce="{own}"'
        return f"Digest {text}" + (f", qop=auth, nc={count}" if "qop" in way else "")

    def _hashed(self, text: str) -> str:
        assert self._way is not None
        return hashlib.new(_HASHES[_hash_name(self._way)], text.encode(), usedforsecurity=False).hexdigest()


def unsupported_login(challenges: Sequence[str]) -> str:
    """What a server asks for where none of its ways to log in is known, in words; empty where one is, or none is named."""
    offered = [_unknown(_way(challenge)) for challenge in challenges]
    return "" if "" in offered else " or ".join(dict.fromkeys(offered))


def _way(challenge: str) -> dict[str, str]:
    scheme, _, details = challenge.strip().partition(" ")
    pairs = re.findall(r'([\w-]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))', details)
    return {**{name.lower(): quoted or bare for name, quoted, bare in pairs}, "scheme": scheme.lower()}


def _algorithm(way: dict[str, str]) -> str:
    return way.get("algorithm", "MD5").upper()


def _hash_name(way: dict[str, str]) -> str:
    return "basic" if way["scheme"] == "basic" else _algorithm(way).removesuffix("-SESS")


def _unknown(way: dict[str, str]) -> str:
    """A way to log in, in words; empty if it is known."""
    if way["scheme"] == "basic":
        return ""
    if way["scheme"] != "digest":
        return re.sub(r"\W", "", way["scheme"])[:20].capitalize() or "nothing"
    if _hash_name(way) not in _HASHES:
        return f"Digest with {re.sub(r'[^A-Z0-9-]', '', _algorithm(way))[:20]}"
    return "" if "auth" in re.split(r"[\s,]+", way.get("qop", "auth")) else "Digest with auth-int"
