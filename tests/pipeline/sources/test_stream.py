import contextlib
import gc
import hashlib
import http.server
import io
import itertools
import math
import os
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import OptionError, SourceError
from pipeline.sources import ffmpeg_memory, multipart, open_source, stream
from pipeline.sources.address import Address
from pipeline.sources.options import LiveOptions
from pipeline.sources.rtsp_relay import RtspRelay
from pipeline.stages.telemetry import CORRUPT, State

WAIT_S = 20  # only a broken test waits so long
QUICK = {"stall_s": 1.0, "reconnect_s": 6.0, "connect_s": 8.0, "backoff_s": 0.1, "backoff_max_s": 0.2}


def wait_until(condition, within_s=WAIT_S):
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def opened(spec, **options):
    return open_source(spec, LiveOptions(**{**QUICK, **options}))


def assert_increasing(frames):
    for earlier, later in itertools.pairwise(frames):
        assert later.index > earlier.index
        assert later.pts_s > earlier.pts_s


# RTSP ---------------------------------------------------------------------------------------------------------------------


def test_frames_of_a_real_server(serve, said):
    server = serve(size="160x120", pattern="blue")
    with opened(f"rtsp://{server.place}") as source:
        assert (source.info.name, source.info.live, source.info.fps) == (server.place, True, None)
        frames = list(itertools.islice(source, 10))
    assert [frame.size_hw for frame in frames] == [(120, 160)] * 10
    np.testing.assert_allclose(frames[-1].image[60, 80], (255, 0, 0), atol=6)
    assert_increasing(frames)
    assert said[0] == f"{server.place}: running"


def test_headers_between_the_slices_of_a_picture_do_not_split_it(serve):
    encoder = "x264enc tune=zerolatency speed-preset=ultrafast threads=2 sliced-threads=true key-int-max=5"
    server = serve(pattern="red", encoder=encoder, headers=-1)
    with opened(f"rtsp://{server.place}") as source:
        for frame in itertools.islice(source, 15):
            np.testing.assert_allclose(frame.image.reshape(-1, 3), [(0, 0, 255)] * (120 * 160), atol=12)


def test_a_server_that_stops_is_told_and_goes_on_by_itself(serve, said):
    server = serve()
    source = opened(f"rtsp://{server.place}", reconnect_s=WAIT_S)
    frames = []
    thread = threading.Thread(target=lambda: frames.extend(source), daemon=True)
    thread.start()
    wait_until(lambda: len(frames) > 5)
    server.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    wait_until(lambda: source.telemetry.state is State.STALLED, within_s=5)
    assert time.monotonic() - stopped_s > 0.5
    count = len(frames)
    server.send_signal(signal.SIGCONT)
    wait_until(lambda: source.telemetry.state is State.RUNNING and len(frames) > count + 5)
    assert source.telemetry.snapshot().reconnects == 0
    server.send_signal(signal.SIGSTOP)
    wait_until(lambda: source.telemetry.state is State.STALLED)
    closing_s = time.monotonic()
    source.close()
    thread.join(WAIT_S)
    assert time.monotonic() - closing_s < 1
    assert not thread.is_alive()
    assert said == [
        f"{server.place}: running",
        f"{server.place}: stalled: no frame for 1 s",
        f"{server.place}: running",
        f"{server.place}: stalled: no frame for 1 s",
    ]
    assert_increasing(frames)


def test_a_server_that_is_killed_and_comes_back_with_another_size(serve):
    server = serve(size="160x120")
    frames = []
    with opened(f"rtsp://{server.place}", backoff_s=0.5, backoff_max_s=0.5) as source:
        threading.Thread(target=lambda: frames.extend(source), daemon=True).start()
        wait_until(lambda: len(frames) > 5)
        server.kill()
        wait_until(lambda: source.telemetry.state is State.RECONNECTING)
        wait_until(lambda: "connection refused" in source.telemetry.snapshot().problem)
        count = len(frames)
        serve(port=server.port, size="96x64")
        started_s = time.monotonic()
        wait_until(lambda: len(frames) > count + 5)
        assert time.monotonic() - started_s < 0.5 + 2 + 5  # back-off, connecting, and what a busy machine takes
    assert {frame.size_hw for frame in frames} == {(120, 160), (64, 96)}
    assert_increasing(frames)


def test_a_wrong_password_fails_in_one_line_without_it(serve, said):
    server = serve(user="admin", password="right")
    for credentials in ("", "admin:secret@", "admin:sec/r@et#@"):
        source = opened(f"rtsp://{credentials}{server.place}")
        with pytest.raises(
            SourceError,
            match=rf"^{server.place}: expected to be let in, got 401 unauthorized: check user and password$",
        ):
            next(iter(source))
        assert source.telemetry.state is State.FAILED
        assert "sec" not in f"{said} {source.info} {source.telemetry.snapshot()}"


@pytest.mark.parametrize("password", ["right", "p@ss/w:rd #1%?"])
def test_a_password_may_hold_any_character(serve, password):
    server = serve(user="admin", password=password)
    with opened(f"rtsp://admin:{password}@{server.place}") as source:
        assert next(iter(source)).size_hw == (120, 160)


def test_a_server_that_is_not_there_is_waited_for_and_told_why(said):
    with (
        opened("rtsp://u:secret@127.0.0.1:1/x", max_reconnects=1) as source,
        pytest.raises(SourceError, match=r"^127.0.0.1:1/x: connection refused; gave up after 1 reconnections$"),
    ):
        next(iter(source))
    assert said == ["127.0.0.1:1/x: reconnecting: connection refused"]


def test_a_name_that_is_not_known_may_become_known():
    with (
        opened("rtsp://u:secret@nowhere.invalid/x", max_reconnects=0) as source,
        pytest.raises(SourceError, match=r"^nowhere.invalid/x: .*(name|resolution).*; gave up") as caught,
    ):
        next(iter(source))
    assert "secret" not in str(caught.value)


# HTTP ---------------------------------------------------------------------------------------------------------------------


def clip(container_format, images, codec="libx264", pix_fmt="yuv420p", gop=5, **options):
    file = io.BytesIO()
    movflags = {"movflags": "frag_keyframe+empty_moov"} if container_format == "mp4" else {}
    with av.open(file, "w", format=container_format, options=movflags) as container:
        video = container.add_stream(codec, rate=25, options={"g": str(gop), **options})
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = pix_fmt
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(video.encode(None))
    return file.getvalue()


def noise(count, height=48, width=64):
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


class Site(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Answers each path with its pages' bytes, status or function."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host="127.0.0.1"):
        self.pages, self.asked = {}, []
        super().__init__((host, 0), _Handler)

    def handle_error(self, *_):
        """A client that left is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.headers.get("Authorization"))
        page = self.server.pages[self.path.split("?")[0]]
        if callable(page):
            page(self)
        elif isinstance(page, (int, str)):
            self.send_response(302 if isinstance(page, str) else page)
            if isinstance(page, str):
                self.send_header("Location", page)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)


@pytest.fixture
def site():
    """A local server of ``pages``, by path; ``place`` is its host and port."""
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.place = f"127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


def motion_jpeg(images, every_s=0.0, damaged=()):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        handler.end_headers()
        for number, image in enumerate(images):
            content = cv2.imencode(".jpg", image)[1].tobytes()
            if number in damaged:
                content = content[:2] + b"\xff" * (len(content) - 2)
            header = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            handler.wfile.write(header.encode() + content + b"\r\n")
            time.sleep(every_s)

    return answer


@pytest.mark.parametrize(
    ("container_format", "codec"),
    [("mpegts", "libx264"), ("flv", "flv1"), ("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4")],
)
def test_a_file_over_http_is_live_and_begins_again(site, container_format, codec):
    site.pages["/clip"] = clip(container_format, noise(10), codec)
    with opened(f"http://{site.place}/clip") as source:
        frames = list(itertools.islice(source, 25))
    assert source.telemetry.snapshot().reconnects == 2
    assert [frame.index for frame in frames] == list(range(25))
    assert_increasing(frames)


def test_motion_jpeg_has_the_colours_and_times_of_its_pictures(site):
    colours = [(200, 60, 30), (30, 180, 60), (40, 50, 210), (255, 255, 255), (0, 0, 0)] * 20
    site.pages["/mjpg"] = motion_jpeg([np.full((48, 64, 3), colour, np.uint8) for colour in colours], every_s=0.02)
    with opened(f"http://{site.place}/mjpg?fps=9") as source:
        frames = list(itertools.islice(source, 12))
    assert source.info.name == f"{site.place}/mjpg"
    for frame, colour in zip(frames, colours, strict=False):
        np.testing.assert_allclose(frame.image[20, 20], colour, atol=3)
    assert_increasing(frames)


def test_credentials_reach_the_server_and_nobody_else(site, said):
    site.pages["/clip"] = clip("mpegts", noise(5))
    with opened(f"http://me:p@ss w/rd@{site.place}/clip") as source:
        next(iter(source))
    import base64

    assert site.asked[-1] in (None, "Basic " + base64.b64encode(b"me:p@ss w/rd").decode())
    assert "ss w" not in f"{said} {source.info} {source.telemetry.snapshot()}"


@pytest.mark.parametrize(
    ("height", "matrix", "full"), [(48, "bt601", False), (720, "bt709", False), (48, "bt601", True)]
)
def test_colours_by_matrix_and_range(site, height, matrix, full):
    # Y, U, V of a strong red, by hand: BT.601 (81, 90, 240), BT.709 (63, 102, 240); full range (76, 85, 255).
    y, u, v = (76, 85, 255) if full else {"bt601": (81, 90, 240), "bt709": (63, 102, 240)}[matrix]
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, height, "yuvj420p" if full else "yuv420p"
        planes = np.concatenate([np.full(64 * height, y), np.full(16 * height, u), np.full(16 * height, v)])
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(-1, 64), format=video.pix_fmt)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    site.pages["/clip"] = file.getvalue()
    with opened(f"http://{site.place}/clip") as source:
        np.testing.assert_allclose(next(iter(source)).image[0, 0], (0, 0, 255), atol=4)


def test_a_size_that_changes_in_the_stream_goes_on(site):
    site.pages["/clip"] = clip("mpegts", noise(10, 48, 64)) + clip("mpegts", noise(10, 96, 128))
    with opened(f"http://{site.place}/clip") as source:
        sizes = [frame.size_hw for frame in itertools.islice(source, 18)]
    assert set(sizes) == {(48, 64), (96, 128)}
    assert sizes == sorted(sizes)


def test_damaged_pictures_are_counted_and_not_shown(site):
    content = bytearray(clip("mpegts", noise(60, 96, 128), gop=10))
    rng = np.random.default_rng(11)
    for place in rng.integers(len(content) // 4, len(content), 60):
        content[place] ^= 0xFF
    site.pages["/clip"] = bytes(content)
    seen = {}
    for policy in ("drop", "pass"):
        with opened(f"http://{site.place}/clip", on_corrupt=policy, max_reconnects=0) as source:
            frames = []
            with pytest.raises(SourceError, match="gave up"):
                frames.extend(source)
        seen[policy] = len(frames), source.telemetry.snapshot().dropped.get(CORRUPT, 0)
        assert_increasing(frames)
    assert seen["drop"][1] > 3
    assert seen["pass"][1] < seen["drop"][1]
    assert sum(seen["drop"]) == sum(seen["pass"])


def test_damaged_motion_jpeg_is_counted(site):
    images = [np.full((48, 64, 3), 90, np.uint8)] * 40
    site.pages["/mjpg"] = motion_jpeg(images, 0.005, damaged=(8, 9, 15))
    with opened(f"http://{site.place}/mjpg") as source:
        for frame in itertools.islice(source, 20):
            np.testing.assert_allclose(frame.image, 90, atol=2)
    assert source.telemetry.snapshot().dropped[CORRUPT] == 3


def usage():
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return threading.active_count(), len(os.listdir("/proc/self/fd")), resident


def test_a_hundred_drops_in_a_row_cost_nothing(site):
    site.pages["/clip"] = clip("mpegts", noise(3))
    with opened(f"http://{site.place}/clip", backoff_s=1e-4, backoff_max_s=1e-4) as source:
        frames = iter(source)

        def drops(count):
            until = source.telemetry.snapshot().reconnects + count
            while source.telemetry.snapshot().reconnects < until:
                next(frames)

        drops(30)
        threads, files, resident = usage()
        drops(100)
        now_threads, now_files, now_resident = usage()
    assert now_threads <= threads + 2  # those of the local server
    assert now_files <= files + 4
    assert now_resident - resident < 8e6


PLAYLISTS = {
    "x.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{file}\n#EXT-X-ENDLIST\n",
    "live": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{file}\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile {file}\n",
    "x.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
    "<BaseURL>file://{file}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "x.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_cannot_read_a_file(site, tmp_path, name):
    (tmp_path / "local.ts").write_bytes(clip("mpegts", noise(5)))
    site.pages[f"/{name}"] = PLAYLISTS[name].format(file=tmp_path / "local.ts").encode()
    with (
        opened(f"http://me:secret@{site.place}/{name}", max_reconnects=0) as source,
        pytest.raises(SourceError, match=rf"^{site.place}/{name}: ") as caught,
    ):
        next(iter(source))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "target", ["file:///{file}", "{file}", "concat:{file}", "subfile,,start,0,end,9,,:{file}", "data:,x"]
)
def test_a_redirection_cannot_read_a_file(site, tmp_path, target):
    (tmp_path / "local.ts").write_bytes(clip("mpegts", noise(5)))
    site.pages["/away"] = target.format(file=tmp_path / "local.ts")
    site.pages[str(tmp_path / "local.ts")] = 404
    with opened(f"http://{site.place}/away", max_reconnects=0) as source, pytest.raises(SourceError):
        next(iter(source))


@pytest.mark.parametrize(("status", "said"), [(401, "401 unauthorized"), (403, "403 forbidden")])
def test_being_refused_fails_at_once(site, status, said):
    site.pages["/x"] = status
    with (
        opened(f"http://me:secret@{site.place}/x?token=hidden") as source,
        pytest.raises(
            SourceError, match=rf"^{site.place}/x: expected to be let in, got {said}: check user and password$"
        ),
    ):
        next(iter(source))


@pytest.mark.parametrize(
    ("asked_for", "told"),
    [
        (['Digest realm="cam", nonce="n", algorithm=SHA3-256, qop="auth"'], "it asks for Digest with SHA3-256"),
        (['Digest realm="cam", nonce="n", qop="auth-int"', "Bearer"], "Digest with auth-int or Bearer"),
        (['Digest realm="cam", algorithm=SHA-256', 'Digest realm="cam", algorithm=MD5'], "check user and password"),
        (['Basic realm="cam"'], "check user and password"),
        (['Digest realm="cam", nonce="n"'], "check user and password"),
        ([], "check user and password"),
    ],
)
def test_a_way_to_log_in_that_is_not_supported_is_named(site, asked_for, told):
    def refuse(handler):
        handler.send_response(401)
        for way in asked_for:
            handler.send_header("WWW-Authenticate", way)
        handler.end_headers()

    site.pages["/x"] = refuse
    with (
        opened(f"http://me:secret@{site.place}/x") as source,
        pytest.raises(SourceError, match="401 unauthorized") as caught,
    ):
        next(iter(source))
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert ("Digest are supported" in str(caught.value)) == ("check user" not in told)


@pytest.mark.parametrize("first", [401, 403, 404, 503, b"", b"<html>starting</html>" * 50])
def test_a_camera_that_still_begins_is_waited_for(site, first, said):
    pages = [first, first, motion_jpeg([np.full((48, 64, 3), 90, np.uint8)] * 3)]

    def begins(handler):
        page = pages.pop(0) if len(pages) > 1 else pages[0]
        if callable(page):
            page(handler)
            return
        handler.send_response(page if isinstance(page, int) else 200)
        handler.end_headers()
        handler.wfile.write(page if isinstance(page, bytes) else b"")

    site.pages["/x"] = begins
    with opened(f"http://me:secret@{site.place}/x", refused_s=math.inf) as source:
        assert next(iter(source)).size_hw == (48, 64)
    assert source.telemetry.snapshot().reconnects == 1
    assert said[0].startswith(f"{site.place}/x: reconnecting: ")
    assert said[0].count(site.place) == 1
    assert "running again after" in said[-1]


@pytest.mark.parametrize(
    "problem",
    [socket.gaierror(-3, "Temporary failure in name resolution"), ConnectionRefusedError(111, "Connection refused")],
)
def test_a_network_that_still_begins_is_waited_for(site, monkeypatch, said, problem):
    site.pages["/x"] = motion_jpeg([np.full((48, 64, 3), 90, np.uint8)] * 3)
    problems, connect = [problem, problem], socket.create_connection

    def begins(*arguments, **options):
        if problems:
            raise problems.pop()
        return connect(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", begins)
    with opened(f"http://{site.place}/x") as source:
        assert next(iter(source)).index == 0
    assert said[0] == f"{site.place}/x: reconnecting: {problem.strerror.lower()}"


@pytest.mark.parametrize("page", [404, 500, b"", b"<html>hello</html>" * 50])
def test_what_may_become_right_is_asked_for_again(site, page, said):
    site.pages["/x"] = page
    with opened(f"http://{site.place}/x") as source:
        threading.Thread(target=lambda: list(itertools.islice(source, 1)), daemon=True).start()
        wait_until(lambda: len(site.asked) > 1 and source.telemetry.state is State.RECONNECTING)
        site.pages["/x"] = clip("mpegts", noise(50))
        wait_until(lambda: said[-1:] and "running again" in said[-1])


def test_a_single_picture_is_no_stream(site):
    site.pages["/x.jpg"] = cv2.imencode(".jpg", noise(1)[0])[1].tobytes()
    with (
        opened(f"http://{site.place}/x.jpg") as source,
        pytest.raises(SourceError, match=r"single pictures are not read$"),
    ):
        next(iter(source))


def test_sound_alone_has_no_pictures(site):
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for number in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 44100, 1024 * number
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    site.pages["/x"] = file.getvalue()
    with opened(f"http://{site.place}/x") as source, pytest.raises(SourceError, match=r"got one without pictures$"):
        next(iter(source))


def test_frames_that_claim_the_machines_memory_are_refused(site, monkeypatch):
    monkeypatch.setattr(stream, "MAX_PIXELS", 48 * 64 - 1)
    site.pages["/clip"] = clip("mpegts", noise(5))
    with (
        opened(f"http://{site.place}/clip", max_reconnects=0) as source,
        pytest.raises(SourceError, match=r"/clip: expected frames of at most 3071 pixels, got 64×48$"),
    ):
        next(iter(source))


def test_later_frames_cannot_claim_it_either(site, monkeypatch):
    monkeypatch.setattr(stream, "MAX_PIXELS", 48 * 64)
    site.pages["/clip"] = clip("mpegts", noise(10, 48, 64)) + clip("mpegts", noise(10, 96, 128))
    with opened(f"http://{site.place}/clip", max_reconnects=0) as source:
        frames = []
        with pytest.raises(SourceError, match="gave up"):
            frames.extend(source)
    assert {frame.size_hw for frame in frames} == {(48, 64)}


def test_a_silent_server_is_left_behind(site):
    silent = threading.Event()
    site.pages["/x"] = lambda handler: silent.wait(WAIT_S)
    with (
        opened(f"http://{site.place}/x", connect_s=0.3, max_reconnects=0) as source,
        pytest.raises(SourceError, match=r"(nothing came for 0.3 s|no answer in time); gave up"),
    ):
        next(iter(source))
    silent.set()


# Who is spoken to ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """``certificate("IP:127.0.0.1")``: the paths of a self-signed certificate of that name and of its key."""
    folder = tmp_path_factory.mktemp("certificates")

    def make(name):
        paths = folder / f"{name[:6]}.pem".replace(":", ""), folder / f"{name[:6]}.key".replace(":", "")
        if not paths[0].exists():
            words = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName={name}"
            files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
            subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
        return paths

    return make


@pytest.fixture
def secure_site(site, certificate):
    """``secure_site("IP:127.0.0.1")``: the site speaks TLS with a certificate of that name, whose path is given back."""

    def make(name):
        paths = certificate(name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
        return str(paths[0])

    return make


def asks_to_log_in(content):
    def answer(handler):
        if handler.headers.get("Authorization") is None:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="cam"')
            handler.end_headers()
            return
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


tls = pytest.mark.needs_program("openssl")


@tls
@pytest.mark.parametrize("name", ["IP:127.0.0.1", "DNS:elsewhere.example"])
def test_a_certificate_that_nobody_vouches_for_gets_no_password(site, secure_site, name):
    secure_site(name)
    site.pages["/x"] = asks_to_log_in(clip("mpegts", noise(5)))
    with (
        opened(f"https://me:secret@{site.place}/x") as source,
        pytest.raises(
            SourceError, match=r"/x: expected a certificate of 127.0.0.1 .*self.signed.*--tls-verify"
        ) as caught,
    ):
        next(iter(source))
    assert site.asked == []
    assert "secret" not in str(caught.value)


@tls
@pytest.mark.parametrize("name", ["IP:127.0.0.1", "DNS:elsewhere.example"])
def test_a_cameras_own_certificate_vouches_for_it_under_any_name(site, secure_site, name):
    path = secure_site(name)
    site.pages["/x"] = asks_to_log_in(clip("mpegts", noise(5)))
    with opened(f"https://me:secret@{site.place}/x", tls_verify=path) as source:
        assert next(iter(source)).size_hw == (48, 64)


@tls
def test_another_certificate_than_that_of_the_file_is_refused(site, secure_site, certificate):
    secure_site("IP:127.0.0.1")
    path = str(certificate("DNS:elsewhere.example")[0])
    with (
        opened(f"https://me:secret@{site.place}/x", tls_verify=path) as source,
        pytest.raises(SourceError, match="expected a certificate"),
    ):
        next(iter(source))
    assert site.asked == []


@tls
def test_without_verification_there_are_pictures_and_no_password(site, secure_site):
    secure_site("DNS:elsewhere.example")
    site.pages |= {"/x": clip("mpegts", noise(5)), "/y": asks_to_log_in(b"")}
    with opened(f"https://me:secret@{site.place}/x", tls_verify="no") as source:
        next(iter(source))
    with (
        opened(f"https://me:secret@{site.place}/y", tls_verify="no") as source,
        pytest.raises(SourceError, match="401 unauthorized: user and password are not sent"),
    ):
        next(iter(source))
    assert set(site.asked) == {None}


@pytest.mark.parametrize("value", ["maybe", "/no/such/file.pem"])
def test_what_is_no_way_to_verify(value):
    with pytest.raises(OptionError, match=r"--tls-verify .*: expected yes, no or a file of certificates"):
        opened("https://cam/x", tls_verify=value)


class Rtsp(threading.Thread):
    """An RTSP server that answers each method by ``answers`` (lines after the status), and records what it was asked."""

    def __init__(self, wrap=lambda connection: connection, host="127.0.0.1", **answers):
        super().__init__(daemon=True)
        self.listening = socket.create_server((host, 0))
        self.place = f"{host}:{self.listening.getsockname()[1]}"
        self.answers, self.asked, self.wrap = answers, [], wrap
        self.start()

    def run(self):
        while True:
            connection, _ = self.listening.accept()
            with contextlib.suppress(OSError), self.wrap(connection) as peer:
                while request := peer.recv(4096).decode():
                    self.asked.append(request)
                    number = next(line for line in request.splitlines() if line.startswith("CSeq"))
                    status, *rest = self.answers.get(
                        request.split()[0], ["200 OK", "Public: DESCRIBE, SETUP, PLAY", "", ""]
                    )
                    peer.sendall("\r\n".join([f"RTSP/1.0 {status}", number, *rest]).encode())


def test_a_redirection_to_another_host_is_followed_only_when_asked_for(site):
    with Site("127.0.0.2") as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        other.pages["/y"] = clip("mpegts", noise(5))
        site.pages["/x"] = f"http://127.0.0.2:{other.server_port}/y"
        with (
            opened(f"http://me:secret@{site.place}/x") as source,
            pytest.raises(SourceError, match=r"another host \(127.0.0.2\)"),
        ):
            next(iter(source))
        assert other.asked == []
        with opened(f"http://me:secret@{site.place}/x", follow_redirects=True) as source:
            next(iter(source))
        assert set(other.asked) == {None}
        other.shutdown()


def test_a_redirection_on_the_same_host_is_followed_with_the_password(site):
    site.pages |= {"/x": "/y", "/y": asks_to_log_in(clip("mpegts", noise(5)))}
    with opened(f"http://me:secret@{site.place}/x") as source:
        next(iter(source))
    assert site.asked[-1] is not None


@tls
def test_a_redirection_away_from_encryption_is_not_followed(site, secure_site):
    path = secure_site("IP:127.0.0.1")
    site.pages["/x"] = "http://127.0.0.1:9/x"
    for follow in (False, True):
        with (
            opened(f"https://{site.place}/x", tls_verify=path, follow_redirects=follow) as source,
            pytest.raises(SourceError, match="without encryption"),
        ):
            next(iter(source))


def test_redirections_without_end_are_not_followed_for_ever(site):
    site.pages["/x"] = "/x"
    with opened(f"http://{site.place}/x", max_reconnects=0) as source, pytest.raises(SourceError, match="redirections"):
        next(iter(source))
    assert len(site.asked) < 10


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE"])
def test_rtsp_does_not_send_us_to_other_hosts(method):
    other = Rtsp(host="127.0.0.2")
    camera = Rtsp(**{method: ["302 Found", f"Location: rtsp://{other.place}/y", "", ""]})
    with (
        opened(f"rtsp://me:secret@{camera.place}/x") as source,
        pytest.raises(SourceError, match=r"another host \(127.0.0.2\)"),
    ):
        next(iter(source))
    assert other.asked == []
    with (
        opened(f"rtsp://me:secret@{camera.place}/x", follow_redirects=True, max_reconnects=0) as source,
        pytest.raises(SourceError),
    ):
        next(iter(source))
    assert any(request.startswith(f"{method} rtsp://{other.place}/y") for request in other.asked)


SDP = "v=0\r\no=- 0 0 IN IP4 {host}\r\ns=x\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"


def described(host):
    text = SDP.format(host=host) + f"a=control:rtsp://{host}/track\r\n"
    return ["200 OK", "Content-Type: application/sdp", f"Content-Length: {len(text)}", "", text]


@pytest.mark.parametrize(
    "transport",
    [
        "RTP/AVP;unicast;client_port=5000-5001;source=127.0.0.2",
        "RTP/AVP;multicast;destination=239.0.0.1",
    ],
)
def test_rtp_comes_over_the_connection_and_from_nowhere_else(transport):
    answer = ["200 OK", "Session: 1", f"Transport: {transport};server_port=6000-6001", "", ""]
    camera = Rtsp(DESCRIBE=described("127.0.0.2:9"), SETUP=answer)
    with (
        opened(f"rtsp://{camera.place}/x", max_reconnects=0) as source,
        pytest.raises(SourceError, match="expected RTP over TCP"),
    ):
        next(iter(source))
    assert [request.split()[0] for request in camera.asked][:3] == ["OPTIONS", "DESCRIBE", "SETUP"]


def carried(camera):
    """A relay to a camera that is being carried, and where a library reaches it."""
    relay = RtspRelay(Address.parse(f"rtsp://me:secret@{camera.place}/x"), LiveOptions(**QUICK))
    url = relay.open()
    thread = threading.Thread(target=lambda: list(relay), daemon=True)
    thread.start()
    return relay, url, thread


def test_a_library_can_take_leave_of_a_camera_when_it_is_ended():
    camera = Rtsp()
    relay, url, thread = carried(camera)
    with socket.create_connection(("127.0.0.1", Address.parse(url).port), WAIT_S) as library:
        library.sendall(f"OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        assert library.recv(4096).startswith(b"RTSP/1.0 200 OK")
        relay.cancel()
        library.sendall(f"TEARDOWN {url}/a RTSP/1.0\r\nCSeq: 2\r\n\r\n".encode())
    thread.join(WAIT_S)
    assert not thread.is_alive()
    wait_until(lambda: camera.asked[-1].startswith(f"TEARDOWN rtsp://{camera.place}/x/a RTSP/1.0"))


def test_others_on_this_machine_do_not_get_into_a_camera():
    camera = Rtsp()
    _, url, thread = carried(camera)
    with socket.create_connection(("127.0.0.1", Address.parse(url).port), WAIT_S) as stranger:
        stranger.sendall(b"DESCRIBE rtsp://127.0.0.1/x RTSP/1.0\r\nCSeq: 1\r\n\r\n")
        assert stranger.recv(4096) == b""
    thread.join(WAIT_S)
    assert camera.asked == []


@tls
def test_rtsps_is_verified_and_speaks_to_whom_it_trusts(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate("IP:127.0.0.1"))
    refusal = [
        "401 Unauthorized",
        'WWW-Authenticate: Digest realm="cam", nonce="n", qop="auth", algorithm=SHA-256',
        "",
        "",
    ]
    camera = Rtsp(lambda connection: context.wrap_socket(connection, server_side=True), DESCRIBE=refusal)
    with (
        opened(f"rtsps://me:secret@{camera.place}/x") as source,
        pytest.raises(SourceError, match="expected a certificate"),
    ):
        next(iter(source))
    assert camera.asked == []
    trusted = str(certificate("IP:127.0.0.1")[0])
    with (
        opened(f"rtsps://me:secret@{camera.place}/x", tls_verify=trusted) as source,
        pytest.raises(SourceError, match="401 unau"),
    ):
        next(iter(source))
    said = re.search(
        r'Authorization: Digest .*?uri="([^"]*)", response="([0-9a-f]*)".*cnonce="(\w*)".*nc=(\w*)', camera.asked[-1]
    )
    first, second = (hashlib.sha256(text.encode()).hexdigest() for text in ("me:cam:secret", f"DESCRIBE:{said[1]}"))
    assert said[1] == f"rtsps://{camera.place}/x"
    assert said[2] == hashlib.sha256(f"{first}:n:{said[4]}:{said[3]}:auth:{second}".encode()).hexdigest()


@pytest.mark.needs_program("gst-launch-1.0")
def test_a_jetsons_way_goes_through_the_relay_with_a_password_that_it_does_not_know(serve, monkeypatch):
    jetson_rtsp, seen = stream.jetson_rtsp, []

    def words(url):
        seen[:] = ["videoconvert" if word == "nvvidconv" else word for word in jetson_rtsp(url)]
        return seen

    monkeypatch.setattr(stream, "has_jetson_decoder", lambda: True)
    monkeypatch.setattr(stream, "jetson_rtsp", words)
    server = serve(user="admin", password="rightful", pattern="red")
    with opened(f"rtsp://admin:rightful@{server.place}") as source:
        np.testing.assert_allclose(next(iter(source)).image[60, 80], (0, 0, 255), atol=12)
    assert not any("rightful" in word or server.place in word for word in seen)
    with (
        opened(f"rtsp://admin:wrongful@{server.place}") as source,
        pytest.raises(SourceError, match=r"expected to be let in, got 401 unauthorized: check user and password$"),
    ):
        next(iter(source))


@pytest.mark.needs_program("gst-launch-1.0")
def test_a_jetsons_way_is_not_sent_to_other_hosts_either(monkeypatch):
    monkeypatch.setattr(stream, "has_jetson_decoder", lambda: True)
    other = Rtsp(host="127.0.0.2")
    camera = Rtsp(DESCRIBE=["302 Found", f"Location: rtsp://{other.place}/y", "", ""])
    words = stream.jetson_rtsp
    monkeypatch.setattr(
        stream, "jetson_rtsp", lambda url: ["videoconvert" if word == "nvvidconv" else word for word in words(url)]
    )
    with opened(f"rtsp://{camera.place}/x") as source, pytest.raises(SourceError, match="another host"):
        next(iter(source))
    assert other.asked == []


def test_a_film_whose_index_is_at_its_end_is_read_in_parts(site):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 640, 480, "yuv420p"
        for image in noise(10, 480, 640):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(video.encode(None))
    content, parts = file.getvalue(), []

    def answer(handler):
        given = handler.headers.get("Range")
        start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        parts.append(start)
        handler.send_response(206 if given else 200)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:])

    site.pages["/x.mp4"] = answer
    with opened(f"http://{site.place}/x.mp4") as source:
        assert len(list(itertools.islice(source, 10))) == 10
    assert max(parts) > len(content) // 2


# Memory -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["Content-Length: 2000000000\r\n", ""])
def test_a_part_is_no_larger_than_a_picture(site, length, monkeypatch):
    monkeypatch.setattr(multipart, "MAX_PART_BYTES", 1 << 20)

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=--part")
        handler.end_headers()
        handler.wfile.write(f"--part\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode())
        for _ in range(100):
            handler.wfile.write(b"x" * (1 << 16))

    site.pages["/x"] = answer
    with (
        opened(f"http://{site.place}/x", max_reconnects=0) as source,
        pytest.raises(SourceError, match="pictures of at most 1 MiB"),
    ):
        next(iter(source))


@pytest.mark.parametrize("part", ["head", "body"])
def test_answers_of_rtsp_are_no_larger_than_such_answers(part):
    answer = (
        ["200 OK", "Content-Length: 2147483000", "", "v=0"]
        if part == "body"
        else ["200 OK", "X: " + "y" * 100_000, "", ""]
    )
    camera = Rtsp(DESCRIBE=answer)
    with (
        opened(f"rtsp://{camera.place}/x", max_reconnects=0) as source,
        pytest.raises(SourceError, match="answers of RTSP"),
    ):
        next(iter(source))


def test_later_pictures_are_not_a_thousand_times_as_large(site, monkeypatch):
    monkeypatch.setattr(stream, "_LATER_PIXELS", 100 * 100)
    small, large = np.full((48, 64, 3), 90, np.uint8), np.full((400, 400, 3), 90, np.uint8)
    site.pages["/x"] = motion_jpeg([small, small, large, large, small, small], 0.01)
    with opened(f"http://{site.place}/x") as source:
        assert {frame.size_hw for frame in itertools.islice(source, 4)} == {(48, 64)}
    assert source.telemetry.snapshot().dropped[CORRUPT] >= 2


def test_no_block_of_ffmpegs_is_larger_than_a_picture():
    with ffmpeg_memory.limited_blocks():
        with ffmpeg_memory.limited_blocks():
            pass
        with pytest.raises(av.error.MemoryError):
            av.VideoFrame(11584, 11584, "rgb24")
    with pytest.raises(av.error.MemoryError):
        av.VideoFrame(16000, 16000, "rgb24")
    assert av.VideoFrame(11584, 11584, "rgb24").width == 11584
