"""The frame program in PyTorch on a GPU: eager, compiled, and as a CUDA graph, each against the same program on the CPU.

TF32 is off: FP32 means FP32. cuDNN tries its algorithms on the first run of a shape, which is not timed. PyTorch is seeded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rows import Rows, Setup
from benchmarks.gpu.samples import (
    QUICK_SIZES_HW,
    SIZES_HW,
    Frames,
    Masks,
    Sample,
    agreement,
    percentiles,
    sample_frames,
)
from benchmarks.gpu.smi import nvidia_smi
from compile.networks.checkpoint import load_network
from compile.networks.contract import Contract
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import Bundle, Task

Program = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(N, H, W, 3) uint8 to masks (N, H, W) uint8 and counts (N,) int32."""


@dataclass(frozen=True)
class Variant:
    """One way to run the frame program."""

    precision: str
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False

    def __str__(self) -> str:
        words = ["torch.compile" if self.compiled else "eager", self.precision]
        return " ".join(
            [*words, *(["channels_last"] if self.channels_last else []), *(["CUDA graph"] if self.graph else [])]
        )


_EAGER_AND_GRAPHS = (
    Variant("fp32"),
    Variant("fp16"),
    Variant("fp16", channels_last=True),
    Variant("fp32", graph=True),
    Variant("fp16", graph=True),
    Variant("fp16", channels_last=True, graph=True),
)
_COMPILED = (
    Variant("fp16", compiled=True),
    Variant("fp16", compiled=True, graph=True),
    Variant("fp16", channels_last=True, compiled=True, graph=True),
    Variant("fp32", compiled=True),
)


class TrainedNetwork:
    """The weights and bundles that ``benchmarks/gpu.sh prepare`` wrote, as frame programs.

    Not through ``compile.program.open_network``, which imports the exporter's packages: a machine that only runs one need not have
    them.

    Args:
        data: the folder.

    Attributes:
        bundles: by precision.
    """

    def __init__(self, data: Path) -> None:
        self.bundles = {precision: Bundle.read(data / f"bundle-{precision}") for precision in ("fp32", "fp16")}
        manifest = self.bundles["fp32"].manifest
        self._contract = Contract.from_dict(manifest.contract)
        self._network = load_network(data / str(manifest.weights["file"])).model
        self.task: Task = manifest.task

    def program(self, precision: str, device: str, *, channels_last: bool = False) -> FrameProgram:
        """The frame program in a precision, with the layers in FP32 that the bundle keeps so."""
        keep = self.bundles[precision].manifest.layers
        network = copy.deepcopy(self._network)
        program = FrameProgram(network, self._contract, half=precision == "fp16", keep=keep).eval().to(device)
        return program.to(memory_format=torch.channels_last) if channels_last else program  # type: ignore[call-overload]


def settle(device: str) -> None:
    """Make PyTorch's results and times comparable: seeded, FP32 as FP32, the fastest algorithms."""
    torch.manual_seed(0)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def measure_eager_and_graphs(setup: Setup, rows: Rows) -> None:
    """Eager and CUDA graphs."""
    _measure(setup, rows, _EAGER_AND_GRAPHS)


def measure_compiled(setup: Setup, rows: Rows) -> None:
    """``torch.compile``, which takes its time before the first frame."""
    _measure(setup, rows, _COMPILED)


def _measure(setup: Setup, rows: Rows, variants: Sequence[Variant]) -> None:
    settle(setup.device)
    network = TrainedNetwork(setup.data)
    runs = 3 if setup.quick else 300
    for size_hw in QUICK_SIZES_HW if setup.quick else SIZES_HW:
        samples = take_samples(network, size_hw)
        for variant in variants:
            if variant.graph and setup.device != "cuda":
                continue
            with rows.item("frame program", str(variant), size=f"{size_hw[0]}x{size_hw[1]}") as row:
                _measure_variant(network, variant, samples, runs, setup, row)


def _measure_variant(
    network: TrainedNetwork,
    variant: Variant,
    samples: Sequence[Sample],
    runs: int,
    setup: Setup,
    row: dict[str, Any],
) -> None:
    device: str = setup.device
    program: Program = network.program(variant.precision, device, channels_last=variant.channels_last)
    if variant.compiled:
        torch._dynamo.reset()
        program = torch.compile(program, dynamic=False, backend="eager" if setup.quick else "inductor")
    frames = torch.tensor(samples[0].frames_nhwc, device=device)  # a copy, for other samples are put there
    with torch.inference_mode():
        start_s = time.perf_counter()
        program(frames)[0].cpu()
        row["first_s"] = round(time.perf_counter() - start_s, 3)
        if variant.graph:
            graph, masks = capture(program, frames)

            def run() -> Tensor:
                graph.replay()
                return masks
        else:

            def run() -> Tensor:
                return program(frames)[0]

        row.update(percentiles(time_runs(run, device, runs)))
        if variant.graph:
            row["under load"] = _under_load(run)

        def masks_of(sample_nhwc: Frames) -> Masks:
            frames.copy_(torch.from_numpy(sample_nhwc))
            found: Masks = run().cpu().numpy()
            return found

        row.update(agreement(masks_of, samples, network.task))


def capture(
    program: Program, frames: Tensor, stream: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record the program on these frames' memory.

    Returns:
        The graph, and the masks that each replay writes.
    """
    stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set themselves up on their first runs, which cannot be recorded
            program(frames)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        masks, _ = program(frames)
    return graph, masks


def take_samples(network: TrainedNetwork, size_hw: tuple[int, int]) -> list[Sample]:
    """The sample pictures at one size, with the masks of the FP32 program on the CPU."""
    program = network.program("fp32", "cpu")
    with torch.inference_mode():
        return [
            Sample(frames_nhwc, program(torch.from_numpy(frames_nhwc))[0].numpy()[0])
            for frames_nhwc in sample_frames(size_hw)
        ]


def time_runs(run: Callable[[], object], device: str, runs: int) -> list[float]:
    """Milliseconds of each run after a warm-up; on a GPU between events before and after it."""
    for _ in range(max(2, runs // 10)):
        run()
    if device != "cuda":
        times_ms = []
        for _ in range(runs):
            start_ns = time.perf_counter_ns()
            run()
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        return times_ms
    torch.cuda.synchronize()
    events = [(_timing_event(), _timing_event()) for _ in range(runs)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _under_load(run: Callable[[], object]) -> dict[str, str]:
    """Clocks and power while the GPU is busy, which is when they count."""
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(nvidia_smi, ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"))
        while not answer.done():
            for _ in range(50):
                run()
            torch.cuda.synchronize()
    return answer.result()
