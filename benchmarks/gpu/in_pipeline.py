"""How much of an engine's rate is left in the pipeline: decoding, rendering and encoding around it, against the engine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.rows import Rows, Setup
from benchmarks.gpu.samples import QUICK_SIZES_HW, SIZES_HW, sample_frames
from benchmarks.gpu.tensorrt_rtx import write_planned
from benchmarks.shared.passes import alone_hz, pipeline_pass
from benchmarks.shared.power_meter import Meter
from benchmarks.shared.power_sensors import nvidia_sensors
from compile.plans.tensorrt_build import PlanOptions
from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.engines.gpu import find_gpu
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.sources import open_source
from pipeline.sources.base import Source


class MemorySource(Source):
    """Frames that lie in memory, over and over, so that nothing is decoded."""

    def __init__(self, images: Sequence[Image], count: int) -> None:
        self._images = images
        self._count = count
        self.info = SourceInfo("memory", "frames in memory", images[0].shape[:2], frame_count=count)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._count):
            yield Frame(self._images[index % len(self._images)], index, index / 25, "memory", f"{index:06d}")


def measure_tensorrt_rtx(setup: Setup, rows: Rows) -> None:
    """Around TensorRT-RTX, where it runs."""
    gpu = find_gpu()
    with TemporaryDirectory(prefix="edgemask.") as scratch:
        bundle = Bundle.read(setup.data / "bundle-fp16")
        build = PlanOptions("tensorrt-rtx", (gpu.sm,), gpu=gpu)
        planned, _ = write_planned(bundle, Path(scratch) / "bundle", build, gpu.sm)
        measure_around(setup, rows, "TensorRT-RTX fp16", lambda: open_engine(planned, "tensorrt-rtx"))


def measure_around(setup: Setup, rows: Rows, engine_name: str, make: Callable[[], Engine]) -> None:
    """Measure an engine alone, then frames from memory and from the clip through the pipeline, to nowhere and to a video."""
    images = [frames_nhwc[0] for frames_nhwc in sample_frames((QUICK_SIZES_HW if setup.quick else SIZES_HW)[0])]
    count = 6 if setup.quick else 600
    clip = setup.data / "clip.mp4"
    with make() as engine, TemporaryDirectory(prefix="edgemask.") as scratch:
        with rows.item("pipeline", f"{engine_name}, engine alone") as alone:
            alone_hz(engine, images, engine.in_flight)  # every slot is made and warm
            alone["engine"] = engine.description
            alone["frames"] = count
            with _energy(alone):
                alone["engine_fps"] = round(alone_hz(engine, images, count), 2)
        ways: tuple[tuple[str, Callable[[], Source], str], ...] = (
            ("memory to null", lambda: MemorySource(images, count), "null"),
            ("clip to null", lambda: open_source(str(clip)), "null"),
            ("clip to H.264", lambda: open_source(str(clip)), str(Path(scratch) / "out.mp4")),
        )
        for what, open_it, output in ways:
            with rows.item("pipeline", f"{engine_name}, {what}") as row, open_it() as source:
                size_hw = source.info.size_hw
                row["size"] = None if size_hw is None else f"{size_hw[0]}x{size_hw[1]}"
                with _energy(row):
                    done = pipeline_pass(engine, source, output=output)
                    row["frames"], row["pipeline_fps"] = done.frames, round(done.hz, 2)
                row["stages_p50_ms"] = {stage.name: round(stage.p50_ms, 3) for stage in done.stages}
                if "engine_fps" in alone:
                    row["engine_fps"] = alone["engine_fps"]
                    row["ratio"] = round(row["pipeline_fps"] / alone["engine_fps"], 4)


@contextmanager
def _energy(row: dict[str, Any]) -> Iterator[None]:
    """Add what the GPU drew for the row's frames while the body ran, where it tells; of several GPUs the one that drew most."""
    sensors = [sensor for sensor in nvidia_sensors() if not sensor.missing]
    with Meter(sensors) as meter:
        yield
    known = [reading for reading in meter.readings if reading.energy_j]
    if not known:
        return
    reading = max(known, key=lambda reading: reading.energy_j or 0)
    row["mean_w"] = round(reading.mean_w or 0, 1)
    row["frames_per_joule"] = float(f"{row['frames'] / (reading.energy_j or 1):.4g}")
    row["peak_c"] = reading.peak_c
    row["throttled_by"] = list(reading.throttled_by)
