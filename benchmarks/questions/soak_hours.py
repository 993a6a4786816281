"""Does anything grow over hours of the command as users run it: three cameras that are not well, recordings, a page with visitors?"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.shared.cameras import Camera, Habits
from benchmarks.shared.environment import write_result
from benchmarks.shared.process_state import process_state, processor_s
from benchmarks.shared.slopes import CONFIDENCE, Slope, slope_of
from benchmarks.shared.visitors import Visitors
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest
from pipeline.errors import OptionError, SourceError

_SMALL, _LARGE = (160, 120), (192, 144)
HABITS = {
    "flapping": Habits(5.0, (_SMALL, _LARGE)),
    "slow": Habits(0.5, (_SMALL,)),
    "dropping": Habits(5.0, (_SMALL,), drop_s=60.0),
}
FIGURES = {
    # figure: what it is
    "resident_mb": "resident memory, MB",
    "anonymous_mb": "allocated memory, MB",
    "threads": "threads",
    "open_files": "open files",
    "age_p50_ms": "age of frames, median, ms",
    "age_p99_ms": "age of frames, p99, ms",
}
_RECORDING = (
    "--segment-time",
    "20",
    "--keep-files",
    "6",
    "--keep-size",
    "2M",
    "--keep-at-least",
    "30",
    "--min-free",
    "50M",
)
# Buffers, caches and pools fill up at first. That is no leak.
_WARM_UP_SHARE, _MOST_WARM_UP_S = 0.25, 1200.0
_LEAST_HOURS = 1 / 60
_PATIENCE_S = 180.0
_AGE = "edgemask_frame_age_seconds"

EXPLAINED = f"""
Slopes are Theil-Sen's over the time after the warm-up, with the interval that holds {CONFIDENCE:.0%}; "within noise" if 0 lies in it.
"In 30 days" is what the slope itself would add in that time, whatever its interval."""


def measure_hours(hours: float, plot: str | None, json: str | None) -> None:
    """Run the command for so many hours, print its slopes and write them.

    Raises:
        OptionError: the time is too short for slopes.
        SourceError: the command ended by itself.
    """
    if not _LEAST_HOURS <= hours < math.inf:
        raise OptionError(f"--hours: expected 1/60 or more, got {hours:g}")
    rows, result = _run(hours * 3600)
    warm_s = min(_WARM_UP_SHARE * hours * 3600, _MOST_WARM_UP_S)
    warm = [row for row in rows if row["s"] >= warm_s]
    slopes = {name: slope_of([row["s"] for row in warm], [row[name] for row in warm]) for name in FIGURES}
    table = [_row(name, slope, warm) for name, slope in slopes.items()]
    _print(table, result, warm_s)
    if plot:
        _draw(plot, rows, hours)
    if json:
        ratios = {f"soak_{row['figure']}_per_hour": row["per_hour"] for row in table}
        write_result(
            Path(json),
            "soak",
            {**result, "warm_up_s": warm_s, "slopes": table, "table": _thinned(rows), "ratios": ratios},
        )


def _run(duration_s: float) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The samples of a run, and what else is to be told of it."""
    every_s = min(5.0, duration_s / 120)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemask-soak-")))
        outside = stack.enter_context(_Outside())
        command = stack.enter_context(_Command(folder, outside.addresses))
        outside.send_visitors(command.wait_for_page(), command.token)
        rows, start_s = [], time.monotonic()
        while (now_s := time.monotonic() - start_s) < duration_s:
            rows.append({"s": round(now_s, 2), **command.sample()})
            time.sleep(every_s)
        outside.send_visitors_home()
        used_s, last = command.used_s, command.metrics()
        lasted_s = time.monotonic() - start_s
        end_s, status = command.end()
        return rows, {
            "hours": round(lasted_s / 3600, 3),
            "status": status,
            "seconds_to_end": round(end_s, 2),
            "cores_used": round(used_s / lasted_s, 3),
            "frames": _by_source(last, "edgemask_frames_total"),
            "received": _by_source(last, "edgemask_frames_received_total"),
            "reconnects": _by_source(last, "edgemask_source_reconnects_total"),
            "visits": dict(outside.visitors.done),
            "failed_visits": dict(outside.visitors.failed),
            "recordings": {name: len(list(folder.glob(f"rec/*_{name}-*.mp4"))) for name in HABITS},
        }


class _Outside:
    """Cameras and visitors: all that the command does not have in its hands; on an event loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outside", daemon=True)
        self._cameras = [Camera(name, habits) for name, habits in HABITS.items()]
        self._visiting: Future[None] | None = None
        self.addresses: list[str] = []
        self.visitors = Visitors("", "")

    def __enter__(self) -> _Outside:
        self._thread.start()

        async def open_all() -> list[str]:
            return [await camera.open() for camera in self._cameras]

        self.addresses = asyncio.run_coroutine_threadsafe(open_all(), self._loop).result(_PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for camera in self._cameras:
                camera.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(_PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send_visitors(self, url: str, token: str) -> None:
        """To a page, until the end."""
        self.visitors = Visitors(url, token)
        self._visiting = asyncio.run_coroutine_threadsafe(self.visitors.visit(), self._loop)

    def send_visitors_home(self) -> None:
        """Before the page ends, which is no fault of theirs."""
        if self._visiting is not None:
            self._visiting.cancel()


class _Command:
    """``python -m pipeline`` in a process of its own, with a network of three operators."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self.token = secrets.token_urlsafe(24)
        self._log = folder / "log"
        self._url = ""
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        outputs = [str(folder / "rec" / "{source}.mp4"), str(folder / "lines" / "{source}.jsonl")]
        command = [sys.executable, "-m", "pipeline", *addresses, "--model", str(_bundle(folder / "bundle").folder)]
        command += [word for output in outputs for word in ("--output", output)]
        command += ["--serve", "127.0.0.1:0", "--headless", "--hud", *_RECORDING]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "EDGEMASK_TOKEN": self.token}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_for_page(self) -> str:
        """The page's address, once it is served."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not (found := re.search(r"page: (http://\S+/)", self._log.read_text(errors="replace"))):
            self._see_that_it_runs()
            if time.monotonic() > deadline_s:
                raise SourceError(f"soak: expected the page within {_PATIENCE_S:g} s, got none: {self._last_lines()}")
            time.sleep(0.1)
        self._url = found[1]
        return self._url

    def metrics(self) -> list[Sample]:
        """All that the command tells at ``/metrics``."""
        request = urllib.request.Request(f"{self._url}metrics", headers={"Authorization": f"Bearer {self.token}"})
        with self._opener.open(request, timeout=_PATIENCE_S) as answer:
            text = answer.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def sample(self) -> dict[str, float]:
        """All figures at this moment; ages are those of the source whose frames are oldest.

        Raises:
            SourceError: the command has ended.
        """
        self._see_that_it_runs()
        told = self.metrics()
        ages = {"age_p50_ms": "0.5", "age_p99_ms": "0.99"}
        state = process_state(self._process.pid)
        for figure, quantile in ages.items():
            values = [one.value for one in told if one.name == _AGE and one.labels["quantile"] == quantile]
            state[figure] = 1e3 * max(values, default=0.0)
        return {name: round(value, 3) for name, value in state.items()}

    @property
    def used_s(self) -> float:
        """Processor time so far."""
        return processor_s(self._process.pid)

    def end(self) -> tuple[float, int]:
        """Ask it to end; how many seconds that took, and its status."""
        start_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(_PATIENCE_S)
        return time.monotonic() - start_s, status

    def _see_that_it_runs(self) -> None:
        status = self._process.poll()
        if status is not None:
            raise SourceError(
                f"soak: expected the command to run to the end, got status {status}: {self._last_lines()}"
            )

    def _last_lines(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-3:])


def _bundle(folder: Path) -> Bundle:
    """A program whose mask is the frame's red channel: what takes time and memory is the pipeline's own."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "red"], ["reds"], axis=3),
        helper.make_node("Cast", ["reds"], ["masks"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        initializer=[helper.make_tensor("red", TensorProto.INT64, [], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    manifest = Manifest("red", "binary", ("subject",), (32, 32), "fp32", {"name": "stream"}, {}, {}, "")
    return Bundle.write(folder, manifest, {PROGRAM_NAME: model.SerializeToString()})


def _by_source(told: list[Sample], metric: str) -> dict[str, int]:
    return {one.labels["source"].rpartition("/")[2]: int(one.value) for one in told if one.name == metric}


def _row(name: str, slope: Slope, warm: list[dict[str, float]]) -> dict[str, Any]:
    few = max(1, len(warm) // 10)
    return {
        "figure": name,
        "first": round(statistics.median(row[name] for row in warm[:few]), 3),
        "last": round(statistics.median(row[name] for row in warm[-few:]), 3),
        "per_hour": round(slope.per_hour, 4),
        "low_per_hour": round(slope.low_per_hour, 4),
        "high_per_hour": round(slope.high_per_hour, 4),
        "in_30_days": round(slope.in_30_days, 2),
        "blocks": slope.blocks,
        "verdict": slope.verdict,
    }


def _print(table: list[dict[str, Any]], result: dict[str, Any], warm_s: float) -> None:
    print(
        "| figure | after warm-up | at the end | slope per hour | interval | in 30 days | |\n|---|---|---|---|---|---|---|"
    )
    for row in table:
        interval = f"{row['low_per_hour']:+.3f} … {row['high_per_hour']:+.3f}"
        print(
            f"| {FIGURES[row['figure']]} | {row['first']:.2f} | {row['last']:.2f} | {row['per_hour']:+.3f} | {interval} "
            f"| {row['in_30_days']:+.1f} | {row['verdict']} |"
        )
    print(
        f"{result['hours']:.2f} hours, of which {warm_s / 60:.0f} minutes of warm-up; {result['cores_used']:.2f} of a core"
    )
    for what in ("frames", "reconnects", "visits", "failed_visits", "recordings"):
        print(
            f"{what.replace('_', ' ')}: "
            + (", ".join(f"{name} {count}" for name, count in result[what].items()) or "none")
        )
    print(f"SIGTERM: status {result['status']} after {result['seconds_to_end']:.1f} s")
    print(EXPLAINED)


def _thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """A few hundred of them, which is as many as a plot shows."""
    return rows[:: max(1, len(rows) // 240)]


def _draw(plot: str, rows: list[dict[str, float]], hours: float) -> None:
    from benchmarks.shared.plots import lines, write_plot

    panels = {
        "memory, MB": ("resident_mb", "anonymous_mb"),
        "threads (above) and open files": ("threads", "open_files"),
        "age of frames, ms: p99 (above) and median": ("age_p50_ms", "age_p99_ms"),
    }
    drawn = {
        above: {FIGURES[name]: [(row["s"] / 60, row[name]) for row in rows] for name in names}
        for above, names in panels.items()
    }
    write_plot(plot, lines(f"{hours:g} hours of three cameras, recordings and a page", "minutes", "", drawn))
