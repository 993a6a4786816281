"""Events at a real broker: in order, none lost while it is away, and the picture goes on meanwhile."""

import logging
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.finder import Finder
from pipeline.results.zone_options import ZoneOptions, parse_zones
from pipeline.sinks import open_sink
from pipeline.sinks.options import SinkOptions
from pipeline.sources.options import LiveOptions
from tests.pipeline.events.conftest import until

pytestmark = [
    pytest.mark.needs("paho"),
    pytest.mark.needs_program("mosquitto"),
    pytest.mark.needs_program("mosquitto_sub"),
]


@pytest.fixture
def run_of_frames(make_info):
    """``run_of_frames(address)``: an output, and what writes its frames: the subject comes and goes every third frame."""
    sinks = []

    class Run:
        def __init__(self, address, **options):
            info = make_info(live=True, name="door")
            renderer = Renderer(Look(), "binary")
            zones = ZoneOptions(parse_zones(["left=0,0 0.5,0 0.5,1 0,1"], ["left=0.4"]), dwell_s=0.01)
            self.finder = Finder(renderer, ("subject",), [info], zones)
            self.sink = open_sink(address, info, renderer, SinkOptions(finder=self.finder, live=LiveOptions(**options)))
            sinks.append(self.sink)
            self.frames = 0
            self.ids = []

        def write(self, count):
            for _ in range(count):
                mask = np.full((20, 40), 255 if self.frames // 3 % 2 else 0, np.uint8)
                frame = Frame(np.zeros((20, 40, 3), np.uint8), self.frames, self.frames / 50, "door", "x", mask=mask)
                self.sink.write(frame)
                self.ids += [event.id for event in frame.found.events]
                self.frames += 1
                time.sleep(0.005)

        def arrived(self):
            until(lambda: self.sink.delivery.delivered == len(self.ids), "events do not arrive")

    yield Run
    for sink in sinks:
        sink.close()


def ids(subscriber):
    return [event["id"] for event in subscriber.of("/event")]


def once(items):
    return list(dict.fromkeys(items))


def test_events_arrive_in_order(make_broker, subscribe, run_of_frames):
    broker = make_broker()
    watcher = subscribe(broker)
    run = run_of_frames(f"mqtt://127.0.0.1:{broker.port}/yard")
    run.write(13)
    run.arrived()
    until(lambda: len(watcher.of("/event")) >= len(run.ids), "nothing is heard")
    assert ids(watcher) == run.ids
    kinds = [(event["event"], event["zone"], event["class"]) for event in watcher.of("yard/door/event")]
    assert kinds[:4] == [(kind, "left", "subject") for kind in ("enter", "above", "leave", "below")]
    run.sink.close()
    until(lambda: "offline" in watcher.of("yard/door/status"), "it takes no leave")
    assert watcher.of("yard/door/status") == ["online", "offline"]
    last = watcher.of("yard/door/state")[-1]
    assert last["frames"] == 13
    assert last["events"] == {"delivered": len(run.ids), "waiting": 0, "refused": 0, "lost": 0}


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_broker_that_is_away_costs_no_event_and_no_frame(make_broker, subscribe, run_of_frames, kill):
    broker = make_broker()
    watcher = subscribe(broker)
    run = run_of_frames(f"mqtt://127.0.0.1:{broker.port}")
    run.write(20)
    run.arrived()
    until(lambda: len(once(ids(watcher))) == len(run.ids), "nothing is heard")
    broker.end(kill=kill)
    before = len(run.ids)
    while run.sink.delivery.waiting < 40:  # frames go on, however long it takes
        run.write(20)
    until(lambda: run.sink.problem, "nobody notices")
    assert len(run.ids) > before + 40
    broker.start()
    run.write(20)
    run.arrived()
    until(lambda: len(once(ids(watcher))) == len(run.ids), "events were lost")
    assert once(ids(watcher)) == run.ids  # one whose acknowledgment was lost comes twice
    assert run.sink.delivery.lost == 0
    assert run.sink.problem == ""


def test_a_run_that_dies_is_offline(make_broker, subscribe, tmp_path):
    broker = make_broker()
    watcher = subscribe(broker)
    code = (
        "import sys, time\n"
        "from pipeline.events.mqtt import MqttCourier\n"
        "courier = MqttCourier(('127.0.0.1', int(sys.argv[1])), ('', ''), None, 'edgemask/door')\n"
        "courier.beat({'frames': 1}); print('here', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(broker.port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: watcher.of("/status") == ["online", "offline"], "the last will is not heard")


def certificates(folder):
    """A made authority, and a broker's certificate by it, by OpenSSL's own program."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=made-authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=127.0.0.1", "-keyout", "broker.key", "-out", "broker.csr")
    (folder / "names.txt").write_text("subjectAltName=IP:127.0.0.1\n")
    by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names.txt"]
    openssl("x509", "-req", "-in", "broker.csr", *by, "-out", "broker.pem")
    return folder


@pytest.mark.needs_program("openssl")
@pytest.mark.needs_program("mosquitto_passwd")
def test_tls_with_a_user(make_broker, subscribe, run_of_frames, tmp_path, monkeypatch, caplog):
    folder = certificates(tmp_path)
    users = folder / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", users, "edge", "s3cret/word@"], check=True, capture_output=True)
    broker = make_broker(
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/broker.pem",
        f"keyfile {folder}/broker.key",
        "allow_anonymous false",
        f"password_file {users}",
    )
    words = ("--cafile", str(folder / "ca.pem"), "-u", "edge", "-P", "s3cret/word@")
    watcher = subscribe(broker, words=words)
    (folder / "password").write_text("s3cret/word@\n")
    monkeypatch.setenv("EDGEMASK_MQTT_USER", "edge")
    monkeypatch.setenv("EDGEMASK_MQTT_PASSWORD_FILE", str(folder / "password"))
    address = f"mqtts://127.0.0.1:{broker.port}"
    run = run_of_frames(address, tls_verify=str(folder / "ca.pem"))
    run.write(8)
    run.arrived()
    until(lambda: ids(watcher) == run.ids, "nothing is heard")
    with caplog.at_level(logging.WARNING, "edgemask"):
        stranger = run_of_frames(address)
        until(lambda: stranger.sink.problem, "a stranger's certificate is taken")
    assert re.search("expected a certificate from an authority that is trusted, got another", stranger.sink.problem)
    assert "s3cret" not in caplog.text


@pytest.mark.needs_program("mosquitto_passwd")
def test_a_wrong_password_is_told_once(make_broker, run_of_frames, tmp_path, caplog, monkeypatch):
    users = tmp_path / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", users, "edge", "right"], check=True, capture_output=True)
    broker = make_broker("allow_anonymous false", f"password_file {users}")
    attempts = []
    from pipeline.events.mqtt import MqttCourier  # not at the top: paho may not be here

    connect = MqttCourier._connect
    monkeypatch.setattr(MqttCourier, "_connect", lambda self: (attempts.append(time.monotonic()), connect(self))[1])
    with caplog.at_level(logging.WARNING, "edgemask"):
        run = run_of_frames(f"mqtt://edge:hunter22@127.0.0.1:{broker.port}")
        run.write(10)
        until(lambda: len(attempts) >= 3, "it is not tried again")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"mqtt://127.0.0.1:{broker.port}: the broker refused us (not authorized): "
        "EDGEMASK_MQTT_USER and EDGEMASK_MQTT_PASSWORD name a user; events wait"
    ]
    pauses_s = np.diff(attempts)
    assert (pauses_s >= 0.5).all()  # each attempt waits for its pause
    assert "hunter22" not in run.sink.problem


def test_a_broker_that_does_not_answer_keeps_nobody_waiting(run_of_frames, monkeypatch):
    monkeypatch.setattr("pipeline.events.delivery._END_WITHIN_S", 0.3)
    monkeypatch.setattr("pipeline.events.mqtt._ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = run_of_frames(f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        run.write(30)
        assert run.frames == 30
        assert run.sink.delivery.delivered == 0
        ending = threading.Thread(target=run.sink.close)
        ending.start()
        ending.join(20)
        assert not ending.is_alive()
        assert run.sink.delivery.lost == len(run.ids) > 0


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mqtt://host/a+b", r"--output mqtt://host: expected a topic without \+, # and \$, got 'a\+b'"),
        ("mqtt://host/a?qos=2", "--output mqtt://host: expected discovery=… after the question mark, got 'qos'"),
        ("mqtt://u:p@host:99999/a", "--output mqtt://…: expected mqtt://user:password@host:port/path"),
    ],
)
def test_addresses_that_are_refused(run_of_frames, address, message):
    with pytest.raises(SinkError, match=message):
        run_of_frames(address)


def test_a_password_is_not_given_to_whom_nobody_verifies(run_of_frames):
    with pytest.raises(SinkError, match="expected a receiver that is verified, because there is a password"):
        run_of_frames("mqtts://u:p@host", tls_verify="no")
