"""Receivers that say a byte now and then: time-outs of sockets begin anew with each, and end nothing."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator

_HANDSHAKE_S = 10.0


@contextlib.contextmanager
def ends_within(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Break a connection off if the body takes longer.

    Raises:
        TimeoutError: it took longer, whatever the body makes of that.
    """
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's own, which is of another thread

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not is_late.is_set():
            raise
    finally:
        timer.cancel()
    if is_late.is_set():
        raise TimeoutError("it took too long")


class TlsSocket(ssl.SSLSocket):
    """One whose handshake ends in time, and that is closed where it fails: paho leaves it open."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands.

        Raises:
            TimeoutError: it took too long.
        """
        try:
            with ends_within(_HANDSHAKE_S, self):
                super().do_handshake(block)
        except BaseException:
            self.close()
            raise
