import time

import pytest

from benchmarks.__main__ import main
from benchmarks.questions import energy
from benchmarks.shared.passes import Repeated
from benchmarks.shared.power_sensors import Sensor
from pipeline.errors import SourceError

MISSING = Sensor("Jetson (INA3221)", missing="no Jetson")
QUICK = ("--seconds", "0.1", "--rounds", "2", "--idle", "0.05")


@pytest.fixture
def sensors(monkeypatch):
    """``sensors(…)``: what the machine has."""

    def have(*found):
        monkeypatch.setattr(energy, "find_sensors", lambda: list(found))

    return have


def test_a_constant_is_named_as_such(asked, sensors, clip, red_bundle):
    sensors(MISSING)
    entries, printed = asked("energy", "--clip", clip, "--model", red_bundle.folder, "--watts", "20", *QUICK)
    alone, pipeline = entries["table"]
    assert [row["what"] for row in entries["table"]] == ["engine", "pipeline"]
    assert alone["sensor"] == entries["sensor_of_ratios"] == "20 W, given by the user"
    assert (alone["kind"], alone["idle_w"], alone["load_w"], alone["throttled_by"]) == ("constant", None, 20, None)
    assert alone["frames_per_joule_net"] is None
    # At one power frames per joule go as the rate does, here without the time to open and to close.
    assert alone["frames_per_joule"] == pytest.approx(alone["fps"] / 20, rel=0.3)
    assert pipeline["frames"] == alone["frames"] > 12  # more than the clip has
    assert set(entries["ratios"]) == {"frames_per_joule_pipeline_over_engine"}
    assert entries["not_here"] == {"Jetson (INA3221)": "no Jetson"}
    assert "not here: Jetson (INA3221): no Jetson" in printed
    assert "| 20 W, given by the user | engine alone | – | 20.00 |" in printed


def test_what_the_table_holds_of_each_sensor(asked, sensors, clip, red_bundle):
    counts = iter(range(100))
    whole = Sensor(
        "Jetson (VDD_IN)",
        power_w=lambda: 5.0,
        temperature_c=lambda: 61.5,
        holding_back=lambda: frozenset({"cpu-throttle-alert"}),
        throttle_counts=lambda: {"over-current event oc3": next(counts)},
    )
    counter = Sensor("processor package-0 (RAPL)", energy_j=lambda: 30 * time.monotonic())
    sensors(MISSING, whole, Sensor("rail VDD_SOC", power_w=lambda: 2.0, part=True), counter)
    entries, printed = asked("energy", "--clip", clip, "--model", red_bundle.folder, "--watts", "20", *QUICK)
    rows = {(row["sensor"], row["what"]): row for row in entries["table"]}
    assert len(rows) == 2 * 4
    row = rows["Jetson (VDD_IN)", "engine"]
    assert (row["idle_w"], row["load_w"], row["peak_c"]) == (5, 5, 61.5)
    assert row["throttled_by"] == ["cpu-throttle-alert", "over-current event oc3"]
    assert row["frames_per_joule_net"] is None  # nothing is left
    assert rows["processor package-0 (RAPL)", "pipeline"]["load_w"] == pytest.approx(30, rel=0.01)
    assert rows["rail VDD_SOC", "engine"]["throttled_by"] is None
    assert "| – rail VDD_SOC, power, sampled | pipeline | 2.00 | 2.00 |" in printed
    # A constant and a part are never what the ratio is of, where there is anything else.
    assert entries["sensor_of_ratios"] in ("Jetson (VDD_IN)", "processor package-0 (RAPL)")


def test_the_ratio_is_of_what_draws_more_under_load(asked, sensors, clip, red_bundle, monkeypatch):
    open_engine = energy.open_engine
    resting = [True]

    def opened(*arguments, **settings):
        resting.clear()
        return open_engine(*arguments, **settings)

    monkeypatch.setattr(energy, "open_engine", opened)
    still = Sensor("processor", power_w=lambda: 50.0)
    busy = Sensor("NVIDIA H200 (GPU 0)", power_w=lambda: 100.0 if resting else 300.0)
    sensors(still, busy)
    entries, printed = asked("energy", "--clip", clip, "--model", red_bundle.folder, *QUICK)
    assert entries["sensor_of_ratios"] == "NVIDIA H200 (GPU 0)"
    row = next(row for row in entries["table"] if row["sensor"].startswith("NVIDIA"))
    assert (row["idle_w"], row["load_w"]) == (100, 300)
    assert row["frames_per_joule_net"] == pytest.approx(1.5 * row["frames_per_joule"], rel=1e-3)
    assert "the ratio is that of: NVIDIA H200 (GPU 0)" in printed


def test_parts_alone_give_no_ratio(asked, sensors, clip, red_bundle):
    def silent():
        raise OSError("no answer")

    part = Sensor("rail VDD_NEW", power_w=lambda: 2.0, part=True)
    sensors(part, Sensor("Jetson (VDD_IN)", power_w=silent))
    entries, printed = asked("energy", "--clip", clip, "--model", red_bundle.folder, *QUICK)
    assert (entries["ratios"], entries["sensor_of_ratios"]) == ({}, None)
    assert [row["frames_per_joule"] is None for row in entries["table"]] == [False, False, True, True]
    assert "no ratio: no sensor tells of a whole" in printed


def test_without_a_sensor_it_says_what_was_looked_for(sensors, capsys):
    sensors(MISSING, Sensor("processor (RAPL)", missing="only root may read it"))
    assert main(["energy"]) == 2
    assert (
        "energy: expected a sensor of energy or power, got none (Jetson (INA3221): no Jetson; processor (RAPL): only root may read "
        "it): give what a meter at the socket shows under load with --watts" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--watts", "0"), "expected a number above 0, got 0"),
        (("--seconds", "inf"), "expected a number above 0, got inf"),
        (("--rounds", "0"), "expected a whole number from 1, got 0"),
    ],
)
def test_numbers_that_are_none(arguments, message, capsys):
    assert main(["energy", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_clip_is_repeated_from_its_beginning(clip):
    frames = list(Repeated(str(clip), 15))
    assert len(frames) == 15
    assert [int(frame.image.mean()) for frame in frames[12:]] == [int(frame.image.mean()) for frame in frames[:3]]


def test_a_clip_that_gives_no_frames_is_told(clip, monkeypatch):
    repeated = Repeated(str(clip), 3)
    monkeypatch.setattr("benchmarks.shared.passes.islice", lambda *_: iter(()))
    with pytest.raises(SourceError, match=r"clip.mp4: expected frames, got none"):
        list(repeated)
