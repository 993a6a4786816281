"""What went wrong with an inference server, by what is to be done about it.

gRPC's own statuses do not say that: a queue that is full, a token that is not taken and a server that is gone are all UNAVAILABLE.
"""

from __future__ import annotations

from enum import Enum

from tritonclient.utils import InferenceServerException


class Kind(Enum):
    """What is to be done about an error."""

    GONE = "try again, or another server"
    BUSY = "its queue is full: try again a little later"
    CHANGED = "it has another version than was compared: compare again"
    REFUSED = "it does not want us: nothing mends that but the user"
    FAILED = "it could not do it, perhaps for a reason of its own that passes, such as its memory"
    WRONG = "it has something else than the bundle"
    ABSENT = "it has no such model, perhaps not yet"


class ServerError(Exception):
    """A server did not do what it was asked; the message is one line, without the server's name."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def untrusted(text: str) -> ServerError:
    """That a certificate is not taken, by us or by the server."""
    return ServerError(
        Kind.REFUSED,
        f"no trusted connection ({text}): check --server-ca, --server-cert and --server-key, and the name in --server",
    )


def is_cut_off(error: ServerError) -> bool:
    """Whether the server let us in and closed the connection: so it does with TLS 1.3 where it does not take our certificate."""
    text = str(error).lower()
    return error.kind is Kind.GONE and ("socket closed" in text or "connection reset" in text)


def server_error(error: InferenceServerException, deadline_s: float) -> ServerError:
    """A client's error by what is to be done about it."""
    # It is shown on a terminal, which takes orders from what is not printable.
    printable = "".join(letter if letter.isprintable() else " " for letter in str(error.message()))
    text = " ".join(printable.split())[:300].rstrip()
    status = str(error.status() or "").removeprefix("StatusCode.")
    lower = text.lower()
    if "restricted" in lower or status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ServerError(
            Kind.REFUSED, f"it does not take our token ({text}): give its token with --server-token-file"
        )
    if (
        "handshake failed" in lower or "security handshaker" in lower or "certificate" in lower or "ssl_" in lower
    ):  # one that is only late is not refused
        return untrusted(text)
    if "exceeds maximum queue size" in lower or "timeout expired" in lower:
        return ServerError(Kind.BUSY, f"its queue is full ({text})")
    if status == "DEADLINE_EXCEEDED":
        return ServerError(Kind.GONE, f"no answer within {deadline_s:.3g} s")
    if status == "NOT_FOUND" or "unknown model" in lower or "ready state" in lower:
        return ServerError(Kind.CHANGED, text)
    if status in ("UNAVAILABLE", "CANCELLED") or "shared memory region" in lower or "not healthy" in lower:
        return ServerError(Kind.GONE, text)
    return ServerError(Kind.FAILED, text)
