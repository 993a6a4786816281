"""Between a library and an RTSP server: the library reads a local address, and the server is spoken to by us.

FFmpeg and GStreamer follow every redirection, verify no certificate, and take answers of any size. Here they get no password and no
redirection, RTP over this one connection alone, and answers of a size that such answers have.
"""

from __future__ import annotations

import math
import re
import secrets
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import SourceError
from pipeline.sources.address import Address
from pipeline.sources.dial import MAX_REDIRECTS, dial, may_log_in, redirected
from pipeline.sources.http_stream import refused
from pipeline.sources.live import LostError
from pipeline.sources.login import Login
from pipeline.sources.options import LiveOptions
from pipeline.sources.rtsp_message import challenges, field, frames_end, message, text

_PIECE_BYTES = 1 << 16
_POLL_S, _LEAVE_S = 0.1, 0.3
_MOST_WAITING = 16
_NEEDED = ("OPTIONS", "DESCRIBE", "SETUP", "PLAY")
_START = re.compile(rb"\$|RTSP/|[A-Z_]{3,20} \S+ RTSP/")


@dataclass
class _Request:
    """A request of the library's: its lines without those that are ours to write."""

    method: str
    uri: str
    lines: list[bytes]
    body: bytes
    has_logged_in: bool = False


class RtspRelay:
    """One connection to an RTSP server, for one library. Iterating carries it, on a thread of its own, to its end.

    Attributes:
        problem: why it ended, where the library cannot know.
    """

    def __init__(self, address: Address, options: LiveOptions) -> None:
        self._address = address
        self._options = options
        self._login = Login(address.user, address.password) if address.user or address.password else None
        self._waiting: dict[bytes, _Request] = {}
        self._redirects = 0
        self._library: socket.socket | None = None
        self._server: socket.socket | None = None
        self._ends_s = math.inf
        self._is_library = False
        self._selector = selectors.DefaultSelector()
        self._listening: socket.socket | None = None
        self._prefix = ""
        self.problem: LostError | SourceError | None = None

    def open(self) -> str:
        """Connect to the server; the address for the library, which nobody else knows.

        Raises:
            LostError: no answer this time.
            SourceError: a peer that is not trusted.
        """
        self._server = dial(self._address, self._options)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listening.settimeout(self._options.connect_s)
        self._prefix = f"rtsp://127.0.0.1:{self._listening.getsockname()[1]}/{secrets.token_hex(16)}"
        return self._prefix

    def __iter__(self) -> Iterator[None]:
        try:
            self._carry()
        except (LostError, SourceError) as error:
            self.problem = error
        except (OSError, ValueError):  # the end of one side is that of the other
            pass
        finally:
            self.close()
        yield from ()

    def cancel(self) -> None:
        """End it soon; from any thread. The library has a moment left to take leave of the server."""
        self._ends_s = min(self._ends_s, time.monotonic() + _LEAVE_S)

    def close(self) -> None:
        """Leave both sides."""
        for one in (self._library, self._server, self._listening):
            if one is not None:
                one.close()
        self._selector.close()

    def _carry(self) -> None:
        assert self._listening is not None
        assert self._server is not None
        self._library, _ = self._listening.accept()
        self._listening.close()
        self._library.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._library.settimeout(self._options.connect_s + self._options.read_s)
        asked, answered = bytearray(), bytearray()
        self._selector.register(self._library, selectors.EVENT_READ)
        self._selector.register(self._server, selectors.EVENT_READ)
        with self._selector:
            while time.monotonic() < self._ends_s:
                for key, _ in self._selector.select(_POLL_S):
                    if key.fileobj is self._library:
                        if not _received(self._library, asked):
                            return
                        self._ask(asked)
                    elif key.fileobj is self._server:
                        goes_on = _received(self._server, answered)
                        self._answer(answered)
                        if not goes_on:
                            return

    def _ask(self, data: bytearray) -> None:
        """Send on what the library says."""
        while data:
            if data[0] == 0x24:  # "$": reports on what came, in frames
                end = frames_end(data)
                if not end:
                    return
                self._send(data[:end])
                del data[:end]
                continue
            whole = message(data)
            if whole is None:
                return
            lines, body = whole
            words = lines[0].decode("latin-1").split(" ")
            if len(words) != 3:
                raise ValueError("no request")
            if words[0].startswith("RTSP/"):  # an answer to what the server asked
                self._send(text(lines, body))
                continue
            if not self._is_library and not words[1].startswith(self._prefix):
                raise ValueError("somebody else on this machine")
            self._is_library = True
            own = [line for line in lines[1:] if not line.lower().startswith(b"authorization:")]
            self._request(_Request(words[0], words[1], own, body))

    def _request(self, request: _Request) -> None:
        number = field(request.lines, b"cseq")
        while len(self._waiting) >= _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[number] = request
        uri = request.uri.replace(self._prefix, self._address.bare_url, 1)
        lines = [f"{request.method} {uri} RTSP/1.0".encode(), *request.lines]
        if self._login is not None and may_log_in(self._address, self._options):
            said = self._login.header(request.method, uri)
            lines += [f"Authorization: {said}".encode()] if said else []
        self._send(text(lines, request.body))

    def _answer(self, data: bytearray) -> None:
        """Pass on what the server says, except what is ours to answer."""
        assert self._library is not None
        while data:
            if data[0] == 0x24:
                end = frames_end(data)
                if not end:
                    return
                self._library.sendall(data[:end])
                del data[:end]
                continue
            start = _START.search(data)
            if start is None or start.start():  # some cameras say things in between that nobody understands
                if start is None and len(data) < 64 and b"\n" not in data:
                    return
                del data[: start.start() if start is not None else len(data)]
                continue
            whole = message(data)
            if whole is None:
                return
            lines, body = whole
            if not lines[0].startswith(b"RTSP/"):
                self._library.sendall(text(lines, body))
                continue
            passed = self._judged(lines)
            if passed is not None:
                self._library.sendall(text(passed, body))

    def _judged(self, lines: list[bytes]) -> list[bytes] | None:
        """An answer's head as the library may have it; None where it was for us."""
        words = lines[0].split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and re.fullmatch(rb"\d{3}", words[1]) else 0
        number = field(lines, b"cseq") or next(iter(self._waiting), b"")
        request = self._waiting.pop(number, None)
        if status == 401 and request is not None and self._logs_in(request, lines):
            request.has_logged_in = True
            self._request(request)
            return None
        if status in (401, 403) and (request is None or request.method in _NEEDED):
            raise refused(self._address, self._options, status, challenges(lines))
        if 300 <= status < 400:
            self._redirected(field(lines, b"location").decode("latin-1"), request)
            return None
        transport = field(lines, b"transport")
        if status == 200 and transport and b"/TCP" not in transport.upper():
            raise LostError("expected RTP over TCP in one connection, got another transport")
        has_base = field(lines, b"content-base") or field(lines, b"content-location")
        if request is not None and request.method == "DESCRIBE" and status == 200 and not has_base:
            # Else the library takes its own address for the server's, and asks the parts of the stream by it.
            base = request.uri.replace(self._prefix, self._address.bare_url, 1)
            return [*lines, f"Content-Base: {base}".encode()]
        return lines

    def _logs_in(self, request: _Request, lines: list[bytes]) -> bool:
        if self._login is None or request.has_logged_in or not may_log_in(self._address, self._options):
            return False
        return self._login.asked(challenges(lines))

    def _redirected(self, location: str, request: _Request | None) -> None:
        there = redirected(self._address, location, self._options)
        self._redirects += 1
        if request is None or self._redirects > MAX_REDIRECTS:
            raise LostError(f"more than {MAX_REDIRECTS} redirections")
        if there.host != self._address.host:
            self._login = None
        assert self._server is not None
        self._selector.unregister(self._server)
        self._server.close()
        self._address = there
        self._server = dial(there, self._options)
        self._selector.register(self._server, selectors.EVENT_READ)
        request.has_logged_in = False
        self._request(request)

    def _send(self, content: bytes | bytearray) -> None:
        assert self._server is not None
        self._server.sendall(content)


def _received(peer: socket.socket, data: bytearray) -> bool:
    """Take what is there; whether it goes on."""
    while True:
        piece = peer.recv(_PIECE_BYTES)
        data += piece
        if not piece or not isinstance(peer, ssl.SSLSocket) or not peer.pending():
            return bool(piece)
