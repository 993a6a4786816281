import io
import sys
import time

import numpy as np
import pytest

from pipeline.command import progress as module
from pipeline.command.progress import LINE_EVERY_S, LIVE_LINE_EVERY_S, Progress
from pipeline.frames.frame import Frame


@pytest.fixture
def frame():
    return Frame(np.zeros((2, 2, 3), np.uint8), 0, 0.0, "test", "a")


@pytest.fixture
def clock(clock_of):
    return clock_of(module)


def run_for(progress, clock, frame, frames, seconds, dropped=0):
    # Binary fractions of a second: the sums are exact.
    for _ in range(frames):
        clock.now_s += seconds / frames
        progress(frame, dropped)


def test_a_video_has_rate_real_time_and_time_left(clock, frame, make_info):
    progress = Progress(make_info(fps=25, frame_count=1024))
    run_for(progress, clock, frame, 512, 8)
    assert progress.line(0) == "512/1024 frames, 64.0 FPS, 2.56× real time, 0:08 left"


def test_max_frames_is_the_total_where_it_is_smaller(clock, frame, make_info):
    progress = Progress(make_info(fps=25, frame_count=1024), max_frames=640)
    run_for(progress, clock, frame, 512, 8)
    assert progress.line(0).startswith("512/640 frames")
    assert progress.line(0).endswith("0:02 left")
    assert Progress(make_info(frame_count=10), max_frames=600).line(0).startswith("0/10 frames")


def test_a_camera_has_no_end_but_drops(clock, frame, make_info):
    progress = Progress(make_info(fps=30, live=True))
    run_for(progress, clock, frame, 40, 10)
    assert progress.line(7) == "40 frames, 4.0 FPS, 7 dropped"


def test_minutes_left(clock, frame, make_info):
    progress = Progress(make_info(fps=None, frame_count=1250))
    run_for(progress, clock, frame, 10, 10)
    assert progress.line(0) == "10/1250 frames, 1.0 FPS, 20:40 left"


def test_more_frames_than_announced_leave_no_negative_time(clock, frame, make_info):
    progress = Progress(make_info(fps=None, frame_count=5))
    run_for(progress, clock, frame, 9, 9)
    assert progress.line(0) == "9/5 frames, 1.0 FPS, 0:00 left"


def test_before_the_first_frame(clock, make_info):
    assert Progress(make_info(fps=25, frame_count=5)).line(0) == "0/5 frames, 0.0 FPS, 0.00× real time"


def test_without_a_terminal_a_line_comes_every_few_seconds(clock, frame, make_info, capsys):
    with Progress(make_info(fps=25, frame_count=100)) as progress:
        run_for(progress, clock, frame, 30, 3 * LINE_EVERY_S)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("30/100 frames")


def test_quiet_says_nothing(clock, frame, make_info, capsys):
    with Progress(make_info(fps=25, frame_count=100), quiet=True) as progress:
        run_for(progress, clock, frame, 30, 3 * LINE_EVERY_S)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("fps", "dropped", "shown"), [(25, 0, "× real time"), (None, 3, "3 dropped")])
def test_a_terminal_gets_a_bar_that_ends_its_line(frame, make_info, monkeypatch, fps, dropped, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(make_info(fps=fps, frame_count=3)) as progress:
        for _ in range(3):
            progress(frame, dropped)
            time.sleep(0.05)  # the bar redraws itself at most ten times a second
    assert "3/3" in terminal.getvalue()
    assert shown in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_a_camera_fills_no_journal(clock, frame, make_info, capsys):
    progress = Progress(make_info(fps=30, live=True))
    run_for(progress, clock, frame, 2048, LIVE_LINE_EVERY_S * 3.5)
    assert len(capsys.readouterr().err.splitlines()) == 3
