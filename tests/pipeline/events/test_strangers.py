"""Receivers that keep a sender waiting, a byte at a time, or send what nobody asked for."""

import contextlib
import socket
import threading

import pytest

from pipeline.errors import SinkError
from pipeline.events import deadline, mqtt, webhook
from pipeline.events.delivery import AwayError
from pipeline.events.mqtt import MqttCourier
from pipeline.events.webhook import WebhookCourier, WebhookSink
from pipeline.sinks import open_sink
from pipeline.sinks.options import SinkOptions
from pipeline.sources.address import Address
from tests.pipeline.events.conftest import until

EVENT = {"id": "a-1", "captured": "2026-01-01T00:00:00Z"}
CONNECTED = b"\x20\x03\x00\x00\x00"
EVERY_S = 0.02


@pytest.fixture
def answering():
    """``answering(begin, drip)``: a port that answers each connection with some bytes, and others again and again without an end."""
    stop = threading.Event()
    with contextlib.ExitStack() as stack:

        def talk(connection, begin, drip):
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(begin)
                while not stop.wait(EVERY_S):
                    connection.sendall(drip)

        def take(listening, begin, drip):
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listening.accept()[0], begin, drip), daemon=True).start()

        def answering(begin, drip):
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=take, args=(listening, begin, drip), daemon=True).start()
            return listening.getsockname()[1]

        yield answering
        stop.set()


def context_of(address):
    """What verifies a receiver, as the outputs have it."""
    sink = WebhookSink.__new__(WebhookSink)
    sink._options = SinkOptions()
    return sink._tls(Address.parse(address), "")


def courier_to(kind, port, *, tls=False):
    if kind == "webhook":
        address = f"http{'s' * tls}://127.0.0.1:{port}/hook"
        return WebhookCourier(Address.parse(address), b"", context_of(address) if tls else None)
    address = f"mqtt{'s' * tls}://127.0.0.1:{port}/edgemask"
    return MqttCourier(("127.0.0.1", port), ("", ""), context_of(address) if tls else None, "edgemask/door")


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["header", "body", "continue"],
)
def test_an_answer_that_does_not_end_is_no_answer(answering, monkeypatch, begin, drip):
    monkeypatch.setattr(webhook, "_ANSWER_S", 0.5)
    courier = courier_to("webhook", answering(begin, drip))
    with pytest.raises(AwayError, match=r"^no answer in time$"):
        courier.send(EVENT)
    courier.close()


@pytest.mark.parametrize("kind", ["webhook", "mqtt"])
def test_a_handshake_that_does_not_end_is_none(answering, monkeypatch, kind):
    monkeypatch.setattr(deadline, "_HANDSHAKE_S", 0.5)
    courier = courier_to(kind, answering(b"\x16\x03\x03\x40\x00", b"\x02"), tls=True)
    with pytest.raises(AwayError, match=r"^no answer in time$"):
        courier.send(EVENT)
    courier.close()


def test_a_packet_that_is_larger_than_any_answer_is_not_received(answering, monkeypatch):
    monkeypatch.setattr(mqtt, "_ANSWER_S", 20.0)
    courier = courier_to("mqtt", answering(CONNECTED + b"\x30\xff\xff\xff\x7f", b"\0" * 1000))

    def is_lost():
        try:
            courier.idle()
        except AwayError as error:
            return str(error) == "the connection is lost"
        return False

    until(is_lost, "it goes on receiving")
    courier.close()


@pytest.mark.parametrize("kind", ["http", "mqtt"])
def test_an_address_that_is_no_utf8_is_refused(make_info, renderer, kind):
    with pytest.raises(SinkError, match=rf"^--output {kind}://…: expected an address, got one that is no UTF-8$"):
        open_sink(f"{kind}://127.0.0.1:1/a\udcff", make_info(), renderer)


def test_a_name_that_cannot_be_looked_up_is_away():
    courier = WebhookCourier(Address.parse(f"http://{'a' * 70}.example/hook"), b"", None)
    with pytest.raises(AwayError):
        courier.send(EVENT)
