"""Sensors of energy and power: NVIDIA GPUs, the rails of a Jetson, processors, and what a meter at the socket showed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared.throttling import (
    SYSTEM,
    chip_temperature_c,
    holding_back,
    is_jetson,
    read_line,
    read_number,
    throttle_counts,
)

# What is fed side by side and is the whole of a module together; the first row whose rails are all there counts.
_WHOLE_MODULE = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX, TX2
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor, with its carrier
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin, which has no rail for all
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier, neither
)
_RAPL_DOMAIN = re.compile(r"intel-rapl:\d+")  # AMD's have that name too; those with a second number are parts of these


@dataclass(frozen=True)
class Sensor:
    """Something that tells energy or power. It is here unless ``missing`` says why not.

    What reads raises ``OSError`` where the driver does not answer at the moment.

    Attributes:
        name: such as "NVIDIA H200 (GPU 0)".
        missing: why it is not here; empty: it is.
        energy_j: reads a counter in joules that only grows, or
        power_w: reads a power in watts, which is sampled and integrated over time.
        constant: whether the power is a number that the user gave.
        part: whether another sensor has this one's energy in its own.
        temperature_c: reads the temperature of what the sensor is for; None where nothing tells.
        holding_back: reads what takes clocks away at the moment.
        throttle_counts: reads counters that grow while clocks are taken away, by what they are for.
    """

    name: str
    missing: str = ""
    energy_j: Callable[[], float] | None = None
    power_w: Callable[[], float] | None = None
    constant: bool = False
    part: bool = False
    temperature_c: Callable[[], float | None] = lambda: None
    holding_back: Callable[[], frozenset[str]] = frozenset
    throttle_counts: Callable[[], Mapping[str, int]] = dict

    @property
    def kind(self) -> str:
        """How it tells: "energy counter", "power, sampled", or "constant"."""
        return "constant" if self.constant else "energy counter" if self.energy_j else "power, sampled"


def find_sensors(root: Path = SYSTEM) -> list[Sensor]:
    """All that are looked for, those that are not here with the reason.

    Args:
        root: the folder that holds ``sys``, ``proc`` and ``dev``.
    """
    return [*_jetson(root), *nvidia_sensors(root), *_processors(root)]


def constant_sensor(watts: float) -> Sensor:
    """What a meter at the socket showed under load, as a sensor."""
    return Sensor(f"{watts:g} W, given by the user", power_w=lambda: watts, constant=True)


def nvidia_sensors(root: Path = SYSTEM) -> list[Sensor]:
    """NVIDIA's GPUs, or one that says why there is none."""
    name = "NVIDIA GPU (NVML)"
    try:
        module = importlib.import_module("benchmarks.shared.nvml")
    except ImportError as error:
        if _has_nvidia_gpu(root):
            return [Sensor(name, missing=f"{error}: pip install 'edgemask[energy]'")]
        return [Sensor(name, missing="no such GPU")]
    found: list[Sensor] = module.gpu_sensors()
    return found


def _has_nvidia_gpu(root: Path) -> bool:
    # A Jetson's GPU is told by the module's rails.
    if is_jetson(root):
        return False
    displays = (
        folder
        for folder in root.glob("sys/bus/pci/devices/*")
        if read_line(folder / "vendor") == "0x10de" and read_line(folder / "class").startswith("0x03")
    )
    return any(root.glob("dev/nvidia[0-9]*")) or any(displays)


def _jetson(root: Path) -> list[Sensor]:
    rails = dict(_rails(root))
    if not rails:
        reason = "the kernel shows no INA3221" if is_jetson(root) else "no Jetson"
        return [Sensor("Jetson (INA3221)", missing=f"{reason} (sys/bus/i2c/drivers/ina3221*)")]
    whole = next((names for names in _WHOLE_MODULE if all(name in rails for name in names)), ())

    def module_w() -> float:
        return sum(rails[name]() for name in whole)

    sensors = [Sensor(f"rail {name}", power_w=read, part=True) for name, read in rails.items() if whole != (name,)]
    if not whole:
        return sensors
    return [
        Sensor(
            f"Jetson ({' + '.join(whole)})",
            power_w=module_w,
            temperature_c=lambda: chip_temperature_c(root),
            holding_back=lambda: holding_back(root),
            throttle_counts=lambda: throttle_counts(root),
        ),
        *sensors,
    ]


def _rails(root: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names of a Jetson's power rails and what reads their watts."""
    i2c = root / "sys/bus/i2c/drivers"
    # JetPack 5 and newer. Channels 4 to 6 are shunt voltages, and 7 their sum.
    for label in sorted(i2c.glob("ina3221*/*/hwmon/hwmon*/in[123]_label")):
        number = label.name[2]
        volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        # "NC" is not connected.
        if volts.exists() and amperes.exists() and read_line(label) != "NC":
            yield read_line(label), _product_w(volts, amperes)
    # JetPack 4.
    for label in sorted(i2c.glob("ina3221x/*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.rsplit('_', 1)[1]}_input")
        if power.exists():
            yield read_line(label), _scaled(power, 1000)
    # JetPack 7: the whole input of a Thor has a monitor of its own.
    for power in sorted(i2c.glob("ina238/*/hwmon/hwmon*/power1_input")):
        yield "VIN", _scaled(power, 1_000_000)


def _product_w(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: _number(millivolts) * _number(milliamperes) / 1e6


def _scaled(path: Path, per_unit: int) -> Callable[[], float]:
    return lambda: _number(path) / per_unit


def _number(path: Path) -> int:
    number = read_number(path)
    if number is None:
        raise OSError(f"{path}: gives no number")
    return number


def _processors(root: Path) -> list[Sensor]:
    folder = root / "sys/class/powercap"
    domains = [path for path in sorted(folder.glob("intel-rapl:*")) if _RAPL_DOMAIN.fullmatch(path.name)]
    packages = [path for path in domains if read_line(path / "name").startswith("package")]
    if not packages:
        return [Sensor("processor (RAPL)", missing="the kernel shows no package (sys/class/powercap/intel-rapl:*)")]
    return [_package(root, path) for path in packages]


def _package(root: Path, folder: Path) -> Sensor:
    name = f"processor {read_line(folder / 'name')} (RAPL)"
    counter = folder / "energy_uj"
    try:
        counter.read_bytes()
    except PermissionError:
        return Sensor(name, missing=f"only root may read {counter}: run it as root, or sudo chmod a+r {counter}")
    except OSError as error:
        return Sensor(name, missing=str(error))
    return Sensor(
        name,
        energy_j=_WrappingCounter(counter, read_number(folder / "max_energy_range_uj")),
        temperature_c=lambda: chip_temperature_c(root),
        holding_back=lambda: holding_back(root),
        throttle_counts=lambda: throttle_counts(root),
    )


class _WrappingCounter:
    """Joules since it was made, of a counter of microjoules that begins again at its range; read it more often than that."""

    def __init__(self, path: Path, range_uj: int | None) -> None:
        self._path = path
        self._range_uj = range_uj or 0
        self._last_uj: int | None = None
        self._total_uj = 0

    def __call__(self) -> float:
        now_uj = _number(self._path)
        if self._last_uj is not None:
            grown_uj = now_uj - self._last_uj
            self._total_uj += grown_uj if grown_uj >= 0 else max(0, grown_uj + self._range_uj)
        self._last_uj = now_uj
        return self._total_uj / 1e6
