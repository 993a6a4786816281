"""The command under SIGHUP and with --watch-model: another model and other sources while it runs, and what ends it all the same."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline import signals
from pipeline.command.reload import Reload
from pipeline.command.run_options import RunOptions
from pipeline.signals import Hangups, reloads_on_hangup
from tests.conftest import write_bundle

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
CLIP = ROOT / "samples" / "clip.mp4"


_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


class Job:
    """The command in a process of its own, with a YAML file that the test changes, and the systemd that it tells."""

    def __init__(self, folder, *arguments, is_service=True, **options):
        self.folder, self.config = folder, folder / "run.yaml"
        self.options = {"source": ["test://?size=64x48&frames=100000000"], "model": "model", "fps": "30", **options}
        self.write()
        self.told, self.err, self.out = [], [], []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEMASK_CACHE": str(folder / "cache")}
        if is_service:
            environment["NOTIFY_SOCKET"] = str(folder / "notify")
        command = [sys.executable, "-m", "pipeline", "--config", str(self.config), *arguments]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **_PIPES)
        work = (self._read, self._read_results, self._listen)
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def write(self, **changed):
        self.options |= changed
        self.config.write_text(yaml.safe_dump(self.options))

    def _read(self):
        with self.process.stderr as pipe:
            self.err.extend(line.rstrip("\n") for line in pipe)

    def _read_results(self):
        with self.process.stdout as pipe:
            self.out.extend(json.loads(line)["source"] for line in pipe)

    def _listen(self):
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                self.told.append(message.decode())

    def wait(self, condition):
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline_s, self.err
            time.sleep(0.01)

    def wait_for_line(self, text, count=1):
        self.wait(lambda: sum(text in line for line in list(self.err)) >= count)

    def gives_frames(self, source="test"):
        wanted = self.out.count(source) + 5
        self.wait(lambda: self.out.count(source) >= wanted)
        return self

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(WAIT_S)
        self._threads[0].join(WAIT_S)
        return status

    def close(self):
        self.process.kill()
        self.process.wait()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def models(tmp_path):
    """Two bundles; "model" is a link to the first."""
    bundles = [write_bundle(tmp_path / name, model=name) for name in ("first", "second")]
    (tmp_path / "model").symlink_to("first")
    return bundles


@pytest.fixture
def start(tmp_path, models):
    jobs = []

    def call(*arguments, **options):
        jobs.append(Job(tmp_path, *arguments, **{"output": ["results.jsonl", "jsonl:-"], **options}))
        return jobs[-1]

    yield call
    for job in jobs:
        job.close()


def put(folder, name):
    """Put another bundle into the model's place in one step."""
    (folder / "next").symlink_to(name)
    (folder / "next").rename(folder / "model")


def indices(path):
    return [json.loads(line)["index"] for line in path.read_text().splitlines()]


def test_another_model_takes_over_and_no_frame_is_missing(start, tmp_path):
    job = start().gives_frames()
    put(tmp_path, "second")
    job.hang_up()
    job.wait_for_line("model: second, fp32, 1×1 inside")
    job.wait(lambda: sum("READY=1" in message for message in list(job.told)) >= 2)
    reloading = next(message for message in job.told if "RELOADING=1" in message)
    monotonic_s = int(dict(line.split("=", 1) for line in reloading.splitlines())["MONOTONIC_USEC"]) / 1e6
    assert time.monotonic() - WAIT_S < monotonic_s <= time.monotonic()
    job.hang_up()
    job.wait_for_line("reload: nothing has changed")
    assert job.end() == 143
    found = indices(tmp_path / "results.jsonl")
    assert found == list(range(len(found)))
    assert sum("has taken over" in line for line in job.err) == 1


def test_what_was_refused_stands_in_the_status_until_the_next_reload(start, tmp_path):
    job = start().gives_frames()
    os.truncate(tmp_path / "second" / "program.onnx", 10)
    put(tmp_path, "second")
    job.hang_up()
    job.wait(lambda: any("STATUS=model: not taken" in message for message in list(job.told)))
    before = len(job.told)
    put(tmp_path, "first")
    job.hang_up()
    job.wait(lambda: any("READY=1\nSTATUS=test →" in message for message in job.told[before:]))
    assert job.end() == 143


def test_a_folder_that_changes_is_noticed(start, tmp_path):
    job = start("--watch-model").gives_frames()
    put(tmp_path, "second")
    job.wait_for_line("model: second, fp32, 1×1 inside")
    put(tmp_path, "first")
    job.wait_for_line("model: first, fp32, 1×1 inside", 2)
    assert job.end() == 143


def test_watching_needs_a_folder(refused):
    assert "--watch-model: expected --model DIR beside it, got u2netp" in refused(
        "--source", "test://", "--output", "null", "--watch-model", model="u2netp"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_thousand_hangups_do_no_harm_and_a_signal_among_them_ends_it(start, tmp_path, number):
    job = start().gives_frames()
    for count in range(1000):
        if count % 100 == 0:
            put(tmp_path, ("first", "second")[count // 100 % 2])
        job.hang_up()
    assert job.end(number) == 128 + number
    found = indices(tmp_path / "results.jsonl")
    assert found == list(range(len(found)))
    assert not any("Traceback" in line for line in job.err)


class Blocked:
    """A swap that takes as long as the test wants; it and changes of sources are asked the same way."""

    told = ""

    def __init__(self):
        self.calls, self.entered, self.go, self.ended = 0, threading.Event(), threading.Event(), False

    def __call__(self, options, ready=None):
        self.calls += 1
        self.entered.set()
        assert self.go.wait(WAIT_S)

    def end(self):
        self.ended = True


def test_what_is_asked_for_while_a_reload_goes_on_is_done_once_more():
    hangups, swap, changes, ready = Hangups(), Blocked(), Blocked(), []
    changes.go.set()
    service = SimpleNamespace(reloading=lambda: None, ready=lambda *status: ready.append(status))
    options = RunOptions(("a",))
    with Reload(options, lambda: options, hangups, changes, swap, service, lambda: "a → b") as reload:
        for _ in range(50):
            hangups.came = True
            reload.pulse()
            assert swap.entered.wait(WAIT_S)
        assert (swap.calls, changes.calls, ready) == (1, 1, [])
        swap.go.set()
        deadline_s = time.monotonic() + WAIT_S
        while not ready:
            assert time.monotonic() < deadline_s
            reload.pulse()
            time.sleep(0.001)
    assert (swap.calls, changes.calls, set(ready)) == (2, 2, {("a → b", "")})
    assert swap.ended
    assert changes.ended


SLOW = """
import sys, time
from pipeline.command import model_swap
from pipeline import __main__ as command
def slow(*arguments):
    print("opening", file=sys.stderr, flush=True)
    time.sleep(1000)
model_swap.check_fit = slow
sys.exit(command.main(sys.argv[1:]))
"""


def test_a_signal_does_not_wait_for_a_model_that_is_being_opened(models, tmp_path):
    arguments = [
        "--source",
        "test://?size=64x48&frames=100000000",
        "--fps",
        "30",
        "--model",
        "model",
        "--output",
        "out.mp4",
        "--watch-model",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in job.stderr:
            if line.startswith("out.mp4: H.264"):  # it is open
                put(tmp_path, "second")
            if line == "opening\n":
                break
        job.send_signal(signal.SIGTERM)
        begun_s = time.monotonic()
        assert job.wait(WAIT_S) == 143
        assert time.monotonic() - begun_s < 10 + WAIT_S / 2  # ten seconds, on a machine that has time
    finally:
        job.kill()
        job.communicate()
    probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(tmp_path / "out.mp4")]
    assert float(subprocess.run(probe, capture_output=True, text=True, check=True).stdout) > 0


def test_sources_join_and_leave_with_their_outputs(start, tmp_path, read_video):
    one, two = (f"test://?size={size}&frames=100000000" for size in ("64x48", "96x64"))
    job = start(source=[one], output=["out.mp4", "results.jsonl", "jsonl:-"]).gives_frames()
    for _ in range(2):
        job.write(source=[one, two])
        job.hang_up()
        job.gives_frames("test-2")
        job.write(source=[one])
        job.hang_up()
        job.wait_for_line("source: test-2 has left: out-test-2.mp4, results-test-2.jsonl")
        joined = indices(tmp_path / "results-test-2.jsonl")
        assert joined == list(range(len(joined)))
        video = read_video(tmp_path / "out-test-2.mp4")
        assert (len(video.images), video.size_hw) == (len(joined), (64, 96))
        (tmp_path / "results-test-2.jsonl").unlink()
        job.err.clear()
    assert job.end() == 143
    found = indices(tmp_path / "results.jsonl")
    assert found == list(range(len(found)))
    video = read_video(tmp_path / "out.mp4")  # of the first one alone, under the name that it began with
    assert (len(video.images), video.size_hw) == (len(found), (48, 64))


def test_the_only_source_is_replaced(start, tmp_path):
    job = start().gives_frames()
    job.write(source=["test://?size=96x64&frames=100000000"])
    job.hang_up()
    job.wait_for_line("source: test has left: results.jsonl")
    job.wait_for_line("source: test has joined")
    job.gives_frames()
    assert job.end() == 143


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": ["test://?size=64x48&frames=100000000", "none.mp4"]}, "sources: nothing is changed: none.mp4: "),
        ({"alfa": "0.5"}, "reload: nothing is changed: --config"),
        ({"alpha": "0.2", "hud": "true"}, "reload: needs a restart: alpha, hud"),
        ({"source": ["test://?frames=none"]}, "sources: nothing is changed: test://?frames=none: expected a form"),
        (
            {"source": ["test://?size=64x48&frames=100000000", "test://"], "output": ["null"]},
            "reload: needs a restart: output",
        ),
    ],
)
def test_what_cannot_be_taken_is_told_and_the_run_goes_on(start, tmp_path, changed, said):
    job = start().gives_frames()
    job.write(**changed)
    job.hang_up()
    job.wait_for_line(said)
    job.gives_frames()
    job.wait(lambda: any(said.partition(":")[2].strip()[:20] in message for message in list(job.told)))
    assert job.end() == 143


def test_the_page_follows(start, tmp_path, models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one, two = (f"test://?size={size}&frames=100000000" for size in ("64x48", "96x64"))
    job = start(source=[one], serve=str(port)).gives_frames()

    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as answer:
            return answer.read().decode(errors="replace")

    put(tmp_path, "second")
    job.write(source=[one, two])
    job.hang_up()
    job.wait(lambda: 'edgemask_model_swaps_total{result="taken"} 1.0' in get("/metrics"))
    assert 'model="second"' in get("/metrics")
    job.wait(lambda: 'edgemask_frames_total{source="test-2"}' in get("/metrics"))
    job.wait(lambda: len(json.loads(get("/state"))["sources"]) == 2)
    assert get("/snapshot.jpg?source=test-2")
    job.write(source=[one])
    job.hang_up()
    job.wait(lambda: "test-2" not in get("/metrics"))
    assert job.end() == 143


# When SIGHUP is an end.


def test_a_closed_terminal_ends_it_though_it_has_a_configuration(models, tmp_path):
    entries = {"source": "test://?size=64x48&frames=100000000", "model": "model", "output": "frames/", "fps": "30"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(entries))
    child, terminal = pty.fork()
    if child == 0:  # its session's leader, as a shell would be
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", "--config", "run.yaml", "--quiet"])
    deadline_s = time.monotonic() + WAIT_S
    try:
        while not list(tmp_path.glob("frames/*.png")):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        os.kill(child, signal.SIGHUP)  # while the terminal is there it is a reload
        time.sleep(0.3)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129


def test_whether_it_reloads_is_told_by_configuration_service_and_watching(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    assert not RunOptions(()).reloads
    assert RunOptions((), config="run.yaml").reloads
    assert RunOptions((), watch_model=True).reloads
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid() + 1))  # of a terminal that is a service itself
    assert not RunOptions(()).reloads
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert RunOptions(()).reloads


def test_within_it_a_hangup_is_put_down_and_outside_it_is_not(monkeypatch):
    monkeypatch.setattr(signals, "_has_terminal", lambda: True)
    with signals.ends_on_signals(), reloads_on_hangup() as hangups:
        signal.raise_signal(signal.SIGHUP)
        assert hangups.came
        hangups.came = False
        with signals.uninterrupted() as came:
            signal.raise_signal(signal.SIGHUP)
            assert (hangups.came, came) == (True, [])
        monkeypatch.setattr(signals, "_has_terminal", lambda: False)
        with pytest.raises(signals.StoppedError, match="SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
