"""A network as one TensorRT engine by Torch-TensorRT: exported, converted, and whole."""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from calibration.inference_form import Scores
from compile.program.program import FrameProgram
from pipeline.engines.torch_tensorrt_library import first_line, one_line, public_version, quiet
from pipeline.errors import CompileError
from pipeline.signals import uninterrupted

_ENGINE = "_run_on_acc"  # how Torch-TensorRT names its engines
_LOG_LINES = 3


def operators_outside(compiled: GraphModule) -> dict[str, int]:
    """Which operators of a network Torch-TensorRT leaves to PyTorch, with how often; no entry if it converts whole.

    Args:
        compiled: what ``torch_tensorrt.dynamo.compile`` gives, with its ``dryrun`` or without.
    """
    counts: Counter[str] = Counter()
    for node in compiled.graph.nodes:
        if node.op == "call_module":
            inner = compiled.get_submodule(str(node.target))
            if str(node.target).startswith(_ENGINE):
                continue
            if isinstance(inner, GraphModule):
                counts.update(operators_outside(inner))
            else:
                counts[type(inner).__name__] += 1
        elif node.op == "call_method" or (node.op == "call_function" and node.target is not operator.getitem):
            counts[str(node.target)] += 1
    return dict(counts)


def engine_count(compiled: GraphModule) -> int:
    """How many TensorRT engines a network has become."""
    return sum(node.op == "call_module" and str(node.target).startswith(_ENGINE) for node in compiled.graph.nodes)


def require_whole(compiled: GraphModule) -> None:
    """Refuse a network that is not one engine.

    Raises:
        CompileError: operators are left to PyTorch, with their names.
    """
    outside, engines = operators_outside(compiled), engine_count(compiled)
    if outside or engines != 1:
        names = ", ".join(f"{name} ({count}×)" for name, count in sorted(outside.items())) or "none"
        raise CompileError(
            f"Torch-TensorRT: expected the whole network as one engine, got {engines} engines and these operators left "
            f"to PyTorch: {names}: take --target onnx or tensorrt"
        )


def batch_axis(batch: int) -> dict[int, Any]:
    """The axes of the network's input that may change.

    Args:
        batch: the most pictures at once.
    """
    return {0: Dim("N", min=1, max=batch)} if batch > 1 else {}


def export_network(program: FrameProgram, frames: Tensor, batch: int) -> tuple[ExportedProgram, Tensor]:
    """Export the network inside a frame program; gives it and the input that it was traced with.

    Raises:
        CompileError: the exporter fails.
    """
    with torch.no_grad(), told_as_ours("export the network"):
        x = program.before(frames)
        x = x.half() if program.half_network else x
        axes = (batch_axis(batch),)
        return torch.export.export(Scores(program.network), (x,), dynamic_shapes=axes, strict=False), x


def input_spec(torch_tensorrt: ModuleType, x: Tensor, batch: int) -> Any:
    """What Torch-TensorRT is told of the network's input ``x``, for up to ``batch`` pictures at once."""
    one = (1, *x.shape[1:])
    if batch == 1:
        return torch_tensorrt.Input(one, dtype=x.dtype)
    most = (batch, *x.shape[1:])
    return torch_tensorrt.Input(min_shape=one, opt_shape=most, max_shape=most, dtype=x.dtype)


def build_options(torch_tensorrt: ModuleType, device: torch.device, timings: Path) -> dict[str, Any]:
    """How Torch-TensorRT is to build; ``timings`` is the file that TensorRT keeps its measurements in."""
    options: dict[str, Any] = {
        "device": torch_tensorrt.Device(gpu_id=device.index or 0),
        "min_block_size": 1,
        # Torch-TensorRT's own cache of engines knows neither weights nor arguments of operators, and makes engines refittable, which
        # is slower. So whole programs are kept by all that goes into them, and TensorRT keeps its timings.
        "immutable_weights": True,
        "timing_cache_path": str(timings),
    }
    if tuple(int(part) for part in public_version(torch_tensorrt.__version__).split(".")[:2]) < (2, 13):
        options["use_explicit_typing"] = True  # later there is nothing else
    return options


def compile_network(
    torch_tensorrt: ModuleType, exported: ExportedProgram, spec: Any, options: Mapping[str, Any]
) -> GraphModule:
    """Convert a network, or with ``dryrun`` only find what would be converted.

    Raises:
        CompileError: it does not convert, with Torch-TensorRT's words.
    """
    # TensorRT calls a logger in Python, through which no exception may travel: a signal waits.
    with torch.no_grad(), uninterrupted(), told_as_ours("convert the network"):
        compiled: GraphModule = torch_tensorrt.dynamo.compile(exported, arg_inputs=[spec], **options)
    return compiled


@contextlib.contextmanager
def told_as_ours(what: str) -> Iterator[None]:
    """Quiet, and any exception as a ``CompileError`` with TensorRT's last words."""
    with quiet() as logged:
        try:
            yield
        except Exception as error:  # they are exceptions of every layer
            words = " | ".join(dict.fromkeys([one_line(error), *map(first_line, logged[-_LOG_LINES:])]))
            raise CompileError(f"Torch-TensorRT with torch {torch.__version__} cannot {what}: {words}") from error
