import asyncio
import contextlib
import json
import re
import socket
import threading
import time

import aiohttp
import cv2
import numpy as np
import pytest

from pipeline.errors import OptionError, SinkError
from pipeline.page.options import Limits
from pipeline.stages.telemetry import State

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATHS = (
    "/",
    "/app.js",
    "/live",
    "/stream.mjpg",
    "/snapshot.jpg",
    "/state",
    "/metrics",
    "/healthz",
    "/readyz",
    "/nowhere",
)
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def raw(port, request, wait_s=5.0):
    """What comes back for bytes that no HTTP client would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
    ids=["host", "origin", "null"],
)
def test_foreign_hosts_and_origins_get_403_everywhere(rig, get, path, headers):
    rig.write()
    for more in ({}, WEBSOCKET) if path == "/live" else ({},):
        answer = get(rig)(path, headers={**headers, **more})
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong-wrong-wrong-wrong"}, {"Cookie": "edgemask_1=x"}]
)
def test_without_the_token_everything_is_403_on_loopback_too(make_rig, get, path, headers):
    rig = make_rig(token=TOKEN)
    rig.write()
    for more in ({}, WEBSOCKET) if path == "/live" else ({},):
        answer = get(rig)(path, headers={**headers, **more})
        assert (answer.status, TOKEN in answer.text) == (403, False)
    assert get(rig)("/settings", "POST", headers=headers, json={"alpha": 0.1}).status == 403
    assert rig.renderer.look.alpha == 0.5


@pytest.mark.parametrize("path", ["/", "/snapshot.jpg", "/state", "/metrics", "/healthz", "/readyz"])
def test_with_the_token_everything_answers(make_rig, get, path):
    rig = make_rig(token=TOKEN)
    rig.write()
    assert get(rig)(path, headers=BEARER).status == 200


def test_the_token_in_the_address_becomes_a_cookie_once(make_rig, get):
    rig = make_rig(token=TOKEN)
    ask = get(rig)
    answer = ask(f"/?token={TOKEN}&x=1")
    assert (answer.status, answer.headers["Location"]) == (303, "./?x=1")
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert ask("/", headers={"Cookie": cookie.partition(";")[0]}).status == 200
    assert ask(f"/snapshot.jpg?source=a%26b&token={TOKEN}").headers["Location"] == "snapshot.jpg?source=a%26b"
    assert ask("/?token=wrong-wrong-wrong-wrong").status == 403
    assert ask(f"//evil.example/?token={TOKEN}").headers["Location"] == "./"


def test_a_browser_without_the_token_is_asked_for_it(make_rig, get):
    rig = make_rig(token=TOKEN)
    answer = get(rig)("/", headers={"Accept": "text/html"})
    assert (answer.status, 'name="token"' in answer.text, "Wrong token" in answer.text) == (403, True, False)
    answer = get(rig)("/?token=wrong-wrong-wrong-wrong", headers={"Accept": "text/html"})
    assert (answer.status, 'name="token"' in answer.text, "Wrong token" in answer.text) == (403, True, True)
    assert get(rig)("/style.css").status == 200


def test_too_many_wrong_tokens_stop_wrong_ones_alone(make_rig, get):
    rig = make_rig(token=TOKEN)
    ask = get(rig)
    cookie = ask(f"/?token={TOKEN}").headers["Set-Cookie"].partition(";")[0]
    for _ in range(10):
        assert ask("/state", headers={"Authorization": "Bearer wrong-wrong-wrong"}).status == 403
    answer = ask("/state", headers={"Authorization": "Bearer wrong-wrong-wrong"})
    assert (answer.status, "try again in" in answer.text) == (429, True)
    assert ask("/state", headers=BEARER).status == 200
    assert ask("/state", headers={"Cookie": cookie}).status == 200


def test_on_a_network_a_token_is_made_and_told_once(make_rig, get, said):
    rig = make_rig(address="0.0.0.0:0")
    token = rig.sink.url.partition("?token=")[2]
    assert len(token) >= 32
    assert said == [f"page: {rig.sink.url}"]
    assert get(rig)("/state").status == 403
    assert get(rig)("/state", headers={"Authorization": f"Bearer {token}"}).status == 200
    make_rig(address="0.0.0.0:0", token=TOKEN)
    assert TOKEN not in "".join(said)


def test_a_token_that_is_too_short_and_a_taken_port_are_refused(make_rig):
    with pytest.raises(OptionError, match="16 to 256"):
        make_rig(token="short")
    taken = make_rig()
    with pytest.raises(SinkError, match="cannot listen there"):
        make_rig(address=f"127.0.0.1:{taken.port}")


def test_nothing_of_a_token_is_logged(make_rig, get, capfd, caplog, said):
    rig = make_rig(token=TOKEN)
    get(rig)(f"/?token={TOKEN}")
    get(rig)("/?token=wrong-wrong-wrong-wrong")
    raw(rig.port, f"GET /?token={TOKEN} HTTP/9.9\r\nHost: localhost\r\n\r\n".encode())
    rig.close()
    assert TOKEN not in caplog.text + "".join(capfd.readouterr()) + "".join(said)


def test_headers_that_keep_others_out(rig, get):
    rig.write()
    for path in ("/", "/app.js", "/state", "/snapshot.jpg", "/metrics", "/nowhere"):
        headers = get(rig)(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "Python" not in headers["Server"]
        assert not [name for name in headers if name.startswith("Access-Control")]


def test_host_headers_that_no_browser_sends_are_refused(rig):
    for request in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ):
        assert raw(rig.port, request).split()[1] in (b"400", b"403")
    answer = raw(rig.port, b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b" 403 " in answer.splitlines()[0]


def test_silent_and_slow_clients_are_hung_up_on(make_rig):
    rig = make_rig(limits=Limits(request_s=0.3))
    assert raw(rig.port, b"") == b""
    assert raw(rig.port, b"GET / HTTP/1.1\r\nHost: local") == b""
    slow = (
        b"POST /settings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    assert b"200" not in raw(rig.port, slow)


REQUEST = b"GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_connections_that_were_let_in_are_limited(make_rig, wait_until):
    rig = make_rig(limits=Limits(connections=3))
    held = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(REQUEST)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        answers = []

        def refused():
            try:
                answers.append(raw(rig.port, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
            except ConnectionError:
                answers.append(b"")
            return answers[-1] == b""

        wait_until(refused)
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: not refused())


def test_who_says_nothing_pushes_out_nobody_but_such(make_rig, get):
    rig = make_rig(limits=Limits(newcomers=4))
    silent = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(40)]
    try:
        for _ in range(5):
            assert get(rig)("/state").status == 200
            silent.append(socket.create_connection(("127.0.0.1", rig.port)))
        silent[0].settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert silent[0].recv(1) == b""  # the first of them is closed
    finally:
        for connection in silent:
            connection.close()


def test_who_says_nothing_is_closed_after_a_while(make_rig):
    rig = make_rig(limits=Limits(newcomer_s=0.2))
    with socket.create_connection(("127.0.0.1", rig.port)) as silent, contextlib.suppress(ConnectionError):
        silent.settimeout(10)
        assert silent.recv(1) == b""


@pytest.mark.parametrize(("path", "status"), [("/state", 403), ("/style.css", 200), ("/icon.svg", 200)])
def test_who_has_not_shown_the_token_stays_a_newcomer(make_rig, path, status):
    rig = make_rig(token=TOKEN, limits=Limits(newcomer_s=0.5, request_s=600))
    with socket.create_connection(("127.0.0.1", rig.port)) as stranger, contextlib.suppress(ConnectionError):
        stranger.settimeout(10)
        stranger.sendall(REQUEST.replace(b"/state", path.encode()))
        assert stranger.recv(4096).startswith(f"HTTP/1.1 {status}".encode())
        while stranger.recv(4096):
            pass


def is_open(connection):
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_who_comes_in_the_middle_of_a_crowd_is_heard(make_rig, get, wait_until):
    entered, go_on = threading.Event(), threading.Event()

    def stand():
        entered.set()
        go_on.wait(20)
        return ""

    rig = make_rig(token=TOKEN, healthy=stand, limits=Limits(newcomer_s=600, request_s=600))
    address = ("127.0.0.1", rig.port)
    asking = threading.Thread(target=get(rig), args=("/healthz",), kwargs={"headers": BEARER})
    asking.start()
    assert entered.wait(20)
    crowd = [socket.create_connection(address) for _ in range(150)]  # who all wait until the page goes on
    owner = socket.create_connection(address, timeout=20)
    crowd += [socket.create_connection(address) for _ in range(150)]
    try:
        owner.sendall(REQUEST.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()))
        go_on.set()
        assert owner.recv(4096).startswith(b"HTTP/1.1 200")
        wait_until(lambda: sum(map(is_open, crowd)) <= Limits().newcomers)
    finally:
        go_on.set()
        asking.join()
        for connection in (*crowd, owner):
            connection.close()


def test_who_leaves_before_the_answer_is_not_told_of(make_rig, get, monkeypatch, caplog):
    rig = make_rig()

    async def gone(*_):
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.page.guard._send", gone)
        assert raw(rig.port, REQUEST) == b""
    assert get(rig)("/state").status == 200
    assert not [record for record in caplog.records if record.exc_info]  # each could be made to fill a disk


SETTINGS = b"POST /settings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        SETTINGS + b"Content-Encoding: gzip\r\nContent-Length: 9000\r\n\r\n\x1f\x8b\x08" + bytes(9000),
        SETTINGS + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"\x16\x03\x01\x02\x00" * 100,
    ],
    ids=["no gzip", "no chunks", "no HTTP"],
)
def test_nothing_that_a_stranger_sends_is_logged(make_rig, get, caplog, sent):
    rig = make_rig(token=TOKEN)
    with contextlib.suppress(ConnectionError):
        raw(rig.port, sent)
    assert get(rig)("/state", headers=BEARER).status == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_bodies_are_limited(rig, get):
    assert get(rig)("/settings", "POST", json={"mode": "x" * 5000}).status == 413


def test_settings_are_changed_for_all_by_a_post(rig, get):
    answer = get(rig)("/settings", "POST", json={"mode": "contour", "alpha": 0.8, "legend": True})
    assert json.loads(answer.text) == {"mode": "contour", "alpha": 0.8, "threshold": 0.5, "hud": False, "legend": True}
    assert (rig.renderer.look.mode, rig.renderer.look.alpha, rig.annotations.legend) == ("contour", 0.8, True)


@pytest.mark.parametrize(
    ("how", "status", "text"),
    [
        ({"json": {"source": "rtsp://x"}}, 400, "setting: expected mode"),
        ({"json": [1]}, 400, "set: expected settings by name"),
        ({"data": "{", "headers": {"Content-Type": "application/json"}}, 400, "expected JSON"),
        ({"data": "[" * 4000, "headers": {"Content-Type": "application/json"}}, 400, "expected JSON"),
        ({"data": {"alpha": "0.1"}}, 415, "expected application/json"),
    ],
)
def test_what_is_no_setting_is_refused(rig, get, how, status, text):
    look = rig.renderer.look
    answer = get(rig)("/settings", "POST", **how)
    assert (answer.status, text in answer.text) == (status, True)
    assert rig.renderer.look is look


def test_a_read_only_page_changes_nothing(make_rig, get):
    rig = make_rig(read_only=True)
    answer = get(rig)("/settings", "POST", json={"alpha": 0.8})
    assert (answer.status, "read-only" in answer.text) == (403, True)
    assert rig.renderer.look.alpha == 0.5


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("PUT", "/settings"), ("DELETE", "/state"), ("OPTIONS", "/settings"), ("HEAD", "/stream.mjpg")],
)
def test_other_methods_are_refused(rig, get, method, path):
    assert get(rig)(path, method).status == 405


def test_snapshot_is_the_newest_view(make_rig, get):
    rig = make_rig(sources=("yard", "gate"))
    rig.write("yard", level=40, size_hw=(48, 64))
    rig.write("gate", level=200, size_hw=(24, 32))
    for source, size_hw in (("yard", (48, 64)), ("gate", (24, 32))):
        answer = get(rig)(f"/snapshot.jpg?source={source}")
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR).shape[:2] == size_hw
    assert get(rig)("/snapshot.jpg").status == 200
    assert get(rig)("/snapshot.jpg?source=/etc/passwd").status == 404


def test_without_a_frame_there_is_no_snapshot_and_the_page_is_not_ready(rig, get):
    answer = get(rig)("/snapshot.jpg")
    assert (answer.status, answer.text) == (503, "no picture yet\n")
    assert get(rig)("/readyz").text == "yard: no frame yet (running)\n"
    rig.write()
    assert get(rig)("/readyz").status == 200


def test_stale_masks_are_in_the_state(rig, get, wait_until):
    def told():
        (facts,) = json.loads(get(rig)("/state").text)["sources"]
        return facts["stale"], facts["frames_stale"]

    assert told() == (False, 0)
    for stale, count in ((True, 1), (True, 2), (False, 2)):
        rig.write(stale={"yard"} if stale else ())
        wait_until(lambda expected=(stale, count): told() == expected)


def test_ready_only_while_frames_come(make_rig, get, wait_until):
    rig = make_rig(ready_within_s=0.2)
    rig.write()
    rig.telemetries["yard"].enter(State.RECONNECTING, "gone")
    wait_until(lambda: get(rig)("/readyz").status == 503)
    assert "(reconnecting: gone)" in get(rig)("/readyz").text
    assert get(rig)("/healthz").status == 200


def test_healthy_is_what_the_data_path_says(make_rig, get):
    problems = ["", "the engine stands since 30 s"]
    rig = make_rig(healthy=lambda: problems[0])
    assert get(rig)("/healthz").text == "ok\n"
    problems.pop(0)
    answer = get(rig)("/healthz")
    assert (answer.status, answer.text) == (503, "the engine stands since 30 s\n")


def test_metrics_are_for_prometheus(rig, get):
    rig.write()
    answer = get(rig)("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'edgemask_frames_total{source="yard"} 1.0' in answer.text


def test_mjpeg_for_programs(rig):
    rig.keep_writing()

    async def scenario():
        async with aiohttp.ClientSession() as session, session.get(rig.url + "stream.mjpg?source=yard") as answer:
            parts = aiohttp.MultipartReader.from_response(answer)
            seen = [bytes(await (await parts.next()).read()) for _ in range(5)]
        assert len(set(seen)) == 5
        assert all(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3) for jpeg in seen)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_frame_of_an_unknown_source_is_a_mistake_of_the_caller(rig):
    frame = rig.frame("cellar")
    frame.view = frame.image
    with pytest.raises(KeyError, match="cellar"):
        rig.sink.write(frame)


def test_closing_twice_and_at_once(make_rig):
    rig = make_rig()
    start_s = time.monotonic()
    rig.sink.close()
    rig.sink.close()
    rig.sink.discard()
    assert not rig.sink._thread.is_alive()
    assert time.monotonic() - start_s < 5
    rig.write()  # nobody is there; nothing happens
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", rig.port), timeout=5)


def test_an_error_of_the_server_itself_is_not_silent(make_rig, monkeypatch, wait_until):
    rig = make_rig()

    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(rig.sink._board, "refresh", fail)
    wait_until(lambda: not rig.sink._thread.is_alive())
    with pytest.raises(SinkError, match=r"its server has ended .*a bug"):
        rig.write()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", rig.port), timeout=5)


def test_the_help_names_the_keys_that_the_window_has_too(rig, get):
    named = set(re.findall("<kbd>(.*?)</kbd>", get(rig)("/").text))
    window = {key for line in rig.sink._board.controls.help_lines() for key in line.split("   ")[0].split(" ")}
    assert named == window - {"q", ".", "r"}  # quitting, stepping and recording are the window's alone


def test_the_state_tells_of_audits(make_rig, get):
    audits = {"count": 1, "total": 2, "values": [0.99], "below": False, "skipped_by": {"busy": 0}}
    assert json.loads(get(make_rig(audit=lambda: audits))("/state").text)["audit"] == audits
    assert json.loads(get(make_rig())("/state").text)["audit"] is None


def test_a_program_has_the_last_seconds_written(make_rig, get):
    asked = []
    rig = make_rig(take_flight=lambda kind: asked.append(kind) or ("" if len(asked) == 1 else "flight: too soon"))
    assert get(rig)("/flight", "POST", data="x").status == 415  # as another site's form would send it
    assert get(rig)("/flight", "POST", json={}).status == 202
    refused = get(rig)("/flight", "POST", json={})
    assert (refused.status, refused.text) == (409, "flight: too soon\n")
    assert asked == ["api", "api"]
    assert get(make_rig(read_only=True))("/flight", "POST", json={}).status == 403
