"""What a machine says of its temperatures and of clocks that are held back, from sysfs.

Boards and kernels have different parts of it; what is not there, or does not answer at the moment, is left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SYSTEM = Path("/")

# Cooling devices that take clocks away. Fans are cooling devices too, and a fan that turns slows nothing down.
_SLOWS_DOWN = re.compile(r"throttle|cpufreq|devfreq|^Processor$")
_GPU_CLOCKS = re.compile(r"gpu|ga10b|gv11b|gp10b")
# A Jetson's junction, the hottest of its zones; the package of an x86 processor.
_OF_THE_CHIP = ("tj-thermal", "x86_pkg_temp")
_CHIP_DRIVERS = ("k10temp", "zenpower", "coretemp")


def read_number(path: Path) -> int | None:
    """A file's whole number; None where there is none, or the driver does not give it now."""
    text = read_line(path)
    # Zones of a part without power give no number, and sysfs ends some of its files in spaces.
    return int(text) if re.fullmatch(r"-?\d+", text, re.ASCII) else None


def read_line(path: Path) -> str:
    """A file's first line; empty where it cannot be read."""
    try:
        content = path.read_bytes() or b""  # None: what Python makes of a driver's "try again" (EAGAIN)
    except OSError:
        return ""
    lines = content.decode("utf-8", errors="replace").splitlines()
    return lines[0].strip("\x00 \t") if lines else ""


def is_jetson(root: Path = SYSTEM) -> bool:
    """Whether the device tree names a Tegra."""
    return "nvidia,tegra" in read_line(root / "proc/device-tree/compatible")


def temperatures_c(root: Path = SYSTEM) -> dict[str, float]:
    """Temperature of each thermal zone by its type; of several zones of one type the highest."""
    found: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        thousandths = read_number(zone / "temp")
        name = read_line(zone / "type")
        # Zones of parts without power are far below zero, and a Jetson's PMIC says 100 °C at all times.
        if thousandths is not None and thousandths > -100_000 and name != "PMIC-Die":
            found[name] = max(found.get(name, -1e9), thousandths / 1000)
    return found


def chip_temperature_c(root: Path = SYSTEM) -> float | None:
    """Temperature of a Jetson's junction or of a processor's package; else of the hottest zone; None where nothing tells."""
    zones = temperatures_c(root)
    for name in _OF_THE_CHIP:
        if name in zones:
            return zones[name]
    chips = [
        thousandths / 1000
        for chip in root.glob("sys/class/hwmon/hwmon*")
        if read_line(chip / "name") in _CHIP_DRIVERS
        if (thousandths := read_number(chip / "temp1_input")) is not None
    ]
    return max(chips or zones.values(), default=None)


def holding_back(root: Path = SYSTEM) -> frozenset[str]:
    """What takes clocks away at this moment: types of cooling devices whose state is not 0."""
    return frozenset(
        kind
        for device in root.glob("sys/class/thermal/cooling_device*")
        if _SLOWS_DOWN.search(kind := read_line(device / "type")) and (read_number(device / "cur_state") or 0) > 0
    )


def throttle_counts(root: Path = SYSTEM) -> dict[str, int]:
    """Counters of a Jetson's over-current events and of an Intel processor's thermal ones; they grow while clocks are taken away."""
    found = {}
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        count = read_number(path)
        if count is not None:
            found[f"over-current event {path.name.split('_')[0]}"] = count
    counts = [
        count
        for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count")
        if (count := read_number(path)) is not None
    ]
    return found | ({"processor too hot": sum(counts)} if counts else {})


def jetson_state(root: Path = SYSTEM) -> dict[str, Any] | None:
    """GPU clocks, temperatures and throttling of a Jetson at this moment; None on other machines."""
    if not is_jetson(root):
        return None
    clocks_hz = {path.parent.name: read_number(path) for path in sorted(root.glob("sys/class/devfreq/*/cur_freq"))}
    return {
        "gpu_mhz": {name: hz / 1e6 for name, hz in clocks_hz.items() if hz is not None and _GPU_CLOCKS.search(name)},
        "temperatures_c": temperatures_c(root),
        "throttled_by": sorted(holding_back(root)),
        "events_since_boot": throttle_counts(root),
    }
