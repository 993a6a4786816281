"""An address of a live source, or of who gets events: what is connected to, what is shown, and what must never be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from urllib.parse import quote, unquote

from pipeline.errors import SourceError
from pipeline.redaction import redact, secrets_of

_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s@:/?#\[\]\\]+)(?::(?P<port>\d{1,5}))?")
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
_SAFE = "!$%&'()*+,;:=@/?#~"  # what may stand in a path as it is; a quotation mark, a space or a backslash may not


@dataclass(frozen=True)
class Address:
    """``scheme://user:password@host:port/path``, taken apart.

    A password may hold any character: where there are credentials, they end at the last "@" of all. An "@" in the path behind
    them is written as %40.

    Attributes:
        scheme: in small letters.
        user: decoded; empty when there is none.
        password: decoded; empty when there is none.
        host: without brackets and port.
        port: the given one, or the scheme's.
        bare_url: the whole without credentials.
        name: host and path, for titles and messages; holds no secret.
    """

    scheme: str
    user: str = field(repr=False)
    password: str = field(repr=False)
    host: str
    port: int
    bare_url: str = field(repr=False)
    name: str
    _spec: str = field(repr=False)

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Take an address apart.

        Raises:
            SourceError: it names no host, or is no UTF-8.
        """
        scheme, _, after = spec.partition("://")
        scheme = scheme.lower()
        if re.search(r"[\ud800-\udfff]", spec):
            raise SourceError(f"{scheme}://…: expected an address, got one that is no UTF-8")
        authority = re.split(r"[/?#]", after, maxsplit=1)[0]
        user_info, place = "", authority
        if "@" in authority or not _HOST.fullmatch(authority):
            user_info, _, after = after.rpartition("@")
            place = re.split(r"[/?#]", after, maxsplit=1)[0]
        rest = after[len(place) :]
        match = _HOST.fullmatch(place)
        port = int(match["port"] or _PORTS[scheme]) if match else 0
        if match is None or not 0 < port < 65536:
            raise SourceError(
                f"{scheme}://…: expected {scheme}://user:password@host:port/path, got an address without a host"
            )
        user, _, password = user_info.partition(":")
        return cls(
            scheme,
            _decoded(user),
            _decoded(password),
            match["host"].strip("[]"),
            port,
            f"{scheme}://{place}{quote(rest, safe=_SAFE)}",
            re.split(r"[?#]", redact(spec).partition("://")[2].removeprefix("***@"), maxsplit=1)[0].rstrip("/"),
            spec,
        )

    @property
    def url(self) -> str:
        """For a library: with the credentials, all their odd characters encoded. Never to be shown."""
        if not self.user and not self.password:
            return self.bare_url
        return self.bare_url.replace("://", f"://{quote(self.user, safe='')}:{quote(self.password, safe='')}@", 1)

    @property
    def is_encrypted(self) -> bool:
        """Whether it is reached by TLS."""
        return self.scheme in ("https", "rtsps", "mqtts")

    def with_credentials(self, other: Address) -> Address:
        """The same place with another address's user and password."""
        return replace(self, user=other.user, password=other.password)

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """What no message may hold, for ``redact``."""
        return (*secrets_of(self._spec), *secrets_of(self.url), *filter(None, [self.password]))


def _decoded(text: str) -> str:
    """Percent-encoding undone, unless a stray "%" shows that there is none."""
    return text if re.search(r"%(?![0-9a-fA-F]{2})", text) else unquote(text)
