"""NVIDIA GPUs by NVML: energy or power, temperature, and why clocks are held back. Imported on demand, for it needs pynvml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pynvml

from benchmarks.shared.power_sensors import Sensor

# Reasons that take clocks away against the user's will; being idle, or set so, is none. By the names that old drivers know too.
_REASONS = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power limit",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "too hot (driver)",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}


def gpu_sensors() -> list[Sensor]:
    """A sensor for each GPU that the driver knows; one that says why not where NVML does not start."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [_sensor(index, handle) for index, handle in enumerate(handles)] or [
            Sensor("NVIDIA GPU (NVML)", missing="the driver knows no GPU")
        ]
    except pynvml.NVMLError as error:
        return [Sensor("NVIDIA GPU (NVML)", missing=f"NVML says: {error}")]


def _sensor(index: int, handle: Any) -> Sensor:
    name = f"{_text(pynvml.nvmlDeviceGetName(handle))} (GPU {index})"

    def energy_j() -> float:
        return float(_ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)) / 1000

    def power_w() -> float:
        return float(_ask(pynvml.nvmlDeviceGetPowerUsage, handle)) / 1000

    def temperature_c() -> float | None:
        try:
            return float(_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU))
        except OSError:
            return None

    def holding_back() -> frozenset[str]:
        try:
            bits = int(_ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle))
        except OSError:
            return frozenset()
        return frozenset(text for bit, text in _REASONS.items() if bits & bit)

    sensor = Sensor(name, temperature_c=temperature_c, holding_back=holding_back)
    try:
        energy_j()
        return replace(sensor, energy_j=energy_j)
    except OSError:  # the counter came with Volta
        pass
    try:
        power_w()
        return replace(sensor, power_w=power_w)
    except OSError as error:
        return replace(sensor, missing=f"NVML gives neither its energy nor its power ({error})")


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
