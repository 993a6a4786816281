"""What begins together after a power cut: a camera that does not know its users yet, and who waits for it."""

import http.client
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from tests.fakes.motion_jpeg import MotionJpeg, gray_jpeg, serving

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long


class Camera(MotionJpeg):
    """Refuses whoever asks until it knows its users, then gives Motion JPEG."""

    knows_its_users: ClassVar = threading.Event()
    jpeg = gray_jpeg(48, 64)

    def do_GET(self):
        if not self.knows_its_users.is_set():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_pictures(self.jpeg)


@pytest.fixture
def camera():
    Camera.knows_its_users.clear()
    with serving(Camera) as place:
        yield f"http://me:secret@{place}/x"


def start(red_bundle, folder, *arguments, **options):
    command = [sys.executable, "-m", "pipeline", "--model", red_bundle.folder, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, **options)


def until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return value


def get(place, path):
    connection = http.client.HTTPConnection(place, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.mark.needs("aiohttp")
def test_a_refusal_is_waited_out_where_nobody_sits(red_bundle, camera, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        words = (camera, "--output", "null", "--serve", "127.0.0.1:0")
        process = start(red_bundle, tmp_path, *words, stderr=log)
    try:

        def said():
            assert process.poll() is None, (tmp_path / "log").read_text()
            return (tmp_path / "log").read_text()

        until(lambda: "reconnecting: expected to be let in, got 401" in said())
        place = re.search(r"page: http://([^/\s]+)", said())[1]
        idle = r'edgemask_frame_idle_seconds\{source="[^"]+"\} ([\d.]+)'
        assert float(re.search(idle, get(place, "/metrics"))[1]) >= 0
        assert "401" in get(place, "/readyz")
        Camera.knows_its_users.set()
        until(lambda: "running again after" in said())
        until(lambda: re.search(r"edgemask_frames_total\{[^}]*\} [1-9]", get(place, "/metrics")))
        assert "secret" not in said()
    finally:
        process.terminate()
        process.wait(WAIT_S)


def test_a_wrong_password_ends_the_run_of_a_person_at_a_terminal(red_bundle, camera, tmp_path):
    ours, theirs = pty.openpty()
    process = start(red_bundle, tmp_path, camera, "--output", "null", stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(ours)
    assert process.wait(WAIT_S) == 2
    assert b"expected to be let in, got 401 unauthorized: check user and password" in said
    assert b"reconnecting" not in said
