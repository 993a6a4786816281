"""Events to a web address, each as a signed POST."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import secrets
import ssl
import time
from urllib.parse import urlsplit

from pipeline.errors import SinkError
from pipeline.events.deadline import ends_within
from pipeline.events.delivery import AwayError, Courier, Message, RefusedError
from pipeline.events.secret import secret_of
from pipeline.events.sink import EventsSink
from pipeline.sinks.kinds import SinkKind
from pipeline.sources.address import Address
from pipeline.version import version

WEBHOOK = SinkKind(
    name="webhook",
    opens="WebhookSink",
    help="events and a heartbeat, each as a signed POST to a web address",
    order=74,
    extra="cpu",
    forms=("https://host/path",),
    prefixes=("https://", "http://"),
    takes_events=True,
    shared=True,
)

_ANSWER_S = 10.0
_MOST_BYTES = 1 << 16
_PREFIX = "whsec_"
# What may be otherwise later: who we are, how busy it is, whether the address is there.
_LATER = frozenset((401, 403, 404, 407, 408, 421, 423, 425, 429))


class WebhookSink(EventsSink):
    """``https://user:password@host/path``; signed as Standard Webhooks has it, with the key in ``EDGEMASK_WEBHOOK_SECRET``."""

    beat_every_s = 60.0

    def _courier(self, address: Address) -> Courier:
        key = key_of(secret_of("EDGEMASK_WEBHOOK_SECRET"))
        return WebhookCourier(address, key, self._tls(address, address.password))


class WebhookCourier(Courier):
    """A POST for each message; it has arrived when the answer is 2xx. No redirection is followed.

    Args:
        address: where.
        key: of the signature; empty: there is none.
        context: for TLS; None: not encrypted.
    """

    def __init__(self, address: Address, key: bytes, context: ssl.SSLContext | None) -> None:
        self._address, self._key, self._context = address, key, context
        parts = urlsplit(address.bare_url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection: http.client.HTTPConnection | None = None

    def send(self, event: Message) -> None:
        """Post an event; its id is the message's, also when it is posted again."""
        self._post(event["id"], {"type": "event", "timestamp": event["captured"], "data": event})

    def beat(self, state: Message) -> None:
        """Post a heartbeat."""
        self._post(secrets.token_hex(8), {"type": "heartbeat", "timestamp": state["time"], "data": state})

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _post(self, message_id: str, content: Message) -> None:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"edgemask/{version()}",
            **signed(self._key, message_id, body),
        }
        if self._address.user or self._address.password:
            pair = f"{self._address.user}:{self._address.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        try:
            status = self._answer(body, headers)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise AwayError(
                f"expected a certificate from an authority that is trusted, got another ({error.verify_message.rstrip('.')}): "
                "--tls-verify CA.pem names the authority"
            ) from None
        except TimeoutError:
            self.close()
            raise AwayError("no answer in time") from None
        except (OSError, UnicodeError, http.client.HTTPException) as error:  # a name that cannot be looked up
            self.close()
            raise AwayError(str(getattr(error, "strerror", None) or type(error).__name__).lower()) from None
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise AwayError(f"expected an answer of 2xx, got a redirection ({status}): give the address itself")
        if status >= 500 or status in _LATER:
            raise AwayError(f"expected an answer of 2xx, got {status}")
        raise RefusedError(f"answer {status}")

    def _answer(self, body: bytes, headers: dict[str, str]) -> int:
        """Post, on the connection that is there if the server has kept it."""
        if self._connection is not None:
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError):
                return self._status(self._connection, body, headers)
            self.close()
        host, port = self._address.host, self._address.port
        if self._context is not None:
            self._connection = http.client.HTTPSConnection(host, port, timeout=_ANSWER_S, context=self._context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
        return self._status(self._connection, body, headers)

    def _status(self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> int:
        if connection.sock is None:
            connection.connect()
        with ends_within(_ANSWER_S, connection.sock):
            connection.request("POST", self._target, body, headers)
            response = connection.getresponse()
            response.read(_MOST_BYTES)
        if not response.isclosed():  # more than anybody needs to say
            self.close()
        return response.status


def signed(key: bytes, message_id: str, body: bytes, now_s: float | None = None) -> dict[str, str]:
    """The headers by which a receiver knows who sent a message, and when, as https://www.standardwebhooks.com has them.

    Args:
        key: which the receiver has too; empty: the message is not signed.
        message_id: the same when it is sent again.
        body: as it is sent.
        now_s: seconds since 1970; None: now.
    """
    stamp = str(int(time.time() if now_s is None else now_s))
    headers = {"webhook-id": message_id, "webhook-timestamp": stamp}
    if key:
        digest = hmac.new(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def key_of(secret: str) -> bytes:
    """The key that a secret is: the bytes behind "whsec_" in base64, or of any other text its own.

    Raises:
        SinkError: what stands behind "whsec_" is not base64.
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SinkError("EDGEMASK_WEBHOOK_SECRET: expected base64 behind whsec_, got other text") from error
