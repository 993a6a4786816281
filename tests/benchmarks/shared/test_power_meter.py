import threading
import time

import pytest

from benchmarks.shared.power_meter import Meter, mean_of_power_w
from benchmarks.shared.power_sensors import Sensor


def test_the_mean_of_power_is_the_area_of_trapezoids():
    assert mean_of_power_w([(0.0, 10.0), (1.0, 20.0), (4.0, 20.0)]) == pytest.approx((15 + 60) / 4)
    assert mean_of_power_w([(2.0, 7.0)]) == 7
    assert mean_of_power_w([]) is None


def test_a_counter_is_read_at_both_ends_and_between():
    reads = []

    def energy_j():
        reads.append(threading.current_thread().name)
        return 5.0 * len(reads)

    with Meter([Sensor("counter", energy_j=energy_j)], every_s=0.01) as meter:
        time.sleep(0.1)
    (reading,) = meter.readings
    assert reading.energy_j == pytest.approx(5 * (len(reads) - 1), rel=0.01)
    assert reads[0] == reads[-1] == "MainThread"
    assert "power meter" in reads
    assert reading.mean_w == pytest.approx(reading.energy_j / reading.seconds)


def test_power_is_integrated_and_gaps_are_bridged():
    answers = iter([4.0, OSError("not now"), 4.0])

    def power_w():
        answer = next(answers, 4.0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Meter([Sensor("power", power_w=power_w)], every_s=0.01) as meter:
        time.sleep(0.05)
    (reading,) = meter.readings
    assert reading.energy_j == pytest.approx(4 * reading.seconds)


def test_a_sensor_that_never_answers_has_no_energy():
    def silent():
        raise OSError("no")

    with Meter([Sensor("power", power_w=silent), Sensor("counter", energy_j=silent)], every_s=0.01) as meter:
        pass
    assert [(reading.energy_j, reading.mean_w) for reading in meter.readings] == [(None, None)] * 2


def test_the_peak_and_all_that_held_clocks_back():
    temperatures, reasons = iter([40.0, None]), iter([{"power limit"}, set()])
    counts = iter([{"oc1": 3, "oc3": 7}, {"oc1": 3, "oc3": 9, "new": 1}])
    sensor = Sensor(
        "all",
        power_w=lambda: 1.0,
        temperature_c=lambda: next(temperatures),
        holding_back=lambda: frozenset(next(reasons)),
        throttle_counts=lambda: next(counts),
    )
    with Meter([sensor], every_s=60) as meter:
        pass
    (reading,) = meter.readings
    assert reading.peak_c == 40
    assert reading.throttled_by == ("oc3", "power limit")


def test_an_error_on_the_thread_is_raised_where_the_block_ends():
    def broken():
        if threading.current_thread().name == "power meter":
            raise ValueError("a bug")
        return 1.0

    meter = Meter([Sensor("power", power_w=broken)], every_s=0.01)
    with pytest.raises(ValueError, match="a bug"), meter:
        time.sleep(0.05)


def test_an_error_of_the_block_ends_the_thread():
    meter = Meter([Sensor("power", power_w=lambda: 1.0)], every_s=0.01)
    with pytest.raises(KeyError), meter:
        raise KeyError("from the block")
    assert not any(thread.name == "power meter" for thread in threading.enumerate())
    assert meter.readings == []
