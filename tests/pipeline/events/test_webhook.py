"""Events as signed posts: what a server gets, and what its answers mean."""

import base64
import hashlib
import hmac
import http.server
import json
import logging
import threading

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.events import delivery as delivery_module
from pipeline.events.delivery import Delivery
from pipeline.events.webhook import WebhookCourier, key_of, signed
from pipeline.frames.frame import Frame
from pipeline.sinks import open_sink
from pipeline.sources.address import Address
from tests.pipeline.events.conftest import until

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def server():
    """A web server that notes what it gets, and answers what ``answers`` says, 200 at the end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((self.path, dict(self.headers), body))
            status = made.answers.pop(0) if made.answers else 200
            self.send_response(status)
            self.send_header("Content-Length", "2")
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{made.server_port}/elsewhere")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.got, made.answers = [], []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def deliver(server, monkeypatch):
    monkeypatch.setattr(delivery_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(delivery_module, "_END_WITHIN_S", 0.3)
    deliveries = []

    def start(address=None, secret=SECRET, **options):
        address = Address.parse(address or f"http://me:hunter22@127.0.0.1:{server.server_port}/hook?room=1")
        deliveries.append(Delivery("hook", WebhookCourier(address, key_of(secret), None), **options))
        return deliveries[-1]

    yield start
    for delivery in deliveries:
        delivery.close()


def event(number):
    return {"id": f"a-{number}", "event": "enter", "captured": "2026-01-01T00:00:00Z", "class": "Straße"}


def test_a_post_is_signed_as_standard_webhooks_has_it(deliver, server):
    delivery = deliver()
    delivery.put(event(1))
    until(lambda: delivery.delivered == 1, "nothing arrives")
    path, headers, body = server.got[0]
    assert path == "/hook?room=1"
    assert headers["Authorization"] == f"Basic {base64.b64encode(b'me:hunter22').decode()}"
    assert headers["webhook-id"] == "a-1"
    assert json.loads(body) == {"type": "event", "timestamp": "2026-01-01T00:00:00Z", "data": event(1)}
    said = f"a-1.{headers['webhook-timestamp']}.".encode() + body
    own = hmac.new(b"0123456789abcdef0123456789abcdef", said, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(own).decode()}"


@pytest.mark.needs("standardwebhooks")
def test_others_verify_the_signature():
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError

    body = json.dumps({"type": "event"}).encode()
    headers = signed(key_of(SECRET), "a-1", body)
    assert Webhook(SECRET).verify(body, headers) == {"type": "event"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


def test_a_busy_server_gets_it_again_and_in_order(deliver, server, caplog):
    server.answers = [503, 429, 200, 500]
    with caplog.at_level(logging.WARNING, "edgemask"):
        delivery = deliver()
        for number in range(3):
            delivery.put(event(number))
        until(lambda: delivery.delivered == 3, "nothing arrives")
    ids = [headers["webhook-id"] for _, headers, _ in server.got]
    assert ids == ["a-0", "a-0", "a-0", "a-1", "a-1", "a-2"]
    assert [record.getMessage() for record in caplog.records] == [
        "hook: expected an answer of 2xx, got 503; events wait",
        "hook: expected an answer of 2xx, got 429; events wait",
        "hook: there again",
        "hook: expected an answer of 2xx, got 500; events wait",
        "hook: there again",
    ]


def test_an_event_that_is_refused_is_counted_and_holds_up_nothing(deliver, server, caplog):
    server.answers = [400]
    with caplog.at_level(logging.WARNING, "edgemask"):
        delivery = deliver()
        delivery.put(event(0))
        delivery.put(event(1))
        until(lambda: delivery.delivered == 1, "nothing arrives")
    assert (delivery.refused, delivery.lost) == (1, 0)
    assert "hook: an event was refused (answer 400)" in caplog.text


def test_a_redirection_is_not_followed(deliver, server):
    server.answers = [302] * 3
    delivery = deliver()
    delivery.put(event(0))
    until(lambda: delivery.delivered == 1, "nothing arrives")
    assert {path for path, _, _ in server.got} == {"/hook?room=1"}


def test_a_server_that_closes_the_connection_is_called_again(deliver, server, monkeypatch):
    delivery = deliver()
    for number in range(2):
        delivery.put(event(number))
        until(lambda number=number: delivery.delivered == number + 1, "nothing arrives")
        server.RequestHandlerClass.close_connection = True
    assert len(server.got) == 2
    assert delivery.problem == ""


def test_a_full_buffer_loses_the_oldest_and_counts(deliver, monkeypatch):
    delivery = deliver("http://127.0.0.1:9/", buffer=5)
    until(lambda: not delivery.waiting, "")
    for number in range(20):
        delivery.put(event(number))
    assert delivery.waiting <= 5
    assert delivery.lost >= 14
    delivery.close()
    assert delivery.lost == 20


def test_a_delivery_that_has_a_bug_is_told(server, make_info, renderer, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(WebhookCourier, "send", broken)
    sink = open_sink(f"http://127.0.0.1:{server.server_port}/", make_info(), renderer)
    sink.delivery.put(event(0))
    until(lambda: sink.delivery.error, "nobody notices")
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, "test", "x", mask=np.zeros((8, 8), np.uint8))
    with pytest.raises(SinkError, match=r"its delivery has ended \(ZeroDivisionError\('bug'\)\)"):
        sink.write(frame)
    sink.close()
    assert sink.delivery.lost == 1


def test_without_a_secret_nothing_is_signed():
    assert signed(key_of(""), "a", b"", 1.5) == {"webhook-id": "a", "webhook-timestamp": "1"}
    assert key_of("plain text") == b"plain text"
    with pytest.raises(SinkError, match="EDGEMASK_WEBHOOK_SECRET: expected base64 behind whsec_, got other text"):
        key_of("whsec_ä")


def test_a_web_address_is_not_shown():
    from pipeline.sinks.kinds import shown

    assert shown("https://me:pw@hooks.example/services/T0/B0/sEcReT") == "https://***@hooks.example/…"
