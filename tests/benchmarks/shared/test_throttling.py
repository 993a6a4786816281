import errno

import pytest

from benchmarks.shared.throttling import (
    chip_temperature_c,
    holding_back,
    is_jetson,
    jetson_state,
    read_line,
    read_number,
    temperatures_c,
    throttle_counts,
)

ZONES = "sys/class/thermal"


def zones(*pairs):
    return {
        f"{ZONES}/thermal_zone{number}/{name}": text
        for number, (kind, temperature) in enumerate(pairs)
        for name, text in (("type", kind), ("temp", temperature))
    }


def cooling(*pairs):
    return {
        f"{ZONES}/cooling_device{number}/{name}": text
        for number, (kind, state) in enumerate(pairs)
        for name, text in (("type", kind), ("cur_state", state))
    }


def test_zones_without_power_and_without_an_answer_are_left_out(machine):
    odd = [("cv0-thermal", -256_000), ("gpu-thermal", ""), ("PMIC-Die", 100_000)]
    root = machine(zones(("cpu-thermal", 48_500), *odd, ("acpitz", 20_000)))
    assert temperatures_c(root) == {"cpu-thermal": 48.5, "acpitz": 20.0}
    assert chip_temperature_c(root) == 48.5


@pytest.mark.parametrize("kind", ["tj-thermal", "x86_pkg_temp"])
def test_the_chips_own_zone_is_taken_first(machine, kind):
    assert chip_temperature_c(machine(zones(("hot", 90_000), (kind, 51_000)))) == 51.0


def test_an_amd_processor_tells_through_its_driver(machine):
    chip = {"sys/class/hwmon/hwmon2/name": "k10temp", "sys/class/hwmon/hwmon2/temp1_input": "61125"}
    other = {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "80000"}
    assert chip_temperature_c(machine(chip | other)) == 61.125
    assert chip_temperature_c(machine({}) / "none") is None


def test_a_fan_that_turns_holds_nothing_back(machine):
    devices = [("pwm-fan", 3), ("cpu-throttle-alert", 1), ("gpu-throttle-alert", 0), ("thermal-cpufreq-0", 2)]
    devices += [("TCC Offset", 5), ("Processor", 0), ("intel_powerclamp", -1), ("devfreq-gpu-gpc-0", "")]
    assert holding_back(machine(cooling(*devices))) == {"cpu-throttle-alert", "thermal-cpufreq-0"}


def test_counters_of_events(machine):
    oc = {f"sys/class/hwmon/hwmon3/oc{number}_event_cnt": count for number, count in ((1, 0), (3, 27))}
    cpus = {f"sys/devices/system/cpu/cpu{n}/thermal_throttle/package_throttle_count": 4 for n in (0, 1)}
    assert throttle_counts(machine(oc | cpus)) == {
        "over-current event oc1": 0,
        "over-current event oc3": 27,
        "processor too hot": 8,
    }


@pytest.mark.parametrize("answer", [None, BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")])
def test_a_driver_that_says_try_again_gives_nothing(machine, monkeypatch, answer):
    path = machine({"temp": "1"}) / "temp"
    assert read_number(path) == 1

    def again(_):
        if answer is not None:
            raise answer

    monkeypatch.setattr("pathlib.Path.read_bytes", again)
    assert (read_line(path), read_number(path)) == ("", None)


def test_a_jetsons_state(machine):
    board = {"proc/device-tree/compatible": "nvidia,p3737\0nvidia,tegra234\0"}
    clocks = {"sys/class/devfreq/17000000.gpu/cur_freq": "918000000", "sys/class/devfreq/emc/cur_freq": "1"}
    root = machine(board | clocks | zones(("tj-thermal", 50_000)) | cooling(("cpu-throttle-alert", 1)))
    assert jetson_state(root) == {
        "gpu_mhz": {"17000000.gpu": 918.0},
        "temperatures_c": {"tj-thermal": 50.0},
        "throttled_by": ["cpu-throttle-alert"],
        "events_since_boot": {},
    }


def test_other_machines_have_none(machine):
    root = machine({"proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0"} | zones(("cpu", 1000)))
    assert not is_jetson(root)
    assert jetson_state(root) is None
