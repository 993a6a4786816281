"""Copies between host and GPU by PyCUDA, and what TensorRT-RTX makes of the frame program on this GPU; without PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.gpu.rows import Rows, Setup
from benchmarks.gpu.samples import SIZES_HW, Frames, Sample, agreement, percentiles, sample_frames
from compile.plans.tensorrt_build import PlanOptions, build_plan
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.engines.gpu import find_gpu
from pipeline.engines.tensorrt_library import load_tensorrt_rtx, log_of

SIZE_HW = SIZES_HW[0]


def measure_copies(_: Setup, rows: Rows) -> None:
    """1080p frames up and down, from page-locked memory as the engines have it, and from ordinary memory."""
    from pycuda import driver

    from pipeline.engines.cuda_device import CudaDevice

    size_bytes = 3 * SIZE_HW[0] * SIZE_HW[1]
    with CudaDevice() as device:
        stream = device.stream()
        buffer = device.buffer(size_bytes)
        buffer.host[:] = np.arange(size_bytes, dtype=np.uint64).astype(np.uint8)
        ordinary = buffer.host.copy()

        def up() -> None:
            buffer.to_device(size_bytes, stream)
            stream.synchronize()

        def down() -> None:
            buffer.to_host(size_bytes, stream)
            stream.synchronize()

        def copy_and_up() -> None:  # as a submission does
            np.copyto(buffer.host, ordinary)
            up()

        def down_and_copy() -> None:
            down()
            np.copyto(ordinary, buffer.host)

        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "page-locked": (up, down),
            "ordinary memory": (
                lambda: driver.memcpy_htod(buffer.address, ordinary),
                lambda: driver.memcpy_dtoh(ordinary, buffer.address),
            ),
            "ordinary by way of page-locked": (copy_and_up, down_and_copy),
        }
        for what, (there, back) in ways.items():
            with rows.item("copies", what, bytes=size_bytes) as row:
                row["up_gb_per_s"] = _gb_per_s(there, size_bytes)
                row["down_gb_per_s"] = _gb_per_s(back, size_bytes)
        buffer.free()


def measure_current(setup: Setup, rows: Rows) -> None:
    """Plans built for this GPU itself: by its name if TensorRT-RTX has one for it, else as CURRENT."""
    gpu = find_gpu()
    _measure(setup, rows, f"CURRENT, SM {gpu.sm}", PlanOptions("tensorrt-rtx", (gpu.sm,), gpu=gpu))


def measure_sm80(setup: Setup, rows: Rows) -> None:
    """Plans built for SM 8.0, as on any machine, and loaded here."""
    _measure(setup, rows, "SM 80", PlanOptions("tensorrt-rtx", (80,)))


def write_planned(bundle: Bundle, folder: Path, options: PlanOptions, sm: int) -> tuple[Bundle, bytes]:
    """Build a plan and write a copy of the bundle with it, said to be for the GPU that is here: TensorRT shall judge, not we.

    Raises:
        CompileError: TensorRT-RTX cannot build it.
    """
    program = bundle.program_path.read_bytes()
    plan = build_plan(program, options)
    entry = replace(plan.entry(bundle.manifest.precision), sms=tuple(sorted({*plan.sms, sm})))
    manifest = replace(bundle.manifest, engines=(entry,))
    return Bundle.write(folder, manifest, {PROGRAM_NAME: program, entry.file: plan.content}), plan.content


def validity_of(plan: bytes) -> str:
    """What TensorRT-RTX itself says of a plan on this GPU, such as "INVALID (UNSUPPORTED_CC)"."""
    trt = load_tensorrt_rtx()
    validity, diagnostics = trt.Runtime(log_of(trt).logger).get_engine_validity(plan)
    members: Mapping[str, Any] = trt.EngineInvalidityDiagnostics.__members__
    reasons = [name for name, value in members.items() if int(diagnostics) & int(value)]
    return f"{validity.name} ({', '.join(reasons)})" if reasons else str(validity.name)


def _measure(setup: Setup, rows: Rows, target: str, build: PlanOptions) -> None:
    gpu = find_gpu()
    with TemporaryDirectory(prefix="edgemask.") as scratch:
        for precision in ("fp32", "fp16"):
            bundle = Bundle.read(setup.data / f"bundle-{precision}")
            with rows.item("tensorrt-rtx", f"{target}, {precision}, build") as row:
                start_s = time.perf_counter()
                planned, plan = write_planned(bundle, Path(scratch) / precision, build, gpu.sm)
                row["build_s"] = round(time.perf_counter() - start_s, 3)
                row["plan_bytes"] = len(plan)
                row["validity"] = validity_of(plan)
            if "error" in row:
                continue
            with rows.item("tensorrt-rtx", f"{target}, {precision}") as row:
                _run(planned, bundle, row)


def _run(planned: Bundle, bundle: Bundle, row: dict[str, Any]) -> None:
    frames = sample_frames(SIZE_HW)
    with open_engine(bundle, "onnxruntime") as reference:
        samples = [Sample(one, reference(one)[0]) for one in frames]
    for start in ("first_start_s", "second_start_s"):  # the second has the runtime cache that the first left
        start_s = time.perf_counter()
        with open_engine(planned, "tensorrt-rtx") as engine:
            engine(frames[0])
            row[start] = round(time.perf_counter() - start_s, 3)
            row["engine"] = engine.description
            if start == "second_start_s":
                row.update(_time_calls(engine, frames[0]))
                row.update(agreement(engine, samples, bundle.manifest.task))
    row["cache_bytes"] = sum(path.stat().st_size for path in planned.folder.rglob("*.cache"))


def _time_calls(engine: Engine, frames_nhwc: Frames) -> dict[str, Any]:
    """Whole calls, one after the other: copies both ways and waiting are in them."""
    times_ms = []
    for number in range(220):
        start_ns = time.perf_counter_ns()
        engine(frames_nhwc)
        if number >= 20:
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return percentiles(times_ms)


def _gb_per_s(copy: Callable[[], object], size_bytes: int, runs: int = 200) -> float:
    times_s = []
    for number in range(runs + 10):
        start_ns = time.perf_counter_ns()
        copy()
        if number >= 10:
            times_s.append((time.perf_counter_ns() - start_ns) / 1e9)
    return round(size_bytes / float(np.median(times_s)) / 1e9, 3)
