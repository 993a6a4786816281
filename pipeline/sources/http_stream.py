"""What a server gives over HTTP, read by Python: it verifies TLS, and follows and logs in to nobody else than it was told."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress
from typing import NoReturn
from urllib.parse import urlsplit

from pipeline.errors import SourceError
from pipeline.redaction import redact
from pipeline.sources.address import Address
from pipeline.sources.dial import MAX_REDIRECTS, dial, may_log_in, redirected
from pipeline.sources.live import LostError
from pipeline.sources.login import Login, unsupported_login
from pipeline.sources.options import LiveOptions

_REDIRECTS = (301, 302, 303, 307, 308)
_AGENT = "edgemask"


class HttpStream:
    """The content of an address, as a file: ``read`` gives what is there, ``seek`` asks anew where the server can give a part.

    Made without waiting. For one thread, but for ``cancel``.
    """

    def __init__(self, address: Address, options: LiveOptions) -> None:
        self._address = address
        self._options = options
        self._login = Login(address.user, address.password) if address.user or address.password else None
        self._socket: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._position = 0
        self._cancelled = False
        self._ahead = b""
        self._size: int | None = None
        self.problem: LostError | SourceError | None = None
        """Why reading failed: libraries between may tell something else."""

    def open(self) -> None:
        """Ask.

        Raises:
            LostError: no answer this time.
            SourceError: a refusal, a peer that is not trusted, a redirection that is not followed.
        """
        self._ask(0)

    @property
    def content_type(self) -> str:
        """Of the content, in small letters, with its parameters as they are; empty if the server does not say."""
        assert self._answer is not None
        return self._answer.getheader("Content-Type", "").strip()

    def peek(self, count: int) -> bytes:
        """The first bytes, which ``read`` gives all the same."""
        while len(self._ahead) < count and (more := self._read(count - len(self._ahead))):
            self._ahead += more
        return self._ahead

    def read(self, size: int) -> bytes:
        """What is there, at most so many bytes; waits for one at least; empty at the end."""
        piece = self._ahead[:size]
        self._ahead = self._ahead[size:]
        piece = piece or self._read(size)
        self._position += len(piece)
        return piece

    def seekable(self) -> bool:
        """Whether the server gives parts."""
        return self._size is not None

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another place, by asking anew."""
        place = offset + (0, self._position, self._size or 0)[whence]
        if place != self._position:
            self._ahead = b""
            try:
                self._ask(place)
            except (LostError, SourceError) as error:
                self.problem = error
                raise
            self._position = place
        return place

    def cancel(self) -> None:
        """End a read that waits; from any thread."""
        self._cancelled = True
        if self._socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave the server."""
        if self._answer is not None:
            self._answer.close()
        if self._socket is not None:
            self._socket.close()

    def _read(self, size: int) -> bytes:
        assert self._answer is not None
        try:
            return self._answer.read1(size)
        except TimeoutError:
            self.problem = LostError(f"nothing came for {self._options.read_s:g} s")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.problem = LostError(
                str(getattr(error, "strerror", None) or error).lower() or "the connection broke off"
            )
        raise self.problem from None

    def _ask(self, start: int) -> None:
        """An answer with content from a place on; through logins and redirections."""
        asked_to_log_in = False
        for _ in range(MAX_REDIRECTS + 2):
            answer = self._request(start)
            challenges = answer.headers.get_all("WWW-Authenticate") or []
            if answer.status == 401 and self._may_answer() and not asked_to_log_in and self._asked(challenges):
                asked_to_log_in = True
            elif answer.status in (401, 403):
                self._refused(answer.status, challenges)
            elif answer.status in _REDIRECTS:
                there = redirected(self._address, answer.getheader("Location", ""), self._options)
                if there.host != self._address.host:
                    self._login = None
                self._address = there
            elif answer.status == (206 if start else 200):
                self._take(start)
                return
            else:
                raise LostError(
                    redact(f"the server says {answer.status} {answer.reason[:60]}".lower(), *self._address.secrets)
                )
        raise LostError(f"more than {MAX_REDIRECTS} redirections")

    def _take(self, start: int) -> None:
        assert self._answer is not None
        assert self._socket is not None
        self._socket.settimeout(self._options.read_s)
        if not start:
            has_parts = self._answer.getheader("Accept-Ranges", "").strip().lower() == "bytes"
            self._size = self._answer.length if has_parts and self._answer.length else None

    def _request(self, start: int) -> http.client.HTTPResponse:
        self.close()
        address = self._address
        parts = urlsplit(address.bare_url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._socket = dial(address, self._options)
        if self._cancelled:
            raise LostError("cancelled")
        connection = http.client.HTTPConnection(address.host, address.port)
        connection.sock = self._socket
        try:
            connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
            fields = {"Host": parts.netloc, "User-Agent": _AGENT, "Accept": "*/*", "Connection": "close"}
            if start:
                fields["Range"] = f"bytes={start}-"
            if self._login is not None and self._may_answer() and (said := self._login.header("GET", path)):
                fields["Authorization"] = said
            for name, value in fields.items():
                connection.putheader(name, value)
            connection.endheaders()
            self._answer = connection.getresponse()
        except TimeoutError:
            raise LostError("no answer in time") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            text = str(getattr(error, "strerror", None) or error).lower()[:100] or "no answer"
            raise LostError(redact(f"no answer of HTTP ({text})", *address.secrets)) from None
        return self._answer

    def _may_answer(self) -> bool:
        return self._login is not None and may_log_in(self._address, self._options)

    def _asked(self, challenges: list[str]) -> bool:
        return self._login is not None and self._login.asked(challenges)

    def _refused(self, status: int, challenges: list[str]) -> NoReturn:
        raise refused(self._address, self._options, status, challenges)


def refused(address: Address, options: LiveOptions, status: int, challenges: list[str]) -> SourceError:
    """What a server that does not let us in means, in one line."""
    unsupported = unsupported_login(challenges) if address.user else ""
    if address.user and not may_log_in(address, options):
        todo = "user and password are not sent to a peer that --tls-verify no does not verify: give its certificate with --tls-verify"
    elif unsupported:
        todo = f"it asks for {unsupported}, and Basic and Digest are supported: choose that in the camera's settings"
    else:
        todo = "check user and password"
    return SourceError(
        f"{address.name}: expected to be let in, got {status} {'unauthorized' if status == 401 else 'forbidden'}: {todo}"
    )
