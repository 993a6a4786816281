"""The command with live sources: real RTSP servers that stop, die and ask for passwords; full disks; signals."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long


class Job:
    """The command in a process of its own; what it says and writes to standard output is kept as lines."""

    def __init__(self, folder, *arguments, **environment):
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.out, self.err = [], []
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe, lines):
        with pipe:
            lines.extend(line.rstrip("\n") for line in pipe)

    def wait_for(self, condition):
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline_s, self.err
            time.sleep(0.01)

    def wait_for_line(self, text):
        self.wait_for(lambda: any(text in line for line in list(self.err)))
        return next(line for line in self.err if text in line)

    def end(self, number):
        """Send a signal; gives the exit status and how long it took."""
        start_s = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(WAIT_S)
        took_s = time.monotonic() - start_s
        self.wait()
        return status, took_s

    def wait(self):
        """Until it has ended and all that it said is here; gives the exit status."""
        status = self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return status

    @property
    def frames(self):
        """What ``--output jsonl:-`` has written so far."""
        return [json.loads(line) for line in list(self.out)]


@pytest.fixture
def start(red_bundle, tmp_path):
    """``start("--source", …)``: a job with ``red_bundle``."""
    jobs = []

    def call(*arguments, **environment):
        jobs.append(Job(tmp_path, "--model", red_bundle.folder, *arguments, **environment))
        return jobs[-1]

    yield call
    for job in jobs:
        job.process.kill()
        job.wait()


def frames_of(path):
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "csv=p=0"]
    done = subprocess.run(
        [*command, "-show_entries", "stream=nb_read_frames", str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.strip().split(",")[0])


def get(address, path):
    host = re.search(r"127\.0\.0\.1:\d+", address)[0]
    connection = http.client.HTTPConnection(host, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stalled_source_does_not_keep_the_command_from_leaving(serve, start, number, status):
    server = serve()
    job = start("--source", f"rtsp://{server.place}", "--output", "jsonl:-", "--stall", "1", "--reconnect", "60")
    job.wait_for(lambda: len(job.out) > 5)
    server.send_signal(signal.SIGSTOP)
    job.wait_for_line("stalled")
    got, took_s = job.end(number)
    assert got == status
    assert took_s < 1  # what a person at a keyboard takes for at once
    assert not any("Traceback" in line for line in job.err)


def test_it_goes_on_by_itself_after_a_stop_and_after_a_restart(serve, start):
    server = serve()
    job = start(
        "--source",
        f"rtsp://{server.place}",
        "--output",
        "jsonl:-",
        "--stall",
        "1",
        "--reconnect",
        "60",
        "--smooth",
        "off",
    )
    job.wait_for(lambda: len(job.out) > 5)
    server.send_signal(signal.SIGSTOP)
    job.wait_for_line("stalled")
    count = len(job.out)
    server.send_signal(signal.SIGCONT)
    job.wait_for(lambda: len(job.out) > count + 10)
    server.kill()
    server.wait()
    job.wait_for_line("reconnecting")
    count = len(job.out)
    serve(port=server.port)
    job.wait_for(lambda: len(job.out) > count + 10)
    assert job.end(signal.SIGTERM)[0] == 143
    frames = job.frames
    for key in ("index", "pts_s", "captured"):
        values = [frame[key] for frame in frames]
        assert values == sorted(set(values)), key


@pytest.mark.needs_program("ffprobe")
def test_a_recording_that_is_killed_has_all_but_the_last_second(serve, start, tmp_path):
    server = serve()
    job = start("--source", f"rtsp://{server.place}", "--output", "out.mp4", "--output", "jsonl:-")
    job.wait_for(lambda: len(job.out) > 120)
    job.end(signal.SIGKILL)
    written = len(job.out)
    assert written - 30 <= frames_of(tmp_path / "out.mp4") <= written + 1


@pytest.mark.needs_program("ffprobe")
def test_a_recording_that_is_terminated_is_complete(serve, start, tmp_path):
    server = serve()
    job = start("--source", f"rtsp://{server.place}", "--output", "out.mp4", "--output", "jsonl:-")
    job.wait_for(lambda: len(job.out) > 60)
    assert job.end(signal.SIGTERM)[0] == 143
    assert frames_of(tmp_path / "out.mp4") - len(job.out) in (0, 1)
    assert sorted(os.listdir(tmp_path)) == ["out.mp4"]


@pytest.mark.needs("aiohttp")
@pytest.mark.needs_program("ffprobe")
def test_a_full_disk_ends_the_recording_alone_and_the_status_says_so(serve, start, small_disk):
    server = serve(pattern="snow", size="320x240")
    path = small_disk / "out.mp4"
    job = start("--source", f"rtsp://{server.place}", "--output", path, "--min-free", "0", "--serve", "127.0.0.1:0")
    page = job.wait_for_line("page: http://")
    line = job.wait_for_line("the rest goes on")
    assert f"{path}: recording stopped (no space left on device)" in line
    assert frames_of(path) > 0
    before = json.loads(get(page, "/state")[1])["sources"][0]["frames_out"]
    job.wait_for(lambda: json.loads(get(page, "/state")[1])["sources"][0]["frames_out"] > before + 10)
    assert get(page, "/healthz")[0] == 200
    assert job.end(signal.SIGTERM)[0] == 2
    assert job.err[-1].startswith(f"error: {path}: recording stopped")


@pytest.mark.needs("aiohttp")
def test_a_password_is_seen_nowhere(serve, start, tmp_path):
    server = serve(user="me", password="geheim")
    source = f"rtsp://me:geheim@{server.place}"
    outputs = ("--output", "out/", "--output", "jsonl:-", "--output", "rtsp://me:geheim@127.0.0.1:9/x", "--save")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        job = start(
            *("--source", source, *outputs, "--hud", "--serve", "127.0.0.1:0"), NOTIFY_SOCKET=str(tmp_path / "notify")
        )
        systemd.settimeout(WAIT_S)
        seen = [systemd.recv(4096).decode()]
    page = job.wait_for_line("page: http://")
    job.wait_for(lambda: len(job.out) > 5)
    seen += [get(page, path)[1] for path in ("/", "/state", "/metrics")]
    server.kill()
    job.wait_for_line("reconnecting")
    seen += [get(page, path)[1] for path in ("/state", "/metrics")]
    job.end(signal.SIGTERM)
    seen += [*job.out, *job.err, *os.listdir(tmp_path), *os.listdir(tmp_path / "out")]
    assert server.place in "".join(seen)
    assert "geheim" not in "".join(seen)


def test_a_wrong_password_is_one_line(serve, start):
    server = serve(user="me", password="geheim")
    job = start("--source", f"rtsp://me:falsch@{server.place}", "--output", "null", "--quiet", "--max-reconnects", "1")
    assert job.wait() == 2
    assert len(job.err) == 1
    assert job.err[0].startswith(f"error: {server.place}: ")
    assert "falsch" not in job.err[0]


def test_of_several_sources_one_may_come_and_go(serve, start):
    servers = [serve(pattern="red"), serve(pattern="blue")]
    sources = [word for server in servers for word in ("--source", f"rtsp://{server.place}")]
    job = start(*sources, "--output", "jsonl:-", "--stall", "1", "--smooth", "off")
    names = [server.place for server in servers]

    def count(name):
        return sum(frame["source"] == name for frame in job.frames)

    job.wait_for(lambda: min(map(count, names)) > 5)
    servers[0].kill()
    servers[0].wait()
    job.wait_for_line(f"{names[0]}: reconnecting")
    before = count(names[1])
    job.wait_for(lambda: count(names[1]) > before + 20)
    before = count(names[0])
    serve(port=servers[0].port, pattern="red")
    job.wait_for(lambda: count(names[0]) > before + 5)
    assert job.end(signal.SIGTERM)[0] == 143
    for name, mean in zip(names, (1, 0), strict=True):
        seen = [frame["mean_probability"] for frame in job.frames if frame["source"] == name]
        assert seen == pytest.approx([mean] * len(seen), abs=0.1), name
