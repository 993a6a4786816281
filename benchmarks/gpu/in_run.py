"""What goes on in a run beside its frames, around an engine on the GPU: the measured choice, another engine that takes over, audits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.gpu.in_pipeline import MemorySource
from benchmarks.gpu.planned import with_plans
from benchmarks.gpu.rows import Rows, Setup
from benchmarks.gpu.samples import QUICK_SIZES_HW, SIZES_HW, sample_frames
from benchmarks.shared.passes import pipeline_pass
from pipeline.audit.rate import Rate
from pipeline.audit.shadow_gate import ShadowGate
from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import BackendUnavailableError
from pipeline.flow.events import Events
from pipeline.flow.inference import infer
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, Image
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.base import Sink
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import LOGGER

_PAIRS = 3
_AUDIT_BEGINS_S = 60.0
# A run that nobody takes over ends all the same.
_MOST_FRAMES = 100_000


def measure_auto(setup: Setup, rows: Rows) -> None:
    """What --backend auto takes, and what it found on the way, among the backends that are here."""
    images = _images(setup)
    count = 120 if setup.quick else 2000
    with _bundle(setup) as bundle, rows.item("run", "auto, measured") as row, _said("--backend auto") as said:
        with open_engine(bundle, "auto", tune=True) as engine:
            row["guess"] = engine.description
            done = pipeline_pass(engine, MemorySource(images, count))
            row["took"] = engine.description
        row["frames"], row["fps"] = done.frames, round(done.hz, 2)
        row["plans"] = [entry.runtime for entry in bundle.manifest.engines]
        row["told"] = " ".join(said) or "nothing: there is one way alone"


def measure_swap(setup: Setup, rows: Rows) -> None:
    """Another engine is opened and takes over while frames go through the first: how long the longest of them takes."""
    images = _images(setup)
    before, after = (20, 20) if setup.quick else (400, 400)
    with _bundle(setup) as bundle, rows.item("run", "another engine takes over") as row:
        ticks = _Ticks(after)
        engine = ReplaceableEngine(_engine(setup, bundle))
        swap = _Swap(engine, lambda: _engine(setup, bundle), before, ticks)
        try:
            renderer = Renderer(Look(), bundle.manifest.task)
            result = run(MemorySource(images, _MOST_FRAMES), engine, Views(renderer), [ticks], events=swap)
        finally:
            engine.close()
            swap.join()
        row["frames"], row["opened_s"] = result.frames, round(swap.opened_s, 3)
        row["taken"] = ticks.taken_at is not None
        gaps_ms = [(later - earlier) * 1e3 for earlier, later in zip(ticks.times_s, ticks.times_s[1:], strict=False)]
        row["usual_gap_ms"] = round(median(gaps_ms[before // 2 : before]), 3)
        row["longest_gap_ms"] = round(max(gaps_ms[before // 2 :]), 3)


def measure_audit(setup: Setup, rows: Rows) -> None:
    """Every tenth frame is computed by the FP32 program too, on the CPU: frames per second with and without, in turn.

    Where no TensorRT runs, the engine is PyTorch's.
    """
    images = _images(setup)
    count, most_pairs = (10, 1) if setup.quick else (600, _PAIRS)
    with (
        _bundle(setup, or_torch=True) as bundle,
        rows.item("run", "audit of 1/10") as row,
        _engine(setup, bundle) as engine,
    ):
        row["engine"] = engine.description
        gate = ShadowGate(bundle, Rate(frames=10))
        try:
            _until_it_audits(gate, engine, images)
            before = gate.state()
            pairs = [
                (_rate(gate, engine, images, count, audits=False), _rate(gate, engine, images, count, audits=True))
                for _ in range(most_pairs)
            ]
            state = gate.state()
        finally:
            gate.close()
        row["fps_without"], row["fps"] = (round(median(rates), 2) for rates in zip(*pairs, strict=True))
        row["ratio"] = round(median(with_it / without for without, with_it in pairs), 4)
        row["audits"], row["skipped"] = (state[name] - before[name] for name in ("total", "skipped"))
        row["iou_mean"] = state["mean"]


@contextmanager
def _bundle(setup: Setup, *, or_torch: bool = False) -> Iterator[Bundle]:
    """That of FP16 with plans for this GPU, or none for PyTorch; on a CPU that of FP32, to try the code."""
    if setup.device == "cpu":
        yield Bundle.read(setup.data / "bundle-fp32")
        return
    with TemporaryDirectory(prefix="edgemask.") as scratch:
        bundle = Bundle.read(setup.data / "bundle-fp16")
        try:
            bundle = with_plans(bundle, Path(scratch) / "bundle")
        except BackendUnavailableError as error:
            if not or_torch:
                raise BackendUnavailableError(f"expected TensorRT or TensorRT-RTX, got none: {error}") from error
        yield bundle


def _engine(setup: Setup, bundle: Bundle) -> Engine:
    if setup.device == "cuda" and not bundle.manifest.engines:
        from benchmarks.gpu.torch_engine import TorchGraphEngine  # not beside TensorRT
        from benchmarks.gpu.torch_program import TrainedNetwork, settle

        settle("cuda")
        return TorchGraphEngine(bundle, TrainedNetwork(setup.data).program("fp16", "cuda", channels_last=True))
    engine = open_engine(bundle, "onnxruntime" if setup.device == "cpu" else bundle.manifest.engines[0].runtime)
    with ExitStack() as stack:
        stack.callback(engine.close)
        engine.try_out()
        stack.pop_all()
    return engine


def _images(setup: Setup) -> list[Image]:
    return [frames_nhwc[0] for frames_nhwc in sample_frames((QUICK_SIZES_HW if setup.quick else SIZES_HW)[0])]


class _Ticks(Sink):
    """Notes when each frame came, and stops the run so many frames after another engine has taken over."""

    def __init__(self, after: int) -> None:
        self._after = after
        self.times_s: list[float] = []
        self.taken_at: int | None = None
        self.gave_up = False

    def write(self, _: Frame) -> None:
        """Note the time."""
        self.times_s.append(time.perf_counter())

    @property
    def stopped(self) -> bool:  # type: ignore[override]
        """Whether there were enough."""
        return self.gave_up or (self.taken_at is not None and len(self.times_s) >= self.taken_at + self._after)


class _Swap(Events):
    """After so many frames, opens another engine on a thread of its own and has it take over."""

    def __init__(self, engine: ReplaceableEngine, make: Callable[[], Engine], before: int, ticks: _Ticks) -> None:
        super().__init__()
        self._engine, self._make, self._before, self._ticks = engine, make, before, ticks
        self._thread = threading.Thread(target=self._replace, name="swap", daemon=True)
        self._problem: Exception | None = None
        self.opened_s = 0.0

    def written(self, frame: Frame, dropped: int) -> None:
        """Begin after so many frames."""
        if len(self._ticks.times_s) == self._before:
            self._thread.start()

    def _replace(self) -> None:
        try:
            start_s = time.perf_counter()
            engine = self._make()
            self.opened_s = time.perf_counter() - start_s
            self._engine.replace(engine, self._taken)
        except Exception as error:  # noqa: BLE001 - told where it is waited for
            self._problem, self._ticks.gave_up = error, True

    def _taken(self) -> None:
        self._ticks.taken_at = len(self._ticks.times_s)

    def join(self) -> None:
        """Wait for the thread.

        Raises:
            Exception: that the other engine could not be opened with.
        """
        if self._thread.ident is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._problem


def _rate(gate: ShadowGate, engine: Engine, images: list[Image], count: int, *, audits: bool) -> float:
    start_s = time.perf_counter()
    for _ in infer(
        iter(MemorySource(images, count)), engine, StageTimer(), computed=gate.computed if audits else lambda _: None
    ):
        gate.pulse()
    hz = count / (time.perf_counter() - start_s)
    end_s = time.monotonic() + _AUDIT_BEGINS_S
    while gate.is_busy and time.monotonic() < end_s:  # the next pass is not to share the machine with it
        gate.pulse()
        time.sleep(0.01)
    return hz


def _until_it_audits(gate: ShadowGate, engine: Engine, images: list[Image]) -> None:
    """The process that computes is there, and has done so."""
    end_s = time.monotonic() + _AUDIT_BEGINS_S
    while gate.newest("memory") is None:
        if time.monotonic() > end_s:
            raise BackendUnavailableError(f"expected an audit within {_AUDIT_BEGINS_S:.0f} s, got none")
        _rate(gate, engine, images, 10, audits=True)


@contextmanager
def _said(prefix: str) -> Iterator[list[str]]:
    """What the project logs in the body, as far as it begins so."""
    said: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(prefix):
                said.append(record.getMessage())

    handler, logger = Lines(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
