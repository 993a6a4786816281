"""PyTorch module to ONNX: one file, dynamic frames, with the exporter's chatter kept away from the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compile.errors import CompileError
from compile.program import FrameProgram

OPSET = 18
MAX_SIDE = 16384
MAX_BATCH = 64


def export_program(program: FrameProgram, frame_size_hw: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Export a whole frame program.

    Args:
        program: around a network of ours; its pooling is lowered to ``ceil_mode=False`` in place.
        frame_size_hw: a fixed (height, width) of the frames, or None for any.

    Returns:
        A checked model with the input "frames" (N, H, W, 3) uint8 and the output "masks" (N, H, W) uint8.

    Raises:
        CompileError: the network cannot be exported at this size, or the exporter fails.
    """
    lower_pooling(program.network, program.before.size_hw)
    return export_module(program, (example_frames(frame_size_hw),), (frame_axes(frame_size_hw),), ("frames",), "masks")


def export_module(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    axes: Sequence[dict[int, Any] | None],
    input_names: Sequence[str],
    output_name: str,
) -> onnx.ModelProto:
    """Export any module with one output, in evaluation mode.

    Raises:
        CompileError: the exporter fails.
    """
    module.eval()
    try:
        with _quiet():
            exported = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(axes),
                input_names=list(input_names),
                output_names=[output_name],
                verbose=False,
            )
        if exported is None:
            raise CompileError("the ONNX exporter gave nothing")
        model = without_traces(exported.model_proto)
        onnx.checker.check_model(model, full_check=True)
    except CompileError:
        raise
    except Exception as error:  # the exporter wraps any exception of any layer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(
            f"the network cannot be exported to ONNX with torch {torch.__version__}: {reason}"
        ) from error
    return model


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's stack traces, which hold the paths of the machine it ran on; changes and returns ``model``."""
    for item in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


def lower_pooling(network: nn.Module, size_hw: tuple[int, int]) -> None:
    """Make the pooling round down, which Torch-TensorRT's converters ask for and which is the same where sizes divide evenly.

    Raises:
        CompileError: at this size it would not be the same.
    """
    set_ceil_mode = getattr(network, "set_ceil_mode", None)
    if set_ceil_mode is None:
        return
    multiple = int(network.size_multiple)  # type: ignore[arg-type]
    if any(side % multiple for side in size_hw):
        fitting = "×".join(str(max(multiple, round(side / multiple) * multiple)) for side in size_hw)
        raise CompileError(
            f"--imgsz: expected multiples of {multiple} for this network, got {size_hw[0]}×{size_hw[1]}: take {fitting}"
        )
    set_ceil_mode(False)


def example_frames(frame_size_hw: tuple[int, int] | None, count: int = 2) -> Tensor:
    """Frames to trace with: (count, H, W, 3) uint8. Any content does; two frames, so that the batch is not taken for fixed."""
    height, width = frame_size_hw or (480, 640)
    return torch.zeros((count, height, width, 3), dtype=torch.uint8)


def frame_axes(frame_size_hw: tuple[int, int] | None) -> dict[int, Any]:
    """The axes of the frames that may change: N always, H and W unless they are fixed."""
    axes: dict[int, Any] = {0: torch.export.Dim("N", min=1, max=MAX_BATCH)}
    if frame_size_hw is None:
        axes[1] = torch.export.Dim("H", min=1, max=MAX_SIDE)
        axes[2] = torch.export.Dim("W", min=1, max=MAX_SIDE)
    return axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter logs what it cannot know (no torchvision) and warns of its own internals; errors come as exceptions.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
