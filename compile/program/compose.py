"""A frame program that also draws the overlay: the graph gets one more output, and how masks are shown becomes an input.

    frames, look (6,) float32  ->  masks (N, H, W) uint8, not_finite (N,) int32, views (N, H, W, 3) uint8 BGR

What is drawn is ``compile.program.program.Overlay``, exported by itself and joined, so that every kind of program can have it.
"""

from __future__ import annotations

import onnx
import torch

from compile.program.batch import for_one_frame, takes_batch
from compile.program.onnx_export import as_part, checked, example_frames, export_module, frame_axes
from compile.program.program import Overlay
from pipeline.bundles.bundle import FRAMES, LOOK, LOOK_VALUES, MASKS, VIEWS
from pipeline.errors import CompileError


def with_views(program: bytes, frame_size_hw: tuple[int, int] | None) -> bytes:
    """Add the output "views" and the input "look" to a frame program.

    Args:
        program: as ONNX, for a network of one class.
        frame_size_hw: the (height, width) that it was exported for, or None for any.

    Returns:
        The program as ONNX; its masks are what they were.

    Raises:
        CompileError: the two cannot be joined.
    """
    model = onnx.load_from_string(program)
    last = next((node for node in model.graph.node if MASKS in node.output), None)
    if last is None or last.op_type != "Cast":
        raise CompileError(
            f"--compose device: expected a program that ends in a cast to 8 bits, got {last.op_type if last else 'no masks'}: "
            "leave --compose out"
        )
    frames, axes = example_frames(frame_size_hw), frame_axes(frame_size_hw)
    overlay = export_module(
        Overlay(),
        (frames, torch.zeros(frames.shape[:3]), torch.zeros(len(LOOK_VALUES))),
        (axes, axes, None),
        # The values before the cast: TensorRT refuses to hand uint8 on.
        (FRAMES, last.input[0], LOOK),
        (VIEWS,),
    )
    added = as_part(overlay, model, "overlay/")
    graph = model.graph
    graph.input.extend(value for value in added.input if value.name == LOOK)
    graph.output.extend(added.output)
    graph.node.extend(added.node)
    graph.initializer.extend(added.initializer)
    graph.value_info.extend(added.value_info)
    if not takes_batch(model):
        for_one_frame(model)
    content: bytes = checked(model, "--compose device: the overlay").SerializeToString()
    return content
