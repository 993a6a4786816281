"""PyTorch on a GPU in the loop that tutorials show, compiled by Torch-TensorRT or by ``torch.compile``.

The network has the bundle's precision, the layers that stay FP32 included, so that what differs is what runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.torch_program import settle
from benchmarks.peers.loops import Blob, Network, numpy_overlay, run_loop
from benchmarks.peers.runs import Job, Run
from calibration.inference_form import Scores
from compile.networks.checkpoint import load_network
from compile.networks.contract import Contract
from compile.plans.torch_tensorrt_network import build_options, compile_network, export_network, input_spec
from compile.program.onnx_export import example_frames, lower_pooling
from compile.program.program import FrameProgram
from pipeline.engines.torch_tensorrt_library import load_torch_tensorrt, one_line
from pipeline.errors import BackendUnavailableError, CompileError, ModelError

Compiler = Literal["torch.compile", "torch-tensorrt"]


def torch_loop(job: Job, folder: Path, compiler: Compiler) -> Run:
    """PyTorch on the GPU, and numpy for the overlay.

    Raises:
        BackendUnavailableError: there is no GPU for PyTorch, or the network cannot be had, compiled or run.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__}: expected an NVIDIA GPU, got none: install a PyTorch with CUDA on a machine that has one"
        )
    try:
        return run_loop(job, folder, compiled_network(job, compiler, torch.device("cuda")), numpy_overlay)
    except RuntimeError as error:  # of CUDA, and of torch.compile, which compiles in the first run
        raise BackendUnavailableError(f"PyTorch {torch.__version__}: {one_line(error)}") from error


def compiled_network(job: Job, compiler: Compiler, device: torch.device) -> Network:
    """The network as a compiler makes it; the last sigmoid is PyTorch's.

    Raises:
        BackendUnavailableError: it is no network of ours, the bundle is INT8, or the compiler is not here or fails.
    """
    manifest = job.bundle.manifest
    if manifest.precision == "int8":
        raise BackendUnavailableError("PyTorch: expected a bundle in fp32 or fp16, got int8: give another --model")
    settle(device.type)
    half = manifest.precision == "fp16"
    try:
        network = load_network(job.network).model
        contract = Contract("peers", manifest.network_size_hw)
        program = FrameProgram(network, contract, half=half, keep=manifest.layers).eval().to(device)
        run = _torch_compile(program) if compiler == "torch.compile" else _torch_tensorrt(program, device)
    except (ModelError, CompileError) as error:
        raise BackendUnavailableError(str(error)) from error

    def forward(blob: Blob) -> Blob:
        with torch.inference_mode():
            x = torch.from_numpy(blob).to(device)
            scores = run(x.half() if half else x)
            return np.asarray(torch.sigmoid(scores.float()).cpu().numpy(), np.float32)

    return forward


def _torch_compile(program: FrameProgram) -> Callable[[Tensor], Tensor]:
    return torch.compile(Scores(program.network), dynamic=False)


def _torch_tensorrt(program: FrameProgram, device: torch.device) -> Callable[[Tensor], Tensor]:
    torch_tensorrt = load_torch_tensorrt()
    size_hw = program.before.size_hw
    lower_pooling(program.network, size_hw)
    exported, x = export_network(program, example_frames(size_hw, 1).to(device), batch=1)
    with tempfile.TemporaryDirectory(prefix="edgemask.") as folder:
        options = build_options(torch_tensorrt, device, Path(folder) / "timings")
        return compile_network(torch_tensorrt, exported, input_spec(torch_tensorrt, x, 1), options)
