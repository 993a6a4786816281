"""A frame program that also draws the overlay: the graph gets one more output, and how masks are shown becomes an input.

    frames, look (6,) float32  ->  masks (N, H, W) uint8, not_finite (N,) int32, views (N, H, W, 3) uint8 BGR

What is drawn is ``compile.program.program.Overlay``, exported by itself and joined, so that every kind of program can have it. A
program that takes NV12 (``compile.program.nv12``) gives it too: its views are (N, H·3/2, W) uint8, as encoders take them.
"""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from compile.program.batch import for_one_frame, takes_batch
from compile.program.bgr_to_nv12 import BgrToNv12
from compile.program.onnx_export import as_part, checked, example_frames, export_module, frame_axes
from compile.program.program import Overlay
from pipeline.bundles.bundle import FRAMES, LOOK, LOOK_VALUES, MASKS, VIEWS
from pipeline.errors import CompileError
from pipeline.frames.pixels import OfCameras


class Views(nn.Module):
    """Views as a program gives them, of its frames in BGR.

    Args:
        pixels: what they are.
    """

    def __init__(self, pixels: OfCameras) -> None:
        super().__init__()
        self._overlay = Overlay()
        self._convert = BgrToNv12() if pixels == "nv12" else nn.Identity()

    def forward(self, frames_nhwc: Tensor, masks_nhw: Tensor, look: Tensor) -> Tensor:
        """For the arguments see ``Overlay``; (N, H, W, 3) or (N, H·3/2, W) uint8."""
        views: Tensor = self._convert(self._overlay(frames_nhwc, masks_nhw, look))
        # Cast last: TensorRT gives uint8 only at the border of a network.
        return views.to(torch.uint8)


def with_views(program: bytes, frame_size_hw: tuple[int, int] | None, pixels: OfCameras = "bgr") -> bytes:
    """Add the output "views" and the input "look" to a frame program.

    Args:
        program: as ONNX, for a network of one class; it takes BGR.
        frame_size_hw: the (height, width) that it was exported for, or None for any; even for views in NV12.
        pixels: what the views are to be.

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
    frames, axes = example_frames(frame_size_hw), frame_axes(frame_size_hw, 2 if pixels == "nv12" else 1)
    overlay = export_module(
        Views(pixels),
        (frames, torch.zeros(frames.shape[:3]), torch.zeros(len(LOOK_VALUES))),
        (axes, axes, None),
        # The values before the cast: TensorRT refuses to hand uint8 on.
        (FRAMES, last.input[0], LOOK),
        (VIEWS,),
    )
    added = as_part(overlay, model, "overlay/")
    if pixels == "nv12" and frame_size_hw is None:
        for axis, name in zip(added.output[0].type.tensor_type.shape.dim, ("N", "H*3/2", "W"), strict=True):
            axis.dim_param = name
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
