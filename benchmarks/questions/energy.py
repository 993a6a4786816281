"""How many frames does a joule give, of the engine alone and of the pipeline, and was the machine throttled meanwhile?

First the machine at rest, then engine and pipeline in turn, and meanwhile every sensor that the machine has: NVIDIA GPUs, the rails
of a Jetson, processors. Without any, --watts takes what a meter at the socket shows.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shared.clip_options import ClipOptions, add_clip_options
from benchmarks.shared.environment import write_result
from benchmarks.shared.passes import Repeated, alone_hz, pipeline_pass, read_images
from benchmarks.shared.power_meter import Meter, Reading
from benchmarks.shared.power_sensors import Sensor, constant_sensor, find_sensors
from pipeline.builds.model_name import open_model
from pipeline.command.command_line import OptionParser, whole_number
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import BackendUnavailableError

PASSES = {"engine": "engine alone", "pipeline": "pipeline"}
COLUMNS = ("sensor", "", "idle, W", "load, W", "FPS", "frames per joule", "net of idle", "°C at most", "throttled by")


EXPLAINED = """
idle and load: mean power before the passes and during them. Frames per joule: higher is better; net of idle leaves out what the
machine draws at rest. A sensor with a dash is a part of the one above it. The ratio: the pipeline's frames per joule / the engine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClipOptions):
    """What ``python -m benchmarks energy`` is asked.

    Attributes:
        seconds: how long a pass takes, s.
        rounds: pairs of passes.
        idle: at rest before them, s.
        watts: what a meter at the socket shows under load.
    """

    seconds: float
    rounds: int
    idle: float
    watts: float | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks energy`` takes."""
    add_clip_options(parser, plot="draw the frames per joule")
    parser.add_argument(
        "--seconds", type=_positive, default=10.0, metavar="S", help="length of a pass (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=whole_number(1), default=3, metavar="N", help="pairs of passes (default: %(default)s)"
    )
    parser.add_argument(
        "--idle",
        type=_positive,
        default=5.0,
        metavar="S",
        help="seconds at rest before the passes (default: %(default)s)",
    )
    parser.add_argument(
        "--watts", type=_positive, metavar="W", help="power under load that a meter at the socket shows, in watts"
    )


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        BackendUnavailableError: there is no sensor.
        EdgemaskError: the clip or the bundle cannot be read.
    """
    sought, sensors = _sensors(options.watts)
    keep_freed_memory()  # as the command does
    bundle = open_model(options.model)
    # At rest, before an engine is here: a GPU with a context of CUDA draws more.
    with Meter(sensors) as rest:
        time.sleep(options.idle)
    with open_engine(bundle, options.backend, overlap=True) as engine:
        totals = _in_turn(engine, sensors, read_images(options.clip, engine.pixels), options)
        description = engine.description
    rows = [
        _row(sensor, idle, what, total, index)
        for index, (sensor, idle) in enumerate(zip(sensors, rest.readings, strict=True))
        for what, total in totals.items()
    ]
    main = _main_sensor(sensors, rows)
    found = {} if main is None else _ratios(totals, sensors.index(main))
    manifest = bundle.manifest
    print(f"{manifest.model}, {manifest.precision}, {description}, {options.rounds} rounds of {options.seconds:g} s")
    print("\n".join([*_table(rows), EXPLAINED]))
    for sensor in sought:
        if sensor.missing:
            print(f"not here: {sensor.name}: {sensor.missing}")
    if main is None:
        print("no ratio: no sensor tells of a whole: give what a meter at the socket shows under load with --watts")
    else:
        print(f"the ratio is that of: {main.name}")
    for name, value in found.items():
        print(f"{name}: {value:.4f}")
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        known = [row for row in rows if row["frames_per_joule"] is not None]
        named = [(f"{row['sensor']}: {PASSES[row['what']]}", row["frames_per_joule"]) for row in known]
        title = f"Energy: {manifest.model}, {manifest.precision}, {description}"
        write_plot(options.plot, bars(title, "frames per joule", named))
    if options.json:
        write_result(
            Path(options.json),
            "energy",
            {
                "model": manifest.model,
                "precision": manifest.precision,
                "backend": description,
                "rounds": options.rounds,
                "seconds": options.seconds,
                "idle_seconds": options.idle,
                "not_here": {sensor.name: sensor.missing for sensor in sought if sensor.missing},
                "sensor_of_ratios": None if main is None else main.name,
                "table": rows,
                "ratios": found,
            },
        )


def _sensors(watts: float | None) -> tuple[Sequence[Sensor], list[Sensor]]:
    """All sensors that were looked for, and those that are here."""
    sought = find_sensors()
    sensors = [sensor for sensor in sought if not sensor.missing]
    if watts is not None:
        sensors.append(constant_sensor(watts))
    if not sensors:
        why = "; ".join(f"{sensor.name}: {sensor.missing}" for sensor in sought)
        raise BackendUnavailableError(
            f"energy: expected a sensor of energy or power, got none ({why}): give what a meter at the socket shows under load "
            "with --watts"
        )
    return sought, sensors


@dataclass
class _Total:
    """All passes of one kind."""

    rates_hz: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    readings: list[list[Reading]] = field(default_factory=list)  # of each pass, one for each sensor


def _in_turn(engine: Engine, sensors: Sequence[Sensor], images: Sequence[Any], options: Options) -> dict[str, _Total]:
    alone_hz(engine, images, 3)  # warm
    run: dict[str, Callable[[int], float]] = {
        "engine": lambda count: alone_hz(engine, images, count),
        "pipeline": lambda count: pipeline_pass(engine, Repeated(options.clip, count)).hz,
    }
    # As many frames as fill the time, by a first try that is as long as the rate asks for.
    tried = max(3, round(alone_hz(engine, images, 3) * min(1.0, options.seconds)))
    count = max(3, round(alone_hz(engine, images, tried) * options.seconds))
    totals = {what: _Total() for what in PASSES}
    for number in range(options.rounds):
        # Which of the two is first changes, for the second one finds a warmer machine.
        for what in PASSES if number % 2 else reversed(PASSES):
            with Meter(sensors) as meter:
                rate_hz = run[what](count)
            totals[what].rates_hz.append(rate_hz)
            totals[what].frames.append(count)
            totals[what].readings.append(meter.readings)
    return totals


def _row(sensor: Sensor, idle: Reading, what: str, total: _Total, index: int) -> dict[str, Any]:
    readings = [readings[index] for readings in total.readings]
    idle_w = None if sensor.constant else idle.mean_w
    energies_j = [reading.energy_j for reading in readings if reading.energy_j is not None]
    known = len(energies_j) == len(readings)
    energy_j = sum(energies_j) if known else None
    seconds = sum(reading.seconds for reading in readings)
    net_j = None if energy_j is None or idle_w is None else energy_j - idle_w * seconds
    peaks_c = [reading.peak_c for reading in readings if reading.peak_c is not None]
    return {
        "sensor": sensor.name,
        "kind": sensor.kind,
        "part": sensor.part,
        "what": what,
        "frames": sum(total.frames),
        "fps": round(statistics.median(total.rates_hz), 2),
        "idle_w": _rounded(idle_w, 3),
        "load_w": _rounded(None if energy_j is None else energy_j / seconds, 3),
        "frames_per_joule": _per_joule(sum(total.frames), energy_j),
        "frames_per_joule_net": _per_joule(sum(total.frames), net_j),
        "idle_c": _rounded(idle.peak_c, 1),
        "peak_c": _rounded(max(peaks_c, default=None), 1),
        # Of a part and of a constant nothing is known.
        "throttled_by": None
        if sensor.part or sensor.constant
        else sorted({name for reading in readings for name in reading.throttled_by}),
    }


def _main_sensor(sensors: Sequence[Sensor], rows: Sequence[dict[str, Any]]) -> Sensor | None:
    """The sensor that the ratio is taken of: the one whose power rises most; a part of another never, a constant where it is alone."""
    rises_w = {
        row["sensor"]: (row["load_w"] or 0) - (row["idle_w"] or 0)
        for row in rows
        if row["what"] == "engine" and row["frames_per_joule"] is not None
    }
    whole = [sensor for sensor in sensors if not sensor.part and sensor.name in rises_w]
    measured = [sensor for sensor in whole if not sensor.constant] or whole
    return max(measured, key=lambda sensor: rises_w[sensor.name], default=None)


def _ratios(totals: dict[str, _Total], index: int) -> dict[str, float]:
    """Frames per joule of the pipeline by those of the engine: the median of the pairs."""
    pairs = []
    for engine, pipeline in zip(totals["engine"].readings, totals["pipeline"].readings, strict=True):
        # Passes of a pair have the same number of frames.
        before_j, after_j = engine[index].energy_j, pipeline[index].energy_j
        if before_j and after_j:
            pairs.append(before_j / after_j)
    return {"frames_per_joule_pipeline_over_engine": round(statistics.median(pairs), 4)} if pairs else {}


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        name = f"{row['sensor']}, {row['kind']}" if row["kind"] != "constant" else row["sensor"]
        cells = (
            f"– {name}" if row["part"] else name,
            PASSES[row["what"]],
            _text(row["idle_w"], "{:.2f}"),
            _text(row["load_w"], "{:.2f}"),
            f"{row['fps']:.2f}",
            _text(row["frames_per_joule"], "{:.4g}"),
            _text(row["frames_per_joule_net"], "{:.4g}"),
            _text(row["peak_c"], "{:.0f}"),
            "–" if row["throttled_by"] is None else ", ".join(row["throttled_by"]) or "nothing",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _per_joule(frames: int, energy_j: float | None) -> float | None:
    # Net of idle, nothing is left where the sensor is not of what works.
    return None if energy_j is None or energy_j <= 0 else float(f"{frames / energy_j:.5g}")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _text(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)
