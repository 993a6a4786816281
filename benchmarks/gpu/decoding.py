"""Videos that the GPU decodes and encodes (--decode cuda), beside the CPU: rates, and how far pictures, masks and videos agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from benchmarks.gpu.planned import with_plans
from benchmarks.gpu.rows import Rows, Setup
from calibration.metrics.agreement import iou
from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError, SinkError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, Image
from pipeline.frames.on_device import OnDevice
from pipeline.render.compose import composed_looks
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sinks.base import Sink
from pipeline.sinks.options import SinkOptions
from pipeline.sources import open_source
from pipeline.sources.options import Decode

_COMPARED = 50


def measure_decoders(setup: Setup, rows: Rows) -> None:
    """Both decoders alone, their pictures, and the copy of planes inside the GPU's memory; without TensorRT."""
    clip = str(setup.data / "clip.mp4")

    def stay(_: Frame) -> None:
        return

    def come_down(frame: Frame) -> None:
        assert frame.pixels.size

    ways: tuple[tuple[str, Decode, Callable[[Frame], None]], ...] = (
        ("NVDEC, frames stay there", "cuda", stay),  # first: nothing else may have used the GPU before
        ("NVDEC, frames come down", "cuda", come_down),
        ("FFmpeg on the CPU", "auto", stay),
    )
    for what, decode, use in ways:
        with rows.item("decoding", what) as row:
            row["frames"], row["fps"] = _rate(clip, decode, use)
    with rows.item("decoding", "pictures of both") as row:
        expected, got = (_first(clip, decode) for decode in ("auto", "cuda"))
        differences = [np.abs(one.astype(np.int16) - other).max() for one, other in zip(expected, got, strict=True)]
        row["frames"], row["max_difference"] = len(differences), int(max(differences))
    with rows.item("decoding", "planes copied inside the GPU") as row, open_source(clip, decode="cuda") as source:
        source.pixels = "nv12"
        (frame,) = islice(source, 1)
        assert frame.device is not None
        _copy(frame.device, row)


def _rate(clip: str, decode: Decode, use: Callable[[Frame], None]) -> tuple[int, float]:
    with open_source(clip, decode=decode) as source:
        source.pixels = "nv12"
        start_s, frames = time.perf_counter(), 0
        for frame in source:
            use(frame)
            frames += 1
        return frames, round(frames / (time.perf_counter() - start_s), 2)


def _first(clip: str, decode: Decode) -> list[Image]:
    with open_source(clip, decode=decode) as source:
        source.pixels = "nv12"
        return [frame.pixels for frame in islice(source, _COMPARED)]


def _copy(picture: OnDevice, row: dict[str, Any], runs: int = 200) -> None:
    """As an engine takes a picture: PyCUDA reads what FFmpeg has written, in the context that both share."""
    from pipeline.engines.cuda_device import CudaDevice

    height, width = picture.size_hw
    with CudaDevice() as device:
        stream, buffer, decoded = device.stream(), device.buffer(picture.nbytes), device.event()
        times_us = []
        for _ in range(runs):
            start_ns = time.perf_counter_ns()
            decoded.record()
            stream.wait_for_event(decoded)
            buffer.take_rows(0, picture.luma, (height, width), stream)
            buffer.take_rows(height * width, picture.chroma, (height // 2, width), stream)
            stream.synchronize()
            times_us.append((time.perf_counter_ns() - start_ns) / 1e3)
        buffer.to_host(picture.nbytes, stream)
        stream.synchronize()
        copied = buffer.host[: picture.nbytes].reshape(picture.shape).copy()
        buffer.free()
        del stream, decoded  # while the device is current
    row["p50_us"] = round(float(np.median(times_us)), 1)
    row["max_difference"] = int(np.abs(copied.astype(np.int16) - picture.to_host()).max())


class _Masks(Sink):
    """Keeps every so many masks, and whether a frame was still on the GPU alone when it came out."""

    def __init__(self) -> None:
        self.kept: list[Image] = []
        self.frames = self.stayed = 0

    def write(self, frame: Frame) -> None:
        """Take one frame."""
        if self.frames < _COMPARED:
            assert frame.mask is not None
            self.kept.append(frame.mask)
        self.frames += 1
        self.stayed += frame.device is not None


def measure_device_frames(setup: Setup, rows: Rows) -> None:
    """The pipeline with frames that stay on the GPU, beside the same with FFmpeg on the CPU: the GPU draws, then the CPU does.

    Then with views that stay there too, up to NVENC.
    """
    from pipeline.sources.nvdec import require_gpu

    require_gpu()  # before TensorRT uses it
    with TemporaryDirectory(prefix="edgemask.") as scratch:
        planned = with_plans(Bundle.read(setup.data / "bundle-nv12"), Path(scratch) / "bundle")
        for entry in planned.manifest.engines:
            with open_engine(planned, entry.runtime) as engine:
                engine.try_out()
                for what, compose in (("the GPU draws", "device"), ("the CPU draws", "host")):
                    with rows.item("decoding", f"{entry.runtime}, {what}") as row:
                        _compare(str(setup.data / "clip.mp4"), engine, compose, row)
                with rows.item("decoding", f"{entry.runtime}, NVENC encodes") as row:
                    _encode(str(setup.data / "clip.mp4"), engine, Path(scratch), row)


def _compare(clip: str, engine: Engine, compose: str, row: dict[str, Any]) -> None:
    """Frames per second of both decoders in the pipeline, and how far the masks agree."""
    row["engine"] = engine.description
    leave_cores_to(engine)
    found: dict[str, _Masks] = {}
    ways: tuple[tuple[str, Decode], ...] = (("cuda_fps", "cuda"), ("cpu_fps", "auto"))
    for name, decode in ways:
        renderer, sink = Renderer(Look(), engine.bundle.manifest.task), _Masks()
        views = Views(renderer, looks=composed_looks(compose, engine, renderer, steady=False))
        with open_source(clip, decode=decode) as source:
            start_s = time.perf_counter()
            run(source, engine, views, [sink])
            row[name] = round(sink.frames / (time.perf_counter() - start_s), 2)
        found[name] = sink
    got, expected = found["cuda_fps"], found["cpu_fps"]
    pairs = list(zip(got.kept, expected.kept, strict=True))
    ious = [iou(one, other, engine.bundle.manifest.task) for one, other in pairs]
    row["frames"], row["stayed"] = got.frames, got.stayed
    row["iou_mean"], row["iou_worst"] = round(float(np.mean(ious)), 5), round(min(ious), 5)
    row["max_difference"] = max(int(np.abs(one.astype(np.int16) - other).max()) for one, other in pairs)


def _encode(clip: str, engine: Engine, scratch: Path, row: dict[str, Any]) -> None:
    """Frames per second into a video by NVENC, of views that stay on the GPU and of those that come down, and how far both differ."""
    if engine.bundle.manifest.views != "nv12":
        raise OptionError("expected a bundle whose views are NV12, got BGR: benchmarks/gpu.sh prepare")
    ways = ("stay_fps", True), ("down_fps", False)
    for name, leaves in ways:
        engine.leaves_views = leaves
        renderer = Renderer(Look(), engine.bundle.manifest.task)
        views = Views(renderer, looks=composed_looks("device", engine, renderer, steady=False))
        with (
            open_source(clip, decode="cuda") as source,
            open_sink(str(scratch / f"{name}.mp4"), source.info, renderer, SinkOptions(encoder="nvenc")) as sink,
        ):
            if leaves and not sink.leaves_views:
                raise SinkError(
                    "expected a GPU with NVENC and a PyAV that encodes from its memory (18 or newer), got another"
                )
            start_s = time.perf_counter()
            frames = run(source, engine, views, [sink]).frames
            row[name] = round(frames / (time.perf_counter() - start_s), 2)
    engine.leaves_views = False
    stay, down = (_images(scratch / f"{name}.mp4") for name, _ in ways)
    row["frames"] = len(stay)
    row["psnr_worst_db"] = round(min(cv2.PSNR(one, other) for one, other in zip(stay, down, strict=True)), 2)


def _images(path: Path) -> list[Image]:
    with open_source(str(path)) as source:
        return [frame.image for frame in source]
