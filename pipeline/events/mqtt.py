"""Events to an MQTT 5 broker, and to Home Assistant through it."""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from pipeline.errors import SinkError
from pipeline.events.delivery import AwayError, Courier, Message
from pipeline.events.home_assistant import PREFIX, announcements
from pipeline.events.secret import secret_of
from pipeline.events.sink import EventsSink
from pipeline.redaction import redact
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.naming import file_name_of
from pipeline.sources.address import Address
from pipeline.terminal import logger_of

log = logger_of(__name__)

MQTT = SinkKind(
    name="mqtt",
    opens="MqttSink",
    help="events and a heartbeat, to an MQTT 5 broker; Home Assistant finds them by itself",
    order=72,
    extra="mqtt",
    forms=("mqtt://host/topic", "mqtts://host/topic"),
    prefixes=("mqtt://", "mqtts://"),
    takes_events=True,
    shared=True,
)

_KEEPALIVE_S = 20
_CONNECT_S = 5.0
_ANSWER_S = 10.0
_MOST_BYTES = 1 << 16
_MOST_CLASSES = 20
"""With more classes than this, Home Assistant hears of those that have been in a zone."""


class MqttSink(EventsSink):
    """``mqtt://user:password@host:1883/TOPIC``, or ``mqtts://`` for TLS; TOPIC is "edgemask" where there is none.

    ``TOPIC/SOURCE/event`` gets each event, ``TOPIC/SOURCE/state`` the heartbeat and ``TOPIC/SOURCE/status`` "online" or "offline",
    the last two kept by the broker. ``?discovery=no`` tells Home Assistant nothing, ``?discovery=PREFIX`` tells it below another topic.
    """

    beats_with_events = True

    def _courier(self, address: Address) -> Courier:
        parts = urlsplit(address.bare_url)
        topic = unquote(parts.path).strip("/") or "edgemask"
        if any(sign in topic for sign in "+#\0") or topic.startswith("$"):
            raise SinkError(
                f"--output {address.scheme}://{address.host}: expected a topic without +, # and $, got {topic!r}"
            )
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := query.keys() - {"discovery"}:
            raise SinkError(
                f"--output {address.scheme}://{address.host}: expected discovery=… after the question mark, "
                f"got {sorted(unknown)[0]!r}"
            )
        discovery = query.get("discovery", PREFIX)
        user = address.user or secret_of("EDGEMASK_MQTT_USER")
        password = address.password or secret_of("EDGEMASK_MQTT_PASSWORD")
        return MqttCourier(
            (address.host, address.port),
            (user, password),
            self._tls(address, password),
            f"{topic}/{file_name_of(self._info.name)}",
            (lambda: ()) if discovery == "no" else lambda: self._announced(discovery, topic),
        )

    def _announced(self, prefix: str, topic: str) -> Iterable[tuple[str, Message]]:
        """What Home Assistant is to know now; asked on the courier's thread, before each heartbeat."""
        name = file_name_of(self._info.name)
        many = len(self._find.classes) > _MOST_CLASSES
        wanted = [
            (zone.name, found, zone.above is not None)
            for zone in self._find.zones
            for found in self._find.classes
            if not many or (found in (there := self._zones.get(zone.name, {})) and there[found].present)
        ]
        return announcements(prefix, f"{topic}/{name}", redact(self._info.name), wanted)


class MqttCourier(Courier):
    """One connection to a broker, driven by whoever calls: no thread of its own. A message has arrived when the broker says so.

    Args:
        place: host and port.
        login: user and password; an empty user: there is none.
        context: for TLS; None: not encrypted.
        base: the topic below which everything is said.
        announced: what Home Assistant is to know; each topic is said once per connection.
    """

    def __init__(
        self,
        place: tuple[str, int],
        login: tuple[str, str],
        context: ssl.SSLContext | None,
        base: str,
        announced: Callable[[], Iterable[tuple[str, Message]]] = lambda: (),
    ) -> None:
        self._place, self._login, self._context = place, login, context
        self._base = base
        self._announced = announced
        self._said: set[str] = set()
        self._client: paho.Client | None = None
        self._answers: list[ReasonCode] = []
        self._acknowledged: dict[int, ReasonCode] = {}

    def send(self, event: Message) -> None:
        """Publish an event and wait for the broker's acknowledgment."""
        self._publish("event", _json(event))

    def beat(self, state: Message) -> None:
        """Publish the state, which the broker keeps, and what Home Assistant does not know yet."""
        self._connect()
        for topic, content in self._announced():
            if topic not in self._said:
                # Where it is forbidden, events go on.
                self._publish(topic, _json(content), retain=True, is_whole_topic=True, may_fail=True)
                self._said.add(topic)
        self._publish("state", _json(state), retain=True)

    def idle(self) -> None:
        """Keep the connection, and make it where there is none."""
        self._connect()
        self._turn(0.0)

    def close(self) -> None:
        """Say "offline" and leave."""
        if self._client is not None:
            with contextlib.suppress(AwayError):
                self._publish("status", b"offline", retain=True)
            self._leave()

    def _connect(self) -> None:
        if self._client is not None:
            return
        client = _Client(
            CallbackAPIVersion.VERSION2, client_id=f"edgemask-{secrets.token_hex(6)}", protocol=paho.MQTTv5
        )
        user, password = self._login
        if user or password:
            client.username_pw_set(user or None, password or None)
        if self._context is not None:
            client.tls_set_context(self._context)
        client.will_set(f"{self._base}/status", b"offline", qos=1, retain=True)
        client.connect_timeout = _CONNECT_S
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        self._answers.clear()
        self._acknowledged.clear()
        self._said.clear()
        self._client = client
        try:
            client.connect(*self._place, keepalive=_KEEPALIVE_S, clean_start=True)
        except ssl.SSLCertVerificationError as error:
            raise self._gone(
                f"expected a certificate from an authority that is trusted, got another ({error.verify_message.rstrip('.')}): "
                "--tls-verify CA.pem names the authority"
            ) from None
        except TimeoutError:
            raise self._gone("no answer in time") from None
        except ssl.SSLError as error:
            raise self._gone(f"no TLS ({(error.reason or 'unknown').replace('_', ' ').lower()})") from None
        except (OSError, ValueError) as error:
            raise self._gone(str(getattr(error, "strerror", None) or "no connection").lower()) from None
        self._wait(lambda: bool(self._answers))
        answer = self._answers[0]
        if answer.is_failure:
            raise self._gone(
                f"the broker refused us ({str(answer).lower()}): EDGEMASK_MQTT_USER and EDGEMASK_MQTT_PASSWORD name a user"
            )
        self._publish("status", b"online", retain=True)

    def _publish(
        self, topic: str, content: bytes, *, retain: bool = False, is_whole_topic: bool = False, may_fail: bool = False
    ) -> None:
        self._connect()
        assert self._client is not None
        topic = topic if is_whole_topic else f"{self._base}/{topic}"
        number = self._client.publish(topic, content, qos=1, retain=retain).mid
        self._wait(lambda: number in self._acknowledged)
        answer = self._acknowledged.pop(number)
        if answer.is_failure and not may_fail:
            raise AwayError(f"the broker does not take {topic} ({str(answer).lower()})")

    def _wait(self, done: Callable[[], bool]) -> None:
        end_s = time.monotonic() + _ANSWER_S
        while not done():
            if time.monotonic() > end_s:
                raise self._gone("no answer in time")
            self._turn(0.1)

    def _turn(self, wait_s: float) -> None:
        """Read and write what is there; also asks the broker for a sign of life when it is time."""
        assert self._client is not None
        if self._client.loop(wait_s) != MQTTErrorCode.MQTT_ERR_SUCCESS and (
            not self._answers or not self._answers[0].is_failure  # it closes the connection behind its answer
        ):
            raise self._gone("the connection is lost")

    def _gone(self, problem: str) -> AwayError:
        self._leave()
        return AwayError(problem)

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(OSError, ValueError):
                client.disconnect()
                client.loop(0.0)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answers.append(reason)

    def _on_publish(self, client: Any, data: Any, number: int, reason: ReasonCode, properties: Any) -> None:
        self._acknowledged[number] = reason


class _Client(paho.Client):
    """Takes what a broker has to say to who subscribes to nothing, and no message of up to 256 MB."""

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > _MOST_BYTES:
            raise ConnectionError("a packet that nobody asked for")
        return super()._sock_recv(bufsize)


def _json(content: Message) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
