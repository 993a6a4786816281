"""How many frames a program takes at once: any number, or one where the network's shapes hold for a single picture."""

from __future__ import annotations

import onnx

from pipeline.bundles.bundle import FRAMES, MASKS, NOT_FINITE, VIEWS
from pipeline.errors import OptionError


def takes_batch(program: onnx.ModelProto) -> bool:
    """Whether a frame program says that it takes any number of frames."""
    frames = next((value for value in program.graph.input if value.name == FRAMES), None)
    return frames is None or frames.type.tensor_type.shape.dim[0].dim_value == 0


def for_one_frame(program: onnx.ModelProto) -> onnx.ModelProto:
    """Let a frame program say that it takes one frame at a time; changes and returns it."""
    for value in (*program.graph.input, *program.graph.output):
        if value.name in (FRAMES, MASKS, NOT_FINITE, VIEWS):
            value.type.tensor_type.shape.dim[0].dim_value = 1
    return program


def check_batch(takes_batch: bool, batch: int | None, what: object) -> None:
    """Refuse a batch for a network that takes one picture at a time.

    Raises:
        OptionError: it is so.
    """
    if batch is not None and batch > 1 and not takes_batch:
        raise OptionError(
            f"--batch: expected 1, for the network of {what} takes one picture at a time, got {batch}: leave --batch out, or export "
            "the network with a dynamic batch"
        )


def check_state(state: object, target: str, what: object) -> None:
    """Refuse a target whose engine does not give back what a network keeps between frames.

    Raises:
        OptionError: it is so.
    """
    if state and target == "torch-tensorrt":
        raise OptionError(
            f"--target: expected onnx, tensorrt or tensorrt-rtx for {what}, whose network keeps state between frames, got {target}"
        )
