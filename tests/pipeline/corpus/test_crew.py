"""What a process of a corpus is waited for, and for how long."""

import json
import math
from multiprocessing.connection import Pipe

import pytest

from pipeline.command.run_options import RunOptions
from pipeline.corpus import crew as module
from pipeline.corpus.crew import Begin, _Child, _name_of
from pipeline.corpus.job import make_job


@pytest.fixture
def clock(clock_of):
    return clock_of(module)


def child_of(bundle, timeout_s):
    child = _Child(Begin(make_job(RunOptions(()), bundle, "out", "png", timeout_s)), "worker")
    child.connection, its = Pipe()

    def say(**words):
        its.send_bytes(json.dumps(words).encode())
        child.listen()

    return child, say


def test_a_frame_is_waited_for_and_the_start_and_the_disk_are_not(red_bundle, clock):
    child, say = child_of(red_bundle, timeout_s=60)
    assert child.until_s == math.inf  # an engine may be built
    say(ready=True)
    assert child.until_s == clock.now_s + 60
    clock.now_s += 50
    say(frames=1)
    assert child.until_s == clock.now_s + 60
    say(finishing=True)
    assert child.until_s == math.inf
    say(index=0, state="done")
    assert child.until_s == clock.now_s + 60


def test_without_a_limit_nothing_is_ended(red_bundle, clock):
    child, say = child_of(red_bundle, timeout_s=0)
    say(ready=True)
    assert child.until_s == math.inf


@pytest.mark.parametrize(
    ("number", "name"), [(11, "SIGSEGV"), (9, "SIGKILL, as where memory runs out"), (40, "signal 40")]
)
def test_every_signal_has_a_name(number, name):
    assert _name_of(number) == name
