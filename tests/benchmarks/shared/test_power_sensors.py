import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.shared.power_sensors import constant_sensor, find_sensors

ORIN = {"proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003\0nvidia,p3767\0nvidia,tegra234\0"}
THERMAL = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "50000",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal",
    "sys/class/thermal/thermal_zone8/temp": "51250",
}


def ina3221(address, hwmon, rails, driver="ina3221"):
    """The files of a monitor with (name, mV, mA) for each of its channels."""
    folder = f"sys/bus/i2c/drivers/{driver}/{address}/hwmon/hwmon{hwmon}"
    files = {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "9", f"{folder}/curr4_input": "9"}
    for number, (name, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{folder}/in{number}_label": name,
            f"{folder}/in{number}_input": millivolts,
            f"{folder}/curr{number}_input": milliamperes,
            f"{folder}/in{number + 3}_input": "17",
        }
    return files


def of_kind(sensors, word):
    return [sensor for sensor in sensors if word in sensor.name]


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch):
    """As on a machine without nvidia-ml-py, also where it is installed."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delitem(sys.modules, "benchmarks.shared.nvml", raising=False)


@pytest.fixture
def nvml(monkeypatch):
    """A fake of pynvml with one GPU; what it gives may be changed, and an exception among it is raised."""

    class Error(Exception):
        pass

    fake = ModuleType("pynvml")
    fake.NVMLError = Error
    fake.NVML_TEMPERATURE_GPU = 0
    for bit, name in ((4, "SwPowerCap"), (8, "HwSlowdown"), (32, "SwThermalSlowdown")):
        setattr(fake, f"nvmlClocksThrottleReason{name}", bit)
    fake.nvmlClocksThrottleReasonHwThermalSlowdown = 64
    fake.nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128
    gives = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": b"NVIDIA H200",
        "nvmlDeviceGetTotalEnergyConsumption": 123_456,
        "nvmlDeviceGetPowerUsage": 98_700,
        "nvmlDeviceGetTemperature": 45,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 1 | 4 | 64,
    }

    def function(name):
        def call(*_):
            if isinstance(gives[name], Exception):
                raise gives[name]
            return gives[name]

        return call

    for name in gives:
        setattr(fake, name, function(name))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    fake.gives = gives
    return fake


def test_an_orin_nano_has_one_rail_for_its_module(machine):
    rails = [("VDD_IN", 5000, 1400), ("VDD_CPU_GPU_CV", 4980, 300), ("VDD_SOC", 4980, 400)]
    root = machine(ORIN | THERMAL | ina3221("1-0040", 3, rails))
    whole, *parts = [sensor for sensor in find_sensors(root) if not sensor.missing]
    assert whole.name == "Jetson (VDD_IN)"
    assert whole.power_w() == pytest.approx(7.0)
    assert (whole.kind, whole.part, whole.temperature_c()) == ("power, sampled", False, 51.25)
    assert [(part.name, part.part) for part in parts] == [("rail VDD_CPU_GPU_CV", True), ("rail VDD_SOC", True)]
    assert parts[0].power_w() == pytest.approx(1.494)


def test_an_agx_orin_is_the_sum_of_what_is_fed_side_by_side(machine):
    first = [("VDD_GPU_SOC", 19_000, 200), ("VDD_CPU_CV", 19_000, 100), ("VIN_SYS_5V0", 5000, 600)]
    second = [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 19_000, 50), ("NC", 0, 0)]
    sensors = find_sensors(machine(ORIN | ina3221("1-0040", 1, first) | ina3221("1-0041", 2, second)))
    whole, *parts = [sensor for sensor in sensors if not sensor.missing]
    assert whole.name == "Jetson (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)"
    assert whole.power_w() == pytest.approx(3.8 + 1.9 + 3.0)
    assert [part.name.split()[1] for part in parts] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert all(part.part for part in parts)


def test_jetpack_4_gives_power_in_milliwatts(machine):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {f"{folder}/rail_name_0": "POM_5V_IN", f"{folder}/in_power0_input": "4512"}
    files |= {f"{folder}/rail_name_1": "POM_5V_GPU", f"{folder}/in_power1_input": "812"}
    whole, gpu = [sensor for sensor in find_sensors(machine(ORIN | files)) if not sensor.missing]
    assert (whole.name, whole.power_w()) == ("Jetson (POM_5V_IN)", 4.512)
    assert (gpu.name, gpu.part, gpu.power_w()) == ("rail POM_5V_GPU", True, 0.812)


def test_a_thor_has_a_monitor_of_its_input(machine):
    rails = [("VDD_GPU", 12_000, 600), ("VDD_CPU_SOC_MSS", 12_000, 900), ("VIN_SYS_5V0", 5000, 1700)]
    vin = {"sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon6/power1_input": "31500000"}
    whole, *parts = [s for s in find_sensors(machine(ORIN | vin | ina3221("2-0040", 5, rails))) if not s.missing]
    assert (whole.name, whole.power_w()) == ("Jetson (VIN)", 31.5)
    assert len(parts) == 3


def test_rails_of_an_unknown_board_are_parts_alone(machine):
    sensors = find_sensors(machine(ORIN | ina3221("1-0040", 1, [("VDD_NEW", 5000, 100)])))
    assert [(s.name, s.part) for s in sensors if not s.missing] == [("rail VDD_NEW", True)]


def test_a_rail_that_does_not_answer_is_an_os_error(machine):
    root = machine(ORIN | ina3221("1-0040", 1, [("VDD_IN", 5000, 100)]))
    (whole,) = [sensor for sensor in find_sensors(root) if not sensor.missing]
    next(root.rglob("curr1_input")).write_text("")
    with pytest.raises(OSError, match=r"curr1_input: gives no number"):
        whole.power_w()


def rapl(*packages):
    files = {"sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:9/name": "psys"}
    for number, (name, energy_uj) in enumerate(packages):
        folder = f"sys/class/powercap/intel-rapl:{number}"
        files |= {f"{folder}/name": name, f"{folder}/energy_uj": energy_uj, f"{folder}/max_energy_range_uj": "1000000"}
    return files


def test_packages_count_and_their_parts_do_not(machine):
    root = machine(rapl(("package-0", 900_000), ("package-1", 5)))
    first, second = [sensor for sensor in find_sensors(root) if not sensor.missing]
    assert (first.name, first.kind) == ("processor package-0 (RAPL)", "energy counter")
    assert second.name == "processor package-1 (RAPL)"
    assert first.energy_j() == 0
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("950000\n")
    assert first.energy_j() == pytest.approx(0.05)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("100000\n")  # begun again at 1,000,000
    assert first.energy_j() == pytest.approx(0.2)


def test_what_only_root_may_read_is_told(machine, monkeypatch):
    root = machine(rapl(("package-0", 1)))
    read_bytes = Path.read_bytes

    def refused(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    (sensor,) = of_kind(find_sensors(root), "RAPL")
    assert sensor.name == "processor package-0 (RAPL)"
    assert sensor.missing.startswith("only root may read ")
    assert sensor.missing.endswith("intel-rapl:0/energy_uj")


def test_a_machine_without_any_says_what_was_looked_for(machine):
    found = {sensor.name: sensor.missing for sensor in find_sensors(machine({}))}
    assert found == {
        "Jetson (INA3221)": "no Jetson (sys/bus/i2c/drivers/ina3221*)",
        "NVIDIA GPU (NVML)": "no such GPU",
        "processor (RAPL)": "the kernel shows no package (sys/class/powercap/intel-rapl:*)",
    }


@pytest.mark.parametrize(
    "files",
    [
        {"dev/nvidia0": ""},
        {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de", "sys/bus/pci/devices/0000:01:00.0/class": "0x030200"},
    ],
)
def test_the_package_for_nvml_is_asked_for_where_there_is_a_gpu(machine, files):
    (sensor,) = of_kind(find_sensors(machine(files)), "NVML")
    assert sensor.missing.endswith("pip install 'edgemask[energy]'")


@pytest.mark.parametrize(
    "files",
    [
        # A Jetson's bridges are NVIDIA's too, and its GPU is told by the module's rails.
        ORIN | {"dev/nvidia0": ""},
        {"sys/bus/pci/devices/0000:00:00.0/vendor": "0x10de", "sys/bus/pci/devices/0000:00:00.0/class": "0x060400"},
    ],
)
def test_it_is_not_asked_for_elsewhere(machine, files):
    (sensor,) = of_kind(find_sensors(machine(files)), "NVML")
    assert sensor.missing == "no such GPU"


def test_a_gpu_with_a_counter(nvml, machine):
    (gpu,) = of_kind(find_sensors(machine({})), "NVIDIA")
    assert (gpu.name, gpu.kind) == ("NVIDIA H200 (GPU 0)", "energy counter")
    assert (gpu.energy_j(), gpu.temperature_c()) == (123.456, 45)
    assert gpu.holding_back() == {"power limit", "too hot (hardware)"}
    nvml.gives["nvmlDeviceGetTemperature"] = nvml.NVMLError("GPU is lost")
    nvml.gives["nvmlDeviceGetCurrentClocksThrottleReasons"] = nvml.NVMLError("GPU is lost")
    nvml.gives["nvmlDeviceGetTotalEnergyConsumption"] = nvml.NVMLError("GPU is lost")
    assert (gpu.temperature_c(), gpu.holding_back()) == (None, frozenset())
    with pytest.raises(OSError, match="GPU is lost"):
        gpu.energy_j()


def test_a_gpu_without_a_counter_is_sampled(nvml, machine):
    nvml.gives["nvmlDeviceGetTotalEnergyConsumption"] = nvml.NVMLError("Not Supported")
    (gpu,) = of_kind(find_sensors(machine({})), "NVIDIA")
    assert (gpu.kind, gpu.power_w()) == ("power, sampled", 98.7)


def test_a_gpu_that_tells_nothing_is_not_here(nvml, machine):
    for name in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"):
        nvml.gives[name] = nvml.NVMLError("Not Supported")
    (gpu,) = of_kind(find_sensors(machine({})), "NVIDIA")
    assert gpu.missing == "NVML gives neither its energy nor its power (Not Supported)"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("nvmlInit", "Driver Not Loaded", "NVML says: Driver Not Loaded"),
        ("nvmlDeviceGetCount", 0, "the driver knows no GPU"),
    ],
)
def test_nvml_without_a_gpu(nvml, machine, name, value, reason):
    nvml.gives[name] = nvml.NVMLError(value) if isinstance(value, str) else value
    (sensor,) = of_kind(find_sensors(machine({})), "NVIDIA")
    assert (sensor.name, sensor.missing) == ("NVIDIA GPU (NVML)", reason)


@pytest.mark.needs("pynvml")
def test_the_package_has_every_name_that_the_fake_has(nvml, monkeypatch):
    names = [name for name in vars(nvml) if name.startswith(("nvml", "NVML"))]
    monkeypatch.delitem(sys.modules, "pynvml")
    real = importlib.import_module("pynvml")
    assert [name for name in names if not hasattr(real, name)] == []
    assert all(getattr(real, name) == getattr(nvml, name) for name in names if "Reason" in name and "Get" not in name)


def test_the_users_meter():
    sensor = constant_sensor(31.5)
    assert (sensor.name, sensor.kind, sensor.power_w()) == ("31.5 W, given by the user", "constant", 31.5)
