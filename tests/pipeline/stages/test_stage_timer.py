import threading

import numpy as np
import pytest

from pipeline.stages.stage_timer import StageTimer


def test_stages_come_in_the_order_of_their_first_pass():
    timer = StageTimer()
    for stage in ("decode", "engine", "decode", "write"):
        timer.add(stage, 1.0)
    assert [(stage.name, stage.count) for stage in timer.result()] == [("decode", 2), ("engine", 1), ("write", 1)]


def test_nothing_timed_is_nothing():
    assert StageTimer().result() == []


@pytest.mark.parametrize("duration_ms", [0.0015, 0.4, 7.0, 33.3, 1500.0, 600_000.0])
def test_one_value_comes_back_within_half_a_bucket(duration_ms):
    timer = StageTimer()
    timer.add("a", duration_ms)
    (stage,) = timer.result()
    assert stage.mean_ms == duration_ms
    assert stage.p50_ms == pytest.approx(duration_ms, rel=0.006)
    assert stage.p95_ms == pytest.approx(duration_ms, rel=0.006)


def test_percentiles_agree_with_numpy():
    values_ms = np.random.default_rng(3).lognormal(2, 1, 4001)
    timer = StageTimer()
    for value_ms in values_ms:
        timer.add("a", float(value_ms))
    (stage,) = timer.result()
    assert stage.count == 4001
    assert stage.mean_ms == pytest.approx(values_ms.mean())
    assert stage.p50_ms == pytest.approx(np.percentile(values_ms, 50), rel=0.01)
    assert stage.p95_ms == pytest.approx(np.percentile(values_ms, 95), rel=0.01)


@pytest.mark.parametrize("duration_ms", [0.0, 1e-9, 1e9])
def test_what_no_bucket_holds_falls_into_the_nearest(duration_ms):
    timer = StageTimer()
    timer.add("a", duration_ms)
    (stage,) = timer.result()
    assert stage.count == 1
    assert stage.mean_ms == duration_ms
    assert 0 < stage.p50_ms < 2e6


def test_a_body_is_timed_and_one_that_raises_is_not_counted():
    timer = StageTimer()
    with timer("good"):
        pass
    with pytest.raises(ZeroDivisionError), timer("bad"):
        raise ZeroDivisionError
    assert [(stage.name, stage.count) for stage in timer.result()] == [("good", 1)]
    assert timer.result()[0].mean_ms > 0


def test_results_can_be_read_while_other_threads_write():
    timer = StageTimer()

    def write(stage):
        for _ in range(2000):
            timer.add(stage, 1.0)

    threads = [threading.Thread(target=write, args=(f"stage {number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert all(stage.count > 0 for stage in timer.result())
    assert sorted(stage.count for stage in timer.result()) == [2000] * 3
