"""A frame program that takes frames as decoders give them, NV12: the conversion to BGR goes before it, into the same graph.

    frames (N, H·3/2, W) uint8  ->  Nv12ToBgr  ->  the program as it is

The conversion is exported by itself and joined, as ``compile.program.compose`` joins what draws, so that every kind of program
can have it and programs of BGR are what they are without it. Mask and overlay read one tensor of BGR, which is computed once.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compile.program.batch import for_one_frame, takes_batch
from compile.program.onnx_export import MAX_BATCH, MAX_SIDE, as_part, checked, export_module
from pipeline.bundles.bundle import FRAMES
from pipeline.errors import CompileError
from pipeline.frames.pixels import frames_shape

_BGR = "pixels/bgr"

# ITU-R BT.709 in limited range (luma 16 to 235, chroma 128 ± 112), in the whole numbers by which FFmpeg's converter computes it.
_UNIT = 8192
_LUMA = 9539 / _UNIT  # 255 / 219
_BLUE_OF_U, _GREEN_OF_U, _GREEN_OF_V, _RED_OF_V = 17305 / _UNIT, -1747 / _UNIT, -4366 / _UNIT, 14686 / _UNIT


class Nv12ToBgr(nn.Module):
    """NV12 to BGR by BT.709 in limited range, bit for bit as FFmpeg's converter gives it, from which programs of BGR have their frames.

    Each two by two pixels have one color, and each product is rounded down, as that converter does by default on x86. All of it is
    exact in FP32: a factor has 15 bits and a pixel 8. What depends on chroma alone is computed at its size, a quarter.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """(N, H·3/2, W) uint8, H and W even, to (N, H, W, 3) float32 BGR, whole numbers from 0 to 255."""
        # Cast first: TensorRT takes uint8 only at the border of a network.
        x = frames.float()
        count, rows, width = x.shape
        # In three parts, of which two are luma: sizes that divide evenly need no slices whose ends depend on the frames.
        parts = x.reshape(count, 3, rows // 3, width)
        luma = parts[:, :2].reshape(count, 1, rows // 3 * 2, width)
        chroma = parts[:, 2].reshape(count, rows // 3, width // 2, 2) - 128.0
        u, v = chroma[..., 0], chroma[..., 1]
        green = (u * _GREEN_OF_U).floor() + (v * _GREEN_OF_V).floor()
        colour = torch.stack(((u * _BLUE_OF_U).floor(), green, (v * _RED_OF_V).floor()), 1)
        x = ((luma - 16.0) * _LUMA).floor() + F.interpolate(colour, scale_factor=2.0, mode="nearest")
        return x.clamp(0.0, 255.0).permute(0, 2, 3, 1)


def with_nv12(program: bytes, frame_size_hw: tuple[int, int] | None) -> bytes:
    """Let a frame program take NV12.

    Args:
        program: as ONNX, of BGR; it may compose.
        frame_size_hw: the (height, width) that it was exported for, both even, or None for any.

    Returns:
        The program as ONNX, with the input "frames" (N, H·3/2, W) uint8; its outputs are what they were.

    Raises:
        CompileError: the two cannot be joined.
    """
    model = onnx.load_from_string(program)
    graph = model.graph
    readers = [node for node in graph.node if FRAMES in node.input]
    if wrong := [node.op_type for node in readers if node.op_type not in ("Cast", "Shape")]:
        raise CompileError(
            f"--pixels nv12: expected a program that begins with a cast from 8 bits, got {wrong[0]}: leave --pixels out"
        )
    example = torch.zeros(frames_shape("nv12", 2, frame_size_hw or (480, 640)), dtype=torch.uint8)
    converter = export_module(Nv12ToBgr(), (example,), (_axes(frame_size_hw),), (FRAMES,), (_BGR,))
    added = as_part(converter, model, "pixels/")
    casts = {node.output[0] for node in readers if node.op_type == "Cast"}
    kept = [node for node in graph.node if not casts.intersection(node.output)]
    for node in kept:
        for position, name in enumerate(node.input):
            if name == FRAMES or name in casts:
                node.input[position] = _BGR
    (frames,) = (value for value in graph.input if value.name == FRAMES)
    many = takes_batch(model)
    frames.CopyFrom(added.input[0])
    if not many:
        for_one_frame(model)
    if frame_size_hw is None:
        for axis, name in zip(frames.type.tensor_type.shape.dim[1:], ("H*3/2", "W"), strict=True):
            axis.dim_param = name
    nodes = [*added.node, *kept]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added.initializer)
    content: bytes = checked(model, "--pixels nv12: the conversion").SerializeToString()
    return content


def _axes(frame_size_hw: tuple[int, int] | None) -> dict[int, Any]:
    axes: dict[int, Any] = {0: torch.export.Dim("N", min=1, max=MAX_BATCH)}
    if frame_size_hw is None:
        axes[1] = 3 * torch.export.Dim("rows", min=1, max=MAX_SIDE // 2)
        axes[2] = 2 * torch.export.Dim("columns", min=1, max=MAX_SIDE // 2)
    return axes
