import dataclasses

import pytest

from pipeline.page.board import unready
from pipeline.page.history import LENGTH, History
from pipeline.stages.telemetry import Telemetry


def snapshot(**facts):
    return dataclasses.replace(Telemetry("yard").snapshot(), **facts)


def test_rates_are_what_came_between_two_samples():
    history = History(1)
    history.take([snapshot(frames_out=100, dropped={"newer": 5})], 10.0)
    assert (history.count, history.last()) == (0, [None])
    history.take([snapshot(frames_out=150, dropped={"newer": 6, "corrupt": 2}, age_ms=40.0)], 12.0)
    assert (history.count, history.last()) == (1, [(25.0, 40.0, 1.5)])


def test_a_source_that_stands_has_no_age():
    history = History(2)
    for now_s in range(3):
        history.take([snapshot(frames_out=7, age_ms=30.0), snapshot(frames_out=now_s, age_ms=30.0)], now_s)
    assert history.all() == [[(0.0, None, 0.0)] * 2, [(1.0, 30.0, 0.0)] * 2]


def test_only_the_last_minutes_are_kept():
    history = History(1)
    for now_s in range(LENGTH + 50):
        history.take([snapshot(frames_out=now_s)], now_s)
    assert len(history.all()[0]) == LENGTH
    assert history.count == LENGTH + 49


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"frame_s": 1.0}, ""),
        ({"frame_s": None}, "yard: no frame yet (running)"),
        ({"frame_s": 12.3}, "yard: no frame for 12.3 s (running)"),
        ({"frame_s": 1.0, "not_finite": 9, "not_finite_s": 9.9}, ""),
        ({"frame_s": 1.0, "not_finite": 9, "not_finite_s": 10.1}, "yard: scores that are NaN or infinite for 10.1 s"),
        ({"frame_s": 12.3, "not_finite": 9, "not_finite_s": 10.1}, "yard: no frame for 12.3 s (running)"),
    ],
)
def test_ready_means_a_frame_lately_whose_mask_can_be_used(facts, problem):
    assert unready([snapshot(**facts)], 10.0) == problem
