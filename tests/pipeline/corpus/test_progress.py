"""How far a corpus is, in words."""

import pytest

from pipeline.corpus import progress as module
from pipeline.corpus.crew import Result
from pipeline.corpus.progress import Progress


@pytest.fixture
def clock(clock_of):
    return clock_of(module)


def test_time_left_is_that_of_the_sources_without_the_start_of_the_workers(clock, capsys):
    progress = Progress(sources=50, there=10)
    clock.now_s += 20  # an engine is opened
    progress(Result(1, "done", "worker", frames=1))
    assert progress.line() == "11/50 sources, 0.1 FPS"
    clock.now_s += 10
    progress(Result(2, "failed", "worker"))
    progress(Result(0, "working", "worker", frames=8))
    assert progress.line() == "12/50 sources, 0.3 FPS, 1 failed, 0:06:20 left"
    clock.now_s += 10
    progress(Result(3, "there", "worker"))
    assert progress.line() == "13/50 sources, 0.2 FPS, 1 failed, 0:12:20 left"
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "11/50 sources, 0.1 FPS"


def test_the_report_has_each_worker_and_of_many_their_range(clock):
    progress = Progress(sources=3, there=1, quiet=True)
    progress(Result(1, "done", "worker 2", frames=30, seconds=2.0))
    progress(Result(2, "done", "worker 1", frames=5, seconds=1.0))
    clock.now_s += 3
    assert list(progress.report()) == [
        "2 done, 1 there already, 0 failed; 35 frames in 3.0 s",
        "worker 1: 5 frames, 5.0 FPS",
        "worker 2: 30 frames, 15.0 FPS",
    ]
    for number in range(3, 12):
        progress(Result(number, "done", f"worker {number}", frames=number, seconds=1.0))
    assert list(progress.report())[1:] == ["11 workers: 3.0 to 15.0 FPS, half of them above 7.0"]
