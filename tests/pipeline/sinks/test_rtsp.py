"""Views published to a real RTSP server, which goes away and comes back."""

import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import OptionError, SinkError
from pipeline.sinks import rtsp, stream
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.rtsp import RtspSink
from pipeline.sources.options import LiveOptions

SERVER = Path(__file__).with_name("rtsp_record_server.py")
PYTHON = "/usr/bin/python3"  # GStreamer's bindings come with the system
WAIT_S = 30  # only a broken test waits so long


def has_server():
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Server:
    def __init__(self, folder, port=0):
        self.folder = folder
        self.process = subprocess.Popen(
            [PYTHON, str(SERVER), str(port), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.port = int(self.process.stdout.readline().split()[1])
        self.address = f"rtsp://127.0.0.1:{self.port}/live"

    def received(self, session=1):
        """The pictures of a session so far."""
        path = self.folder / f"session-{session}.h264"
        if not path.exists() or path.stat().st_size < 2000:
            return []
        try:
            with av.open(str(path), format="h264") as container:
                return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
        except av.error.FFmpegError:
            return []

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path):
    """``serve("a", port)``: a server that writes below the folder "a"."""
    if not has_server():
        pytest.skip("gir1.2-gst-rtsp-server-1.0 is not on this machine")
    servers = []

    def start(name="server", port=0):
        (tmp_path / name).mkdir()
        servers.append(Server(tmp_path / name, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def publish(make_info, make_frame, renderer, monkeypatch, said):
    """Opens a sink; ``push`` writes frames at about 50 FPS until something is so, and tells how long the slowest write took."""
    monkeypatch.setattr(stream, "_FIRST_WAIT_S", 0.05)
    sinks = []

    class Publisher:
        def __init__(self, address, live=True, **options):
            self.index = 0
            to = SinkOptions(live=LiveOptions(**options))
            self.sink = RtspSink(address, make_info(fps=50, live=live), renderer, to)
            sinks.append(self.sink)

        def push(self, until, size_hw=(64, 96), pause_s=0.02):
            slowest_s, end_s = 0.0, time.monotonic() + WAIT_S
            while not until():
                assert time.monotonic() < end_s, said
                image = np.full((*size_hw, 3), (self.index * 2) % 200 + 20, np.uint8)
                image[: size_hw[0] // 2] = np.random.default_rng(self.index).integers(
                    0, 255, (size_hw[0] // 2, size_hw[1], 3), np.uint8
                )
                start_s = time.monotonic()
                self.sink.write(make_frame(image, self.index, self.index / 50))
                slowest_s = max(slowest_s, time.monotonic() - start_s)
                self.index += 1
                time.sleep(pause_s)
            return slowest_s

    yield Publisher
    for sink in sinks:
        sink.discard()


def test_a_server_gets_the_pictures(serve, publish, said):
    server = serve()
    publisher = publish(server.address)
    publisher.push(lambda: publisher.index % 25 == 24 and len(server.received()) >= 20)
    publisher.sink.close()
    publisher.sink.close()
    assert said == [f"{server.address}: sending"]
    images = server.received()
    assert {image.shape for image in images} == {(64, 96, 3)}
    levels = [int(image[56, 48, 0]) for image in images]
    assert levels == sorted(levels)
    assert set(np.diff(levels)) <= set(range(1, 12))


def test_a_server_that_was_killed_gets_them_again(serve, publish, said):
    server = serve("first")
    publisher = publish(server.address)
    publisher.push(lambda: publisher.index % 25 == 24 and server.received())
    threads = threading.active_count()
    server.stop()
    slowest_s = publisher.push(lambda: len(said) == 2)
    assert said[1].startswith(f"{server.address}: not sent (")
    assert said[1].endswith("): trying again")
    dropped = publisher.sink.dropped
    again = serve("second", server.port)
    slowest_s = max(slowest_s, publisher.push(lambda: publisher.index % 25 == 24 and again.received()))
    assert said[2:] == [f"{server.address}: sending"]
    assert publisher.sink.dropped >= dropped > 0
    assert threading.active_count() == threads
    assert slowest_s < 1


def test_a_server_that_has_stopped_holds_nobody_up(serve, publish, monkeypatch, said):
    monkeypatch.setattr(rtsp, "_SEND_WITHIN_S", 0.3)
    server = serve()
    publisher = publish(server.address)
    large_hw = 480, 640  # the system keeps megabytes for a server that does not read
    publisher.push(lambda: publisher.index % 25 == 24 and server.received(), large_hw)
    server.process.send_signal(signal.SIGSTOP)
    slowest_s = publisher.push(lambda: len(said) >= 2, large_hw)
    assert said[1].startswith(f"{server.address}: not sent (")
    assert slowest_s < 1
    server.process.send_signal(signal.SIGCONT)
    publisher.push(lambda: said[-1].endswith(": sending"), large_hw)


def test_another_size_is_announced_again(serve, publish, said):
    server = serve()
    publisher = publish(server.address)
    publisher.push(lambda: publisher.index % 25 == 24 and server.received())
    publisher.push(lambda: publisher.index % 25 == 24 and server.received(2), size_hw=(48, 48))
    assert server.received(2)[0].shape == (48, 48, 3)
    assert said[1:] == [
        f"{server.address}: not sent (the size of the picture has changed): trying again",
        f"{server.address}: sending",
    ]


def test_a_source_that_can_wait_is_sent_whole(serve, publish):
    server = serve()
    publisher = publish(server.address, live=False)
    publisher.push(lambda: publisher.index == 40)
    publisher.sink.close()
    end_s = time.monotonic() + WAIT_S
    while len(server.received()) < 39:  # the server's parser keeps the last one
        assert time.monotonic() < end_s
    assert publisher.sink.dropped == 0


def test_a_source_that_can_wait_ends_with_its_connection(publish):
    publisher = publish("rtsp://me:hunter2@127.0.0.1:9/live", live=False)
    with pytest.raises(SinkError, match=r"^rtsp://\*\*\*@127.0.0.1:9/live: cannot be sent \(.*refused\)$"):
        publisher.push(lambda: False)
    publisher.sink.close()


class Recorder(threading.Thread):
    """A server that takes what is published to it, over TLS where it has a certificate; and keeps what it was asked."""

    def __init__(self, certificate=None, answers=()):
        super().__init__(daemon=True)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*certificate)
        self.answers = dict(answers)
        self.asked, self.media_bytes = [], 0
        self.start()

    def run(self):
        while True:
            with contextlib.suppress(OSError, ValueError):
                peer, _ = self.listening.accept()
                peer = self.context.wrap_socket(peer, server_side=True) if self.context else peer
                with peer, peer.makefile("rb") as stream:
                    self.talk(peer, stream)

    def talk(self, peer, stream):
        while first := stream.read(1):
            if first == b"$":
                _, size = struct.unpack(">BH", stream.read(3))
                self.media_bytes += len(stream.read(size))
                continue
            lines = [first + stream.readline()]
            while (line := stream.readline()) not in (b"\r\n", b""):
                lines.append(line)
            head = b"".join(lines).decode()
            length = re.search(r"(?i)content-length: (\d+)", head)
            self.asked.append(head + stream.read(int(length[1]) if length else 0).decode())
            method = head.split()[0]
            given = next((line for line in head.splitlines() if line.startswith("Transport:")), "Public: ANNOUNCE")
            status, *more = self.answers.get(method, lambda _: ["200 OK"])(head)
            number = re.search(r"(?i)cseq: *(\d+)", head)[1]
            answer = [f"RTSP/1.0 {status}", f"CSeq: {number}", *more, given, "Session: 1", "", ""]
            peer.sendall("\r\n".join(answer).encode())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    paths = [str(folder / name) for name in ("cert.pem", "key.pem")]
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=c -addext subjectAltName=IP:127.0.0.1 -out"
    subprocess.run([*words.split(), paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def asks_to_log_in(head):
    return ["200 OK"] if "Authorization: Basic" in head else ["401 Unauthorized", 'WWW-Authenticate: Basic realm="x"']


@pytest.mark.needs_program("openssl")
def test_a_server_that_nobody_vouches_for_gets_neither_pictures_nor_a_password(publish, said, certificate):
    server = Recorder(certificate, {"ANNOUNCE": asks_to_log_in})
    publisher = publish(f"rtsps://me:hunter2@{server.place}/live")
    publisher.push(lambda: said)
    assert "expected a certificate of 127.0.0.1 from an authority that is trusted" in said[0]
    assert (server.asked, server.media_bytes) == ([], 0)
    trusting = publish(f"rtsps://me:hunter2@{server.place}/live", tls_verify=certificate[0])
    trusting.push(lambda: server.media_bytes > 1000)
    assert any("Authorization: Basic " in text for text in server.asked)
    assert said[-1].endswith("/live: sending")


@pytest.mark.needs_program("openssl")
def test_a_password_is_not_sent_to_a_server_that_is_not_verified(publish, said, certificate):
    server = Recorder(certificate, {"ANNOUNCE": asks_to_log_in})
    publish(f"rtsps://me:hunter2@{server.place}/live", tls_verify="no").push(lambda: said)
    assert "user and password are not sent to a peer that --tls-verify no does not verify" in said[0]
    assert "Authorization" not in "".join(server.asked)


def test_a_password_is_sent_only_when_it_is_asked_for_and_an_address_of_our_own_never(publish):
    server = Recorder(answers={"ANNOUNCE": asks_to_log_in})
    publish(f"rtsp://me:hunter2@{server.place}/live").push(lambda: server.media_bytes > 1000)
    assert ["Authorization" in text for text in server.asked][:2] == [False, False]
    assert all(f"rtsp://{server.place}/live" in text.splitlines()[0] for text in server.asked)


@pytest.mark.parametrize("follow", [False, True])
def test_pictures_go_to_another_host_only_where_that_is_asked_for(publish, said, follow):
    there = Recorder()
    port = there.place.rpartition(":")[2]
    moved = {"ANNOUNCE": lambda _: ["302 Moved", f"Location: rtsp://localhost:{port}/live"]}
    publisher = publish(f"rtsp://me:hunter2@{Recorder(answers=moved).place}/live", follow_redirects=follow)
    publisher.push(lambda: there.media_bytes > 1000 if follow else said)
    assert bool(there.asked) == follow
    assert follow or "a redirection to another host (localhost)" in said[0]
    assert "Authorization" not in "".join(there.asked)


@pytest.mark.needs_program("ffmpeg")
def test_ffmpegs_own_server_gets_the_pictures(publish, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-rtsp_flags",
        "listen",
        "-i",
        f"rtsp://127.0.0.1:{port}/live",
        "-frames:v",
        "5",
    ]
    server = subprocess.Popen([*command, str(tmp_path / "%d.png")], stdin=subprocess.DEVNULL)
    try:
        publish(f"rtsp://127.0.0.1:{port}/live").push(lambda: server.poll() is not None)
    finally:
        server.kill()
        server.wait()
    assert len(os.listdir(tmp_path)) == 5


def test_a_server_that_reads_nothing_holds_nobody_up_and_is_left(publish, monkeypatch, said):
    monkeypatch.setattr(rtsp, "_SEND_WITHIN_S", 0.3)
    reads = threading.Event()
    reads.set()
    server = Recorder(answers={"RECORD": lambda _: reads.clear() or ["200 OK"]})
    talk = server.talk

    def stops(peer, stream):
        def read(size, plain=stream.read):
            reads.wait(WAIT_S)
            return plain(size)

        stream.read = read
        talk(peer, stream)

    server.talk = stops
    publisher = publish(f"rtsp://{server.place}/live")
    slowest_s = publisher.push(lambda: len(said) >= 2, (480, 640))
    assert said == [
        f"rtsp://{server.place}/live: sending",
        f"rtsp://{server.place}/live: not sent (the server takes nothing): trying again",
    ]
    assert slowest_s < 5
    reads.set()


def test_a_file_of_certificates_that_is_not_there(publish):
    with pytest.raises(OptionError, match=r"--tls-verify nowhere\.pem: expected yes, no or a file of certificates"):
        publish("rtsps://h/live", tls_verify="nowhere.pem")


def test_a_hundred_failures_leave_nothing_behind(publish, monkeypatch):
    publisher = publish("rtsp://127.0.0.1:9/live")
    monkeypatch.setattr(stream, "_LONGEST_WAIT_S", 0.001)
    tried = []
    connect = publisher.sink._connect
    monkeypatch.setattr(publisher.sink, "_connect", lambda frame: tried.append(1) or connect(frame))
    publisher.push(lambda: len(tried) > 5)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    publisher.push(lambda: len(tried) > 105, pause_s=0.002)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_no_server_and_no_password_in_what_is_said(publish, said):
    publisher = publish("rtsp://me:hunter2@127.0.0.1:9/live")
    assert publisher.push(lambda: publisher.sink.dropped > 20) < 1
    publisher.sink.close()
    assert said == ["rtsp://***@127.0.0.1:9/live: not sent (connection refused): trying again"]
