"""The frame program as a saved PyTorch program, its network one TensorRT engine by Torch-TensorRT, for the GPU of this machine.

What is before and after the network stays PyTorch, inside the same program: Torch-TensorRT converts no cast to uint8, and with that
outside the engine has one size whatever the frames have. The network must convert whole: one engine, no operator left to PyTorch.

Types live in the program (strongly typed), as everywhere: FP16 is the network in FP16, never a builder's flag.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from compile.plans.torch_tensorrt_network import (
    batch_axis,
    build_options,
    compile_network,
    export_network,
    input_spec,
    require_whole,
    told_as_ours,
)
from compile.program.onnx_export import MAX_SIDE, example_frames, frame_axes, lower_pooling
from compile.program.program import FrameProgram
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.bundles.whole_file import write_whole
from pipeline.engines.torch_tensorrt import cuda_is_here
from pipeline.engines.torch_tensorrt_library import (
    RUNTIME,
    load_torch_tensorrt,
    public_version,
    tensorrt_version,
)
from pipeline.errors import BackendUnavailableError, CompileError

SizeHW = tuple[int, int]
Shape = tuple[int, int, int, int]
Step = Callable[[str, int, int], None]

_STEPS = ("check operators", "build the engine", "save")
# Of an entry of the manifest; there is no accelerator and no other hardware.
_KEYS = ("file", "runtime", "version", "versions", "sms", "hardware", "version_compatible", "profile", "size_bytes")


@dataclass(frozen=True, slots=True)
class TorchTensorRTProgram:
    """A saved program and what it is for.

    Attributes:
        content: as ``torch.export`` saved it, for ``torch.export.load`` after ``import torch_tensorrt``.
        versions: of torch, torch_tensorrt and tensorrt that built it.
        sm: compute capability of the GPU as NVIDIA writes it without the dot, such as 90 for 9.0; no other runs it.
        profile: smallest, usual and largest frames as (N, H, W, 3).
    """

    content: bytes
    versions: Mapping[str, str]
    sm: int
    profile: tuple[Shape, Shape, Shape]

    def entry(self, precision: str) -> PlanEntry:
        """All but the content, for the manifest."""
        return PlanEntry(
            file=self.file_name(precision),
            runtime=RUNTIME,
            version=self.versions["torch_tensorrt"],
            versions=dict(self.versions),
            sms=(self.sm,),
            profile=self.profile,
            size_bytes=len(self.content),
            keys=_KEYS,
        )

    def file_name(self, precision: str) -> str:
        """Where it lies in a bundle, such as ``engines/torch_tensorrt-2.13-sm90-fp16.pt2``."""
        version = ".".join(self.versions["torch_tensorrt"].split(".")[:2])
        return f"engines/torch_tensorrt-{version}-sm{self.sm}-{precision}.pt2"


def build_torch_tensorrt(
    program: FrameProgram,
    *,
    precision: str,
    frame_size_hw: SizeHW | None = None,
    batch: int = 1,
    engine_cache: Path | None = None,
    step: Step | None = None,
) -> TorchTensorRTProgram:
    """Build for the GPU of this machine.

    Args:
        program: around a network of ours; moved to the GPU, and its pooling lowered, in place.
        precision: "fp32" or "fp16", as ``program`` was made with.
        frame_size_hw: the fixed (height, width) of the frames, or None for any.
        batch: the most frames at once.
        engine_cache: a folder for what was built, by the sha256 of all that goes into it, and for TensorRT's timings.
        step: told of each step: phase, steps done, steps in all.

    Raises:
        BackendUnavailableError: Torch-TensorRT or a GPU is not here.
        CompileError: the network does not convert, or not whole, with the operators' names or Torch-TensorRT's words.
    """
    own = "fp16" if program.half_network else "fp32"
    if precision != own:
        raise CompileError(f"--precision: expected {own}, which the program was made with, got {precision}")
    if not cuda_is_here():
        raise BackendUnavailableError(
            "Torch-TensorRT: expected an NVIDIA GPU to build for, got none: take another --target"
        )
    torch_tensorrt = load_torch_tensorrt()
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    versions = {
        "torch": public_version(torch.__version__),
        "torch_tensorrt": public_version(torch_tensorrt.__version__),
        "tensorrt": tensorrt_version(),
    }
    sm = 10 * major + minor
    content = build_content(
        torch_tensorrt, program.to(device), device, frame_size_hw, batch, engine_cache, f"{versions} sm{sm}", step
    )
    return TorchTensorRTProgram(content, versions, sm, frame_profile(frame_size_hw, batch))


def frame_profile(frame_size_hw: SizeHW | None, batch: int) -> tuple[Shape, Shape, Shape]:
    """Smallest, usual and largest frames as (N, H, W, 3) that a program takes."""
    smallest, usual, largest = (frame_size_hw,) * 3 if frame_size_hw else ((1, 1), (720, 1280), (MAX_SIDE, MAX_SIDE))
    return (1, *smallest, 3), (batch, *usual, 3), (batch, *largest, 3)


# Many parameters: all that a program depends on, each of which tests change alone; and who is told.
def build_content(
    torch_tensorrt: ModuleType,
    program: FrameProgram,
    device: torch.device,
    frame_size_hw: SizeHW | None,
    batch: int,
    engine_cache: Path | None,
    builder: str,
    step: Step | None,
) -> bytes:
    """Build the saved program, or take it from the cache; ``builder`` names what builds it and for which GPU.

    Raises:
        CompileError: the network does not convert, or not whole.
    """
    lower_pooling(program.network, program.before.size_hw)
    program.eval()
    frames = example_frames(frame_size_hw, min(batch, 2)).to(device)  # two, so that the batch is not taken for fixed
    axes = {axis: sizes for axis, sizes in frame_axes(frame_size_hw).items() if axis != 0} | batch_axis(batch)
    with contextlib.ExitStack() as stack:
        if engine_cache is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemask-")))
            kept = None
        else:
            folder = _own_folder(engine_cache)
            kept = folder / f"{_digest(export_around(program, program.network, frames, axes), builder)}.pt2"
            if kept.exists():
                return kept.read_bytes()
        timings = folder / f"timings-{hashlib.sha256(builder.encode()).hexdigest()[:16]}.cache"
        tell = _teller(step)
        tell()
        exported, x = export_network(program, frames, batch)
        options, spec = build_options(torch_tensorrt, device, timings), input_spec(torch_tensorrt, x, batch)
        require_whole(compile_network(torch_tensorrt, exported, spec, {**options, "dryrun": True}))
        tell()
        compiled = compile_network(torch_tensorrt, exported, spec, options)
        require_whole(compiled)
        tell()
        content = _save(torch_tensorrt, export_around(program, _Compiled(compiled), frames, axes))
        if kept is not None:
            write_whole(kept, content, mode=0o600)
    return content


class _Compiled(nn.Module):
    """The compiled network in the place of the network."""

    def __init__(self, compiled: GraphModule) -> None:
        super().__init__()
        self.compiled = compiled

    def logits(self, x: Tensor) -> Tensor:
        scores: Tensor = self.compiled(x)
        return scores


def export_around(
    program: FrameProgram, network: nn.Module, frames: Tensor, axes: Mapping[int, Any]
) -> ExportedProgram:
    """Export a frame program with another network in it, for frames whose ``axes`` may change.

    Raises:
        CompileError: the exporter fails.
    """
    own, program.network = program.network, network
    try:
        with torch.no_grad(), told_as_ours("export the program around the network"):
            exported = torch.export.export(
                program,
                (frames,),
                dynamic_shapes=(dict(axes),),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    finally:
        program.network = own
    return without_assertions(exported)


def without_assertions(exported: ExportedProgram) -> ExportedProgram:
    """Remove what the exporter supposes of the frames' size because the example had it, such as "not smaller than the network's".

    Every operator takes the sizes that were supposed away. The limits of the axes, which were asked for, are checked elsewhere.
    """
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return exported


def _save(torch_tensorrt: ModuleType, exported: ExportedProgram) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgemask-") as folder, told_as_ours("save the program"):
        path = Path(folder) / "program.pt2"
        exported.example_inputs = None  # megabytes of zeros
        torch_tensorrt.save(exported, str(path))
        return path.read_bytes()


def _teller(step: Step | None) -> Callable[[], None]:
    steps = iter(enumerate(_STEPS, 1))

    def tell() -> None:
        done, phase = next(steps)
        if step is not None:
            step(phase, done, len(_STEPS))

    return tell


def _digest(exported: ExportedProgram, builder: str) -> str:
    """The sha256 of everything that goes into a program: its code, its numbers, and what builds it."""
    digest = hashlib.sha256(f"{builder}\n{exported.graph_module.code}\n{exported.range_constraints}\n".encode())
    tensors = {**exported.state_dict, **exported.constants}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _own_folder(folder: Path) -> Path:
    """The cache's folder, made if need be. Whoever can write in it decides what is run.

    Raises:
        CompileError: it cannot be made, or others may write in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise CompileError(f"{folder}: cannot be used as engine cache ({error.strerror}): choose another") from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CompileError(
            f"{folder}: expected a folder that only its owner, you, may write, got permissions "
            f"{stat.S_IMODE(status.st_mode):o} and owner {status.st_uid}: choose another engine cache, or chmod 700 it"
        )
    return folder
