"""Which inference servers compute the masks, and how they are spoken to: checked before any of them is."""

from __future__ import annotations

import os
import re
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import OptionError
from pipeline.quick_dataclass import dataclass

Memory = Literal["raw", "shared"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)

TOKEN_VARIABLE = "EDGEMASK_SERVER_TOKEN"
"""The environment's variable that holds the servers' token, where no file is named."""

_PORT = 8001
_MOST_TOKEN_BYTES = 1 << 16


@dataclass(frozen=True)
class ServerOptions:
    """The servers of ``--backend triton``. What does not go together is refused when it is made.

    Attributes:
        servers: "grpc://HOST:PORT", more of them after commas; "grpcs://" is TLS.
        memory: how frames and masks travel: "raw", in the messages; "shared", in memory that this machine's servers share with us.
        ca: a file of the authorities that the servers' certificates are verified by; None: those of gRPC.
        cert: our own certificate's file, for mutual TLS, with its ``key``.
        key: the private key's file.
        token: what the servers ask for; never shown. None: what ``token_file`` or EDGEMASK_SERVER_TOKEN in the environment holds.
        token_file: a file that holds it.
        insecure: speak in plain text to other machines too.
        wait_s: how long servers that are gone or busy are waited for, at the start and by files.
        goes_on: no frame waits for servers that are gone or busy, as live sources need it: it has no mask then.
        refused_s: with ``goes_on``, for so long what servers say at the start is not final: a machine that begins does not answer or
            has no model yet. 0: they are taken at their word. A token or certificate that is refused is final in any case.
        in_flight: how many submissions are on their way at once; None: three, and two more for each server after the first.

    Raises:
        OptionError: a value that is not taken, or options that do not go together.
    """

    servers: str
    memory: Memory = "raw"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    insecure: bool = False
    wait_s: float = 60.0
    goes_on: bool = False
    refused_s: float = 0.0
    in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.memory not in MEMORIES:
            raise OptionError(f"--server-memory: expected {' or '.join(MEMORIES)}, got {self.memory!r}")
        if (self.cert is None) != (self.key is None):
            raise OptionError(
                "--server-cert: expected --server-key beside it, and the other way round, got one of them"
            )
        others = [address for address in self.addresses if not is_loopback(address)]
        if others and self.memory == "shared":
            raise OptionError(
                f"--server-memory shared: expected servers on this machine, such as 127.0.0.1:8001, got {others[0]}: take raw"
            )
        if others and not self.is_tls and not self.insecure:
            raise OptionError(
                f"--server: expected TLS for {others[0]}, which is another machine, got plain text: give --server-ca FILE or "
                "grpcs://, or --insecure on a network that you trust"
            )

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """Each server as "host:port", without the scheme."""
        return tuple(address for _, address in self._parts)

    @property
    def is_tls(self) -> bool:
        """Whether the connections are encrypted."""
        return any(scheme == "grpcs" for scheme, _ in self._parts) or self.ca is not None or self.cert is not None

    def read_token(self) -> str | None:
        """The servers' token: not from the command line, which other users see.

        Raises:
            OptionError: its file cannot be read, or holds no token.
        """
        file = self.token_file
        if self.token is not None or file is None:
            return self.token or os.environ.get(TOKEN_VARIABLE) or None
        try:
            with Path(file).open("rb") as opened:
                token = opened.read(_MOST_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            # What was given may be the token itself.
            why = getattr(error, "strerror", None) or "it has other bytes"
            raise OptionError(
                f"--server-token-file: expected a file with a token in ASCII, cannot read it ({why})"
            ) from error
        if not token or not token.isprintable():
            got = "more" if token else "none"
            raise OptionError(f"--server-token-file: expected one line with a token, got {got} in it")
        return token

    def check_files(self) -> None:
        """Refuse certificates and keys that are not there, before anything is sent.

        Raises:
            OptionError: one is not.
        """
        for option, path in (("--server-ca", self.ca), ("--server-cert", self.cert), ("--server-key", self.key)):
            if path is not None and not os.path.isfile(path):
                raise OptionError(f"{option}: expected a file in PEM form, got {path}, which is none")

    @cached_property
    def _parts(self) -> tuple[tuple[str, str], ...]:
        parts, scheme = [], ""
        for text in self.servers.split(","):
            given, has_scheme, rest = text.strip().rpartition("://")
            found = given.lower() if has_scheme else scheme
            scheme = scheme or found
            parts.append((found, _address(rest) if found == scheme in ("grpc", "grpcs") else ""))
        if not all(address for _, address in parts):
            # An address with a password is not repeated.
            shown = "one with a user" if "@" in self.servers else repr(self.servers)
            raise OptionError(f"--server: expected grpc://HOST:PORT, more of them after commas, got {shown}")
        return tuple(dict.fromkeys(parts))


def is_loopback(address: str) -> bool:
    """Whether "host:port" is on this machine."""
    import ipaddress  # --help reads this module, and would wait for it

    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(text: str) -> str:
    """A server's text as "host:port"; "" if it is none."""
    import ipaddress  # as above

    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", text, re.ASCII)
    if found is None or not 0 < (port := int(found[3] or _PORT)) < 1 << 16:
        return ""
    if found[1] is None:
        return f"{found[2].lower()}:{port}"
    try:
        return f"[{ipaddress.IPv6Address(found[1])}]:{port}"
    except ValueError:
        return ""
