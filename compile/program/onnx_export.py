"""PyTorch module to ONNX: one file, dynamic frames, with the exporter's chatter kept away from the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxscript  # noqa: F401  torch's exporter needs it: missing, it shall be told before any work
import torch
from onnx import version_converter
from torch import Tensor, nn

from calibration.int8.quantized import IN_ONNX, QuantizedLayer
from calibration.int8.quantized import OPSET as INT8_OPSET
from compile.program.program import FrameProgram
from compile.program.resizes import with_constant_scales
from pipeline.bundles.bundle import FRAMES, MASKS, NOT_FINITE
from pipeline.errors import CompileError
from pipeline.frames.pixels import Pixels, frames_shape, input_type

OPSET = 18
MAX_SIDE = 16384
MAX_BATCH = 64


def export_program(
    program: FrameProgram, frame_size_hw: tuple[int, int] | None = None, *, takes_batch: bool = True
) -> onnx.ModelProto:
    """Export a whole frame program.

    Args:
        program: around a network of ours; its pooling is lowered to ``ceil_mode=False`` in place.
        frame_size_hw: a fixed (height, width) of the frames, or None for any.
        takes_batch: whether the network takes several pictures at once; else N is 1.

    Returns:
        A checked model with the input "frames", as ``FrameToInput`` takes them, and the outputs "masks" (N, H, W) uint8 and
        "not_finite" (N,) int32.

    Raises:
        CompileError: the network cannot be exported at this size, or the exporter fails.
    """
    lower_pooling(program.network, program.before.size_hw)
    count = 2 if takes_batch else 1
    examples = example_frames(frame_size_hw, count, program.before.pixels)
    axes = {axis: sizes for axis, sizes in frame_axes(frame_size_hw).items() if takes_batch or axis}
    return export_module(program, (examples,), (axes,), (FRAMES,), (MASKS, NOT_FINITE))


def export_module(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    axes: Sequence[dict[int, Any] | None],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """Export any module, in evaluation mode.

    Raises:
        CompileError: the exporter fails.
    """
    module.eval()
    quantised = any(isinstance(layer, QuantizedLayer) for layer in module.modules())
    try:
        with _quiet():
            exported = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=INT8_OPSET if quantised else OPSET,
                custom_translation_table=IN_ONNX if quantised else None,
                dynamic_shapes=tuple(axes),
                input_names=list(input_names),
                output_names=list(output_names),
                verbose=False,
            )
        if exported is None:
            raise CompileError("the ONNX exporter gave nothing")
        model = with_constant_scales(without_traces(exported.model_proto))
        onnx.checker.check_model(model, full_check=True)
    except CompileError:
        raise
    except Exception as error:  # the exporter wraps any exception of any layer, with advice for its own developers
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise CompileError(
            f"the network cannot be exported to ONNX with torch {torch.__version__}: {reason}"
        ) from error
    return model


def as_part(part: onnx.ModelProto, program: onnx.ModelProto, prefix: str) -> onnx.GraphProto:
    """A graph that was exported by itself, to be joined with a program: of its opset, and with names that meet none of its own.

    Args:
        part: as ``export_module`` gives it; its inputs and outputs keep their names.
        program: what it is joined with.
        prefix: before its other names.
    """
    newest = opset_of(program)
    if newest != OPSET:
        part = version_converter.convert_version(part, newest)
    graph: onnx.GraphProto = onnx.compose.add_prefix(part, prefix, rename_inputs=False, rename_outputs=False).graph
    return graph


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), OPSET)


def checked(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """A model that was put together from parts, sound and without traces.

    Args:
        model: changed and returned.
        what: the subject of the message, such as "--compose device: the overlay".

    Raises:
        CompileError: its parts do not fit.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference share no exception
        raise CompileError(
            f"{what} cannot be joined with the frame program: {str(error).strip().splitlines()[0]}"
        ) from error
    return without_traces(model)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's stack traces, which hold the paths of the machine it ran on; changes and returns ``model``."""
    del model.metadata_props[:]
    model.doc_string = ""
    _clean(model.graph)
    return model


def _clean(graph: onnx.GraphProto) -> None:
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        attribute.doc_string = ""
        for inner in (attribute.g, *attribute.graphs):
            if inner.node:
                _clean(inner)


def lower_pooling(network: nn.Module, size_hw: tuple[int, int]) -> None:
    """Make the pooling round down, which Torch-TensorRT's converters ask for and which is the same where sizes divide evenly.

    Raises:
        CompileError: as ``check_size``.
    """
    check_size(network, size_hw)
    set_ceil_mode = getattr(network, "set_ceil_mode", None)
    if set_ceil_mode is not None:
        set_ceil_mode(False)


def check_size(network: nn.Module, size_hw: tuple[int, int]) -> None:
    """Refuse a size inside the network that it does not take, or at which lowered pooling is not the same.

    Raises:
        CompileError: with the nearest size that fits.
    """
    multiple = int(getattr(network, "size_multiple", 1))
    if getattr(network, "set_ceil_mode", None) is None:
        if min(size_hw) < multiple:
            raise CompileError(
                f"--imgsz: expected at least {multiple}×{multiple} for this network, got {size_hw[0]}×{size_hw[1]}"
            )
        return
    if any(side % multiple for side in size_hw):
        fitting = "×".join(str(max(multiple, round(side / multiple) * multiple)) for side in size_hw)
        raise CompileError(
            f"--imgsz: expected multiples of {multiple} for this network, got {size_hw[0]}×{size_hw[1]}: take {fitting}"
        )


def example_frames(frame_size_hw: tuple[int, int] | None, count: int = 2, pixels: Pixels = "bgr") -> Tensor:
    """Frames to trace with: (count, H, W, 3) uint8. Any content does; two frames, so that the batch is not taken for fixed."""
    shape = frames_shape(pixels, count, frame_size_hw or (480, 640))
    return torch.from_numpy(np.zeros(shape, input_type(pixels)))


def frame_axes(frame_size_hw: tuple[int, int] | None, multiple_of: int = 1) -> dict[int, Any]:
    """The axes of the frames that may change: N always, H and W, which are multiples of a number, unless they are fixed."""
    axes: dict[int, Any] = {0: torch.export.Dim("N", min=1, max=MAX_BATCH)}
    if frame_size_hw is None:
        for axis, name in ((1, "H"), (2, "W")):
            side = torch.export.Dim(name, min=1, max=MAX_SIDE // multiple_of)
            axes[axis] = side if multiple_of == 1 else multiple_of * side
    return axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter logs what it cannot know (no torchvision), tracebacks too, and warns of its own internals; errors come
    # as exceptions.
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
