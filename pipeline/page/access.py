"""Who may use the page: names it is called by, where requests come from, and the token."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from pipeline.errors import OptionError
from pipeline.page.address import host_name, ip_address

TOKEN_LENGTH = 16
"""A token has at least so many characters."""

_TRIES = 10
_TRIES_OVER_S = 60.0
_PEERS = 1024  # a bound on memory


class Access:
    """Answers whether a request is let in; the reasons are for the one who made it.

    Args:
        token: what a request has to bring; None: nothing. There is no exemption for this machine, since all requests
            through a reverse proxy come from it.
        names: further names that the page may be called by, beside localhost and the address itself.
        clock_s: seconds, for the limit on wrong tokens.

    Raises:
        OptionError: the token is too short or has characters that no header can carry; a name is none.
    """

    def __init__(
        self, token: str | None, names: Iterable[str] = (), clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        if token is not None and not re.fullmatch(rf"[!-~]{{{TOKEN_LENGTH},256}}", token):
            raise OptionError(
                f"token of the page: expected {TOKEN_LENGTH} to 256 letters, digits and signs without spaces, "
                f"got {len(token)} characters: leave it out to have one made"
            )
        self._names = {"localhost"}
        for name in names:
            if not host_name(name):
                raise OptionError(f"name of the page: expected one such as camera.local, got {name!r}")
            self._names.add(host_name(name))
        self._token = token
        self._clock_s = clock_s
        self._wrong_s: OrderedDict[str, deque[float]] = OrderedDict()
        # Not the token itself, so that a stolen cookie does not tell it; the same after a restart.
        self.cookie = "" if token is None else hmac.digest(token.encode(), b"edgemask page", hashlib.sha256).hex()

    @property
    def needs_token(self) -> bool:
        """Whether requests have to bring a token."""
        return self._token is not None

    def host_problem(self, hosts: Sequence[str], local: str) -> str:
        """Why a request is refused for what it calls the page; empty: it is not.

        A page of another site can point its own name at this machine's address (DNS rebinding) and then counts as the same
        site for a browser; the name in the Host header gives it away.

        Args:
            hosts: every Host header.
            local: the address on this machine that the request came to.
        """
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        if not name:
            return "expected one Host header with a name or an address"
        if name in self._names:
            return ""
        try:
            address = ip_address(name)
            # An address is no name that someone could point elsewhere, but must be ours.
            known = address.is_loopback if ip_address(local).is_loopback else address == ip_address(local)
        except ValueError:
            known = False
        return "" if known else f"{name} is not a name of this page: start it with --serve-name {name} if it is yours"

    def origin_problem(self, origins: Sequence[str], host: str) -> str:
        """Why a request is refused for the site that made it; empty: it is not.

        Args:
            origins: every Origin header; programs other than browsers send none.
            host: the Host header.
        """
        if not origins:
            return ""
        if len(origins) == 1 and origins[0].lower() in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return ""
        return "the request comes from another site"

    def cookie_fits(self, cookie: str) -> bool:
        """Whether a cookie is the one that was set for the right token."""
        return hmac.compare_digest(cookie.encode(errors="replace"), self.cookie.encode())

    def token_fits(self, given: str, peer: str) -> bool:
        """Whether a token is the right one; a wrong one is counted."""
        if self._token is not None and hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return True
        times_s = self._wrong_s.setdefault(peer, deque(maxlen=_TRIES))
        times_s.append(self._clock_s())
        self._wrong_s.move_to_end(peer)
        if len(self._wrong_s) > _PEERS:
            self._wrong_s.popitem(last=False)
        return False

    def wait_s(self, peer: str) -> float:
        """For how long an address has to wait before it may try a token again, after too many wrong ones."""
        times_s = self._wrong_s.get(peer)
        if times_s is None or len(times_s) < _TRIES:
            return 0.0
        return max(0.0, times_s[0] + _TRIES_OVER_S - self._clock_s())


def new_token() -> str:
    """A token that nobody can guess: 192 random bits."""
    return secrets.token_urlsafe(24)
