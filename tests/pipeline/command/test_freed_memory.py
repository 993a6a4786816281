import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.command import job
from pipeline.stages.stage_timer import StageTimer

ROOT = Path(__file__).parents[3]
GLIBC = platform.libc_ver()[0] == "glibc"
ASK = "from pipeline.command.freed_memory import keep_freed_memory; print(keep_freed_memory())"
# Frames of 4K and what they are made from, on a thread; freed on the main one, beside views. Page faults per frame.
FRAMES = """
import queue, resource, threading
from pipeline.command.freed_memory import keep_freed_memory
keep_freed_memory()
made = queue.Queue(2)
def decode():
    for _ in range(60):
        planes = b"x" * (3840 * 2160 * 3 // 2)
        made.put(b"x" * (3840 * 2160 * 3))
        del planes
threading.Thread(target=decode).start()
held = []
for index in range(60):
    held.append(made.get(timeout=60))
    view = b"x" * (3840 * 2160 * 3)
    del held[:-2]
    if index == 19:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 40)
"""


def answer(code, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(not GLIBC, reason="another malloc than glibc's")
def test_frames_get_the_memory_of_those_before_them():
    assert int(answer(FRAMES)) < 50
    # What it is for: an arena for each thread, as by default.
    assert int(answer(FRAMES, MALLOC_ARENA_MAX="8")) > 300


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name):
    value = "4" if name == "MALLOC_ARENA_MAX" else "glibc.malloc.arena_max=4"
    assert answer(ASK, **{name: value}) == "False"


def test_it_says_whether_it_was_set():
    assert answer(ASK) == str(GLIBC)


HOLES = """
from pipeline.command.freed_memory import give_back_freed_memory, keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 10**6
keep_freed_memory()
held = [b"x" * 100_000 for _ in range(1000)]
del held[:-1:2], held[:-1:2]
before = resident()
give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not GLIBC or sys.platform != "linux", reason="for glibc")
def test_holes_go_back_to_the_system():
    assert 60 < int(answer(HOLES)) < 90


def test_a_run_gives_back_every_few_minutes(monkeypatch):
    now_s, given_back = [1000.0], []
    monkeypatch.setattr(job, "give_back_freed_memory", lambda: given_back.append(now_s[0]))
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    told = job._Told(StageTimer(), (), (), lambda frame, dropped: None, [], [])
    for _ in range(1000):
        now_s[0] += 1.0
        told.pulse()
    assert given_back == [1300.0, 1600.0, 1900.0]
