"""The gate: the compiled program against the trained network, on real frames, before a bundle is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from calibration.agreement import iou, mean_absolute_error
from compile.errors import CompileError
from pipeline.bundle import Task
from pipeline.frame import Frame

Masks = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(N, H, W, 3) uint8 BGR to (N, H, W) uint8."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Agreement of a compiled program with the network that it was made of.

    Attributes:
        frames: how many were compared.
        source: where they came from.
        iou_mean: intersection over union at 0.5, mean over the frames.
        iou_worst: that of the worst frame.
        worst_frame: the worst frame's name.
        mae: mean absolute error of the masks, 0 to 1.
        runtime: what ran the compiled program.
    """

    frames: int
    source: str
    iou_mean: float
    iou_worst: float
    worst_frame: str
    mae: float
    runtime: str

    def as_dict(self) -> dict[str, Any]:
        """In the form of the manifest."""
        return asdict(self)


def open_session(model: bytes | str, what: str) -> onnxruntime.InferenceSession:
    """Load an ONNX model, as bytes or from a path, into ONNX Runtime on the CPU.

    Raises:
        CompileError: it cannot be loaded; ``what`` is how the message calls it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CompileError(f"ONNX Runtime cannot load {what}: {str(error).strip().splitlines()[0]}") from error


def verify(program: bytes, reference: Masks, frames: Iterable[Frame], task: Task, source: str) -> Verification:
    """Run the compiled program and the reference on the same frames.

    Args:
        program: a frame program as ONNX; run on ONNX Runtime. Frames are resized to a size that it has fixed.
        reference: the same contract around the trained network, in FP32.
        frames: real pictures, best of the kind that will be seen.
        task: what masks mean.
        source: where the frames come from, for the manifest.

    Raises:
        CompileError: there are no frames, or ONNX Runtime cannot load or run the program.
    """
    session = open_session(program, "the compiled program")
    entry = session.get_inputs()[0]
    height, width = entry.shape[1:3]
    ious: list[tuple[float, str]] = []
    errors: list[float] = []
    for frame in frames:
        image = frame.image
        if isinstance(height, int) and isinstance(width, int) and frame.size_hw != (height, width):
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        frames_nhwc = np.ascontiguousarray(image[None])
        expected = reference(frames_nhwc)
        try:
            (masks,) = session.run(None, {entry.name: frames_nhwc})
        except Exception as error:
            raise CompileError(
                f"ONNX Runtime cannot run the compiled program: {str(error).strip().splitlines()[0]}"
            ) from error
        ious.append((iou(masks[0], expected[0], task), frame.name))
        errors.append(mean_absolute_error(masks[0], expected[0], task))
    if not ious:
        raise CompileError(f"--verify {source}: expected frames, got none")
    worst, worst_frame = min(ious)
    return Verification(
        frames=len(ious),
        source=source,
        iou_mean=round(float(np.mean([value for value, _ in ious])), 6),
        iou_worst=round(worst, 6),
        worst_frame=worst_frame,
        mae=round(float(np.mean(errors)), 6),
        runtime=f"onnxruntime {onnxruntime.__version__}, CPU",
    )


def check(verification: Verification, min_iou: float) -> None:
    """Refuse a program that does not agree.

    Where neither mask reaches 0.5 anywhere the IoU is 1 whatever the program gives. So the mean absolute error counts too: it may
    be 0.01, or 1 − ``min_iou`` if that is more.

    Raises:
        CompileError: the mean IoU is below ``min_iou`` or the error too large; says by how much and what to try.
    """
    got, mae, mae_limit = verification.iou_mean, verification.mae, max(0.01, 1 - min_iou)
    if not (got >= min_iou and mae <= mae_limit):
        raise CompileError(
            f"the compiled program agrees with the network to IoU {got:.4f} on {verification.frames} frames of {verification.source} "
            f"(worst {verification.iou_worst:.4f}, {verification.worst_frame}) and mean absolute error {mae:.4f}, "
            f"expected IoU {min_iou:.4f} and error {mae_limit:.4f}: "
            "try --precision fp32, or frames of your own with --verify, or allow it with --min-iou"
        )
