"""An engine in PyTorch, with CUDA graphs and three frames in flight: what the pipeline is measured with where TensorRT does not run."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.in_pipeline import measure_around
from benchmarks.gpu.rows import Rows, Setup
from benchmarks.gpu.torch_program import TrainedNetwork, capture, settle
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import Bundle
from pipeline.engines.base import Computed, Engine


class _Slot:
    """One frame in flight: page-locked memory, the GPU's, and the recorded program between the two."""

    def __init__(self, program: FrameProgram, frames_nhwc: NDArray[np.uint8], compute: torch.cuda.Stream) -> None:
        self.host_frames = torch.empty(frames_nhwc.shape, dtype=torch.uint8, pin_memory=True)
        self.host_masks = torch.empty(frames_nhwc.shape[:3], dtype=torch.uint8, pin_memory=True)
        self.frames = torch.from_numpy(frames_nhwc).to("cuda")
        self.graph, self.masks = capture(program, self.frames, compute)
        self.uploaded, self.computed, self.downloaded = _event(), _event(), _event()


class TorchGraphEngine(Engine):
    """The frame program in PyTorch with as many in flight, and the same three streams, as ``pipeline.engines.tensorrt`` has."""

    in_flight = 3

    def __init__(self, bundle: Bundle, program: FrameProgram) -> None:
        super().__init__(bundle)
        self._program = program
        self._upload, self._compute, self._download = _stream(), _stream(), _stream()
        self._busy: deque[_Slot] = deque()
        self._free: deque[_Slot] = deque()
        self.description = f"PyTorch {torch.__version__}, CUDA graphs, {torch.cuda.get_device_name()}"

    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        with torch.inference_mode():
            slot = self._slot_for(frames_nhwc)
            np.copyto(slot.host_frames.numpy(), frames_nhwc)
            with torch.cuda.stream(self._upload):
                slot.frames.copy_(slot.host_frames, non_blocking=True)
                slot.uploaded.record()
            with torch.cuda.stream(self._compute):
                slot.uploaded.wait()
                slot.graph.replay()
                slot.computed.record()
            with torch.cuda.stream(self._download):
                slot.computed.wait()
                slot.host_masks.copy_(slot.masks, non_blocking=True)
                slot.downloaded.record()
        self._busy.append(slot)

    def _collect(self) -> Computed:
        slot = self._busy.popleft()
        slot.downloaded.synchronize()
        self._free.append(slot)
        return Computed(slot.host_masks.numpy().copy())

    def _close(self) -> None:
        torch.cuda.synchronize()
        self._busy.clear()
        self._free.clear()

    def _slot_for(self, frames_nhwc: NDArray[np.uint8]) -> _Slot:
        while self._free:
            slot = self._free.popleft()
            if slot.host_frames.shape == frames_nhwc.shape:
                return slot
        return _Slot(self._program, frames_nhwc, self._compute)


class TorchCpuEngine(Engine):
    """The frame program in PyTorch on the CPU: what the GPU's engine is tried with where there is none."""

    def __init__(self, bundle: Bundle, program: FrameProgram) -> None:
        super().__init__(bundle)
        self._program = program
        self._masks: deque[NDArray[np.uint8]] = deque()
        self.description = f"PyTorch {torch.__version__}, CPU"

    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        with torch.inference_mode():
            self._masks.append(self._program(torch.from_numpy(frames_nhwc))[0].numpy())

    def _collect(self) -> Computed:
        return Computed(self._masks.popleft())

    def _close(self) -> None:
        self._masks.clear()


def measure_torch(setup: Setup, rows: Rows) -> None:
    """The pipeline around PyTorch: FP16 on a GPU, FP32 on a CPU."""
    settle(setup.device)
    network = TrainedNetwork(setup.data)
    on_gpu = setup.device == "cuda"
    precision = "fp16" if on_gpu else "fp32"

    def make() -> Engine:
        program = network.program(precision, setup.device, channels_last=True)
        return (TorchGraphEngine if on_gpu else TorchCpuEngine)(network.bundles[precision], program)

    measure_around(setup, rows, f"PyTorch {precision}", make)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
