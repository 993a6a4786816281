"""The limit of memory: whose fault it is on a made process, and a real run with a camera that takes too much."""

import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.command import memory_limit
from pipeline.command.memory_limit import MemoryLimit, limit_bytes
from pipeline.frames.frame import SourceInfo
from pipeline.sources.base import Source
from pipeline.stages.telemetry import State
from tests.fakes.motion_jpeg import MotionJpeg, gray_jpeg, serving

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
MB = 1_000_000
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what a process takes")


class Quiet(Source):
    """Gives nothing by itself."""

    def __init__(self, name, live=True):
        self.info = SourceInfo(name, name, live=live)
        self.children = []

    def __iter__(self):
        yield from ()

    def processes(self):
        return self.children


class Box:
    """A process that is told how large it is, and how many pages each of its threads has touched."""

    def __init__(self, monkeypatch, *names, limit=1000):
        self.resident, self.now_s, self.touched, self.others = 100 * MB, 0.0, {}, {}
        monkeypatch.setattr(
            memory_limit, "pages_touched", lambda thread=None: self.touched.get(thread, 0) if thread else self.all
        )
        monkeypatch.setattr(memory_limit, "resident_bytes", lambda process: self.others.get(process, 0))
        monkeypatch.setattr(memory_limit, "give_back_freed_memory", self.trimmed)
        self.all, self.kept = 0, 0
        self.sources = [Quiet(name) for name in names]
        for number, source in enumerate(self.sources, 1):
            source.telemetry.reads(number)
        self.limit = MemoryLimit(self.sources, limit * MB, resident=lambda: self.resident, clock=lambda: self.now_s)

    def trimmed(self):
        self.resident -= self.kept
        self.kept = 0

    def take(self, megabytes, thread=None):
        """Grow by some memory, whose pages a thread touches; and look, a second later."""
        pages = megabytes * MB // 4096
        self.resident += megabytes * MB
        self.all += pages
        if thread is not None:
            self.touched[thread] = self.touched.get(thread, 0) + pages
        self.look()

    def look(self, after_s=1.0):
        self.now_s += after_s
        self.limit()

    @property
    def given_up(self):
        return [source.info.name for source in self.sources if source.given_up]


def test_the_source_whose_threads_took_it_is_given_up(monkeypatch):
    box = Box(monkeypatch, "door", "yard", "gate")
    box.take(200, thread=1)
    box.take(600, thread=2)
    assert box.given_up == []
    box.take(150, thread=3)
    assert box.given_up == ["yard"]
    state = box.sources[1].telemetry.snapshot()
    assert state.state is State.FAILED
    assert re.search(
        r"yard: expected the run within 1000 MB of memory, got 1050 MB, and this source took 600 MB: it is given up",
        state.problem,
    )
    assert [one.telemetry.state for one in (box.sources[0], box.sources[2])] == [State.RUNNING] * 2


def test_what_the_engine_took_counts_by_the_size_of_frames(monkeypatch):
    box = Box(monkeypatch, "small", "large")
    box.sources[0].telemetry.came_in(1_000_000)
    box.sources[1].telemetry.came_in(400_000_000)
    box.take(1000)  # by no source's thread
    assert box.given_up == ["large"]


def test_what_another_model_takes_is_no_sources(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgemask")
    monkeypatch.setattr(memory_limit, "threads_charged_to_nobody", lambda: (9,))
    box = Box(monkeypatch, "small", "large")
    box.sources[1].telemetry.came_in(10_000_000)
    box.take(1000, thread=9)
    assert box.given_up == []
    assert "no source that is left takes it" in caplog.text
    box.now_s += 10
    box.sources[1].telemetry.came_in(400_000_000)
    box.take(1000)
    assert box.given_up == ["large"]


def test_frames_on_their_way_are_charged_to_their_source_after_it_was_given_up(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgemask")
    box = Box(monkeypatch, "small", "large")
    for source, size in zip(box.sources, (12_000, 75_000_000), strict=True):
        source.telemetry.came_in(size)
    box.take(1000)
    for _ in range(20):  # the engine keeps what it has grown by
        box.sources[0].telemetry.came_in(12_000)
        box.take(50)
    assert box.given_up == ["large"]
    assert "no source that is left takes it" in caplog.text


def test_what_a_process_of_a_source_takes_is_its_own(monkeypatch):
    box = Box(monkeypatch, "door", "csi0")
    box.take(100, thread=1)
    box.sources[1].children = [77]
    box.others[77] = 900 * MB
    box.look()
    assert box.given_up == ["csi0"]


def test_what_was_given_back_is_charged_to_nobody(monkeypatch):
    box = Box(monkeypatch, "door", "yard")
    box.take(800, thread=1)
    box.resident = 100 * MB
    box.look()
    box.take(300, thread=1)
    box.take(650, thread=2)
    assert box.given_up == ["yard"]


def test_what_malloc_keeps_is_given_back_first(monkeypatch):
    box = Box(monkeypatch, "door")
    box.kept = 500 * MB
    box.take(1000, thread=1)
    assert box.given_up == []
    box.take(500, thread=1)
    assert box.given_up == ["door"]


def test_a_source_has_time_to_end_before_the_next_is_given_up(monkeypatch):
    box = Box(monkeypatch, "door", "yard")
    box.take(400, thread=2)
    box.take(800, thread=1)
    assert box.given_up == ["door"]
    box.look(0.1)
    assert box.given_up == ["door"]
    box.look(5)
    assert box.given_up == ["door", "yard"]
    box.look(5)  # nobody is left


def test_a_run_that_needs_more_by_itself_is_told_once_and_goes_on(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgemask")
    box = Box(monkeypatch, "door", limit=90)
    for _ in range(10):
        box.look()
    assert box.given_up == []
    assert len(caplog.records) == 1
    assert re.search("expected the run within 90 MB, got 100 MB, and no source that is left takes it", caplog.text)


def test_the_default_is_half_of_what_there_is(monkeypatch):
    monkeypatch.setattr(memory_limit, "available_bytes", lambda: 4 << 30)
    assert (limit_bytes(), limit_bytes(1 << 30)) == (2 << 30, 1 << 30)
    monkeypatch.setattr(memory_limit, "available_bytes", lambda: None)
    assert (limit_bytes(), limit_bytes(1 << 30)) == (None, 1 << 30)
    MemoryLimit([], None)()  # where nothing is told, nothing is done


class Cameras(MotionJpeg):
    """/small and /large: Motion JPEG of 64 × 64 and of 5000 × 5000 pixels."""

    pictures: ClassVar = {}

    def do_GET(self):
        self.send_pictures(self.pictures[self.path[1:]])


@pytest.fixture
def cameras():
    for name, side in (("small", 64), ("large", 5000)):
        Cameras.pictures[name] = gray_jpeg(side, side)
    with serving(Cameras) as place:
        yield f"http://{place}"


def asked(address):
    try:
        with urllib.request.urlopen(address, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    return value


@on_linux
def test_a_camera_that_takes_too_much_is_given_up_and_the_other_goes_on(red_bundle, cameras, tmp_path):
    command = [sys.executable, "-m", "pipeline", f"{cameras}/small", f"{cameras}/large", "--model", red_bundle.folder]
    page = ["--serve", "127.0.0.1:0"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*map(str, command), *page, "--output", "null", "--memory-limit", "450M"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
            stdout=log,
        )

    def said():
        return (tmp_path / "log").read_text()

    try:
        until(lambda: "given up" in said() or process.poll() is not None)
        assert process.poll() is None, said()
        address = re.search(r"http://127\.0\.0\.1:\d+", said().split("page:")[-1])[0]

        def facts():
            small, large = json.loads(asked(f"{address}/state")[1])["sources"]
            return small, large

        until(lambda: facts()[1]["state"] == "failed")
        written = facts()[0]["frames_out"]
        until(lambda: facts()[0]["frames_out"] > written + 20)
        assert "memory" in facts()[1]["problem"]
        status, why = asked(f"{address}/readyz")
        assert status == 503
        assert re.search(r"large: .*\(failed.*memory", why)
        metrics = asked(f"{address}/metrics")[1]
        assert re.search(r'edgemask_source_state\{source="[^"]*large",state="failed"\} 1\.0', metrics)
    finally:
        process.terminate()
        status = process.wait(WAIT_S)
    assert status == 2
    assert said().count("the rest goes on") == 1, said()


@on_linux
def test_the_last_source_ends_the_run_with_its_sentence(red_bundle, cameras, tmp_path):
    command = [sys.executable, "-m", "pipeline", f"{cameras}/large", "--model", red_bundle.folder, "--output", "null"]
    done = subprocess.run(
        [*map(str, command), "--memory-limit", "300M"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: .*large: expected the run within 300 MB of memory, got \d+ MB", done.stderr)
