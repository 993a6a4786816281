"""A session with an RTSP server that takes H.264: ANNOUNCE, SETUP, RECORD, and RTP over the same connection."""

from __future__ import annotations

import re
import select
import socket
import ssl
from contextlib import suppress

from pipeline.redaction import redact
from pipeline.sources.address import Address
from pipeline.sources.dial import MAX_REDIRECTS, dial, may_log_in, redirected
from pipeline.sources.http_stream import refused
from pipeline.sources.live import LostError
from pipeline.sources.login import Login
from pipeline.sources.options import LiveOptions
from pipeline.sources.rtsp_message import challenges, field, frames_end, message, text

_PIECE_BYTES = 1 << 16
_TRACK = "streamid=0"
_DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=edgemask\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:{_TRACK}\r\n"
).encode()
_REPORTS = range(200, 205)  # RTCP's types, which go over a channel of their own


class _MovedError(Exception):
    """The server sent us elsewhere: all is said again there."""


class RtspPublisher:
    """The server is verified, redirections are followed and the password is told as for sources. For one thread.

    A file for FFmpeg's muxer of RTP: each ``write`` is one packet.

    Args:
        address: of the stream.
        options: ``connect_s`` is also how long a packet may take.
    """

    def __init__(self, address: Address, options: LiveOptions) -> None:
        self._address = address
        self._options = options
        self._login = Login(address.user, address.password) if address.user or address.password else None
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._session = b""
        self._count = 0

    def open(self) -> None:
        """Connect, and announce the stream.

        Raises:
            LostError: not this time.
            SourceError: a refusal, a peer that is not trusted, a redirection that is not followed.
        """
        for _ in range(MAX_REDIRECTS + 1):
            self._socket = dial(self._address, self._options)
            self._received.clear()
            self._session = b""
            with suppress(_MovedError):
                base = self._address.bare_url
                self._ask("OPTIONS", base)
                self._ask("ANNOUNCE", base, b"Content-Type: application/sdp", body=_DESCRIPTION)
                transport = b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record"
                self._ask("SETUP", f"{base.rstrip('/')}/{_TRACK}", transport)
                self._ask("RECORD", base, b"Range: npt=0.000-")
                return
            self._socket.close()
        raise LostError(f"more than {MAX_REDIRECTS} redirections")

    def write(self, packet: bytes) -> int:
        """Send a packet.

        Raises:
            LostError: it did not go out.
        """
        content = bytes(packet)
        channel = int(len(content) > 1 and content[1] in _REPORTS)
        self._send(b"$" + bytes((channel,)) + len(content).to_bytes(2, "big") + content)
        while self._is_told():
            self._receive()
            self._received.clear()  # reports on what came
        return len(content)

    def close(self) -> None:
        """Take leave of the server, which is not waited for."""
        peer, self._socket = self._socket, None
        if peer is None:
            return
        with suppress(OSError):
            if self._session:
                peer.settimeout(0.0)
                peer.sendall(self._request("TEARDOWN", self._address.bare_url, [], b""))
        peer.close()

    def _ask(self, method: str, uri: str, *lines: bytes, body: bytes = b"") -> None:
        for is_last in (False, True):
            self._send(self._request(method, uri, list(lines), body))
            head = self._answer()
            words = head[0].split(b" ", 2)
            status = int(words[1]) if len(words) > 1 and re.fullmatch(rb"\d{3}", words[1]) else 0
            self._session = field(head, b"session").split(b";")[0] or self._session
            if status == 200:
                return
            may_answer = self._login is not None and may_log_in(self._address, self._options)
            if status == 401 and may_answer and not is_last and self._login and self._login.asked(challenges(head)):
                continue
            if status in (401, 403):
                raise refused(self._address, self._options, status, challenges(head))
            if 300 <= status < 400:
                self._move(field(head, b"location").decode("latin-1"))
            said = b" ".join(words[1:]).decode("latin-1")[:60]
            raise LostError(redact(f"the server says {said} to {method}".lower(), *self._address.secrets))

    def _move(self, location: str) -> None:
        there = redirected(self._address, location, self._options)
        if there.host != self._address.host:
            self._login = None
        self._address = there
        raise _MovedError

    def _request(self, method: str, uri: str, lines: list[bytes], body: bytes) -> bytes:
        self._count += 1
        head = [f"{method} {uri} RTSP/1.0".encode(), b"CSeq: %d" % self._count, b"User-Agent: edgemask", *lines]
        if self._session:
            head.append(b"Session: " + self._session)
        if body:
            head.append(b"Content-Length: %d" % len(body))
        if self._login is not None and may_log_in(self._address, self._options):
            said = self._login.header(method, uri)
            head += [f"Authorization: {said}".encode()] if said else []
        return text(head, body)

    def _answer(self) -> list[bytes]:
        while True:
            del self._received[: frames_end(self._received)]
            whole = message(self._received) if self._received[:1] != b"$" else None
            if whole is not None and whole[0][0].startswith(b"RTSP/"):
                return whole[0]
            if whole is None:
                self._receive()

    def _is_told(self) -> bool:
        peer = self._socket
        if peer is None:
            return False
        return (isinstance(peer, ssl.SSLSocket) and peer.pending() > 0) or bool(select.select([peer], [], [], 0)[0])

    def _receive(self) -> None:
        piece = b""
        if self._socket is not None:
            try:
                piece = self._socket.recv(_PIECE_BYTES)
            except TimeoutError:
                raise LostError("no answer in time") from None
            except OSError as error:
                raise LostError(str(error.strerror or error).lower()) from None
        if not piece:
            raise LostError("the server has closed the connection")
        self._received += piece

    def _send(self, content: bytes) -> None:
        if self._socket is None:
            raise LostError("the connection is closed")
        try:
            self._socket.sendall(content)
        except TimeoutError:
            raise LostError("the server takes nothing") from None
        except OSError as error:
            raise LostError(str(error.strerror or error).lower()) from None
