"""The gate: what was compiled against the trained network, on real frames, before a bundle is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from calibration.agreement import iou, mean_absolute_error
from calibration.saliency import SaliencyMetrics
from calibration.truth import Truth, Truths, resize_truth
from compile.errors import CompileError
from pipeline.bundle import LOOK_VALUES, Task
from pipeline.frame import Frame, describe
from pipeline.nv12 import to_nv12
from pipeline.pixels import Pixels

Masks = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(N, H, W, 3) uint8 BGR to (N, H, W) uint8."""

FEWEST_FRAMES = 4
MOST_FRAMES = 32
MOST_BYTES = 256 << 20

MOST_BEHIND = 0.003
"""What may be lost against ground truth."""

# A mask that spreads over less than this says nothing about the picture.
_FLAT = 25


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame to check on, and what the trained network makes of it.

    Attributes:
        name: the frame's.
        frames_nhwc: (1, H, W, 3) uint8 BGR.
        expected_nhw: (1, H, W) uint8.
        truth_hw: ground truth, as ``calibration.truth`` has it; None without.
    """

    name: str
    frames_nhwc: NDArray[np.uint8]
    expected_nhw: NDArray[np.uint8]
    truth_hw: Truth | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """Agreement of what was compiled with the network that it was made of.

    Attributes:
        frames: how many were compared.
        source: where they came from.
        iou_mean: intersection over union at 0.5, mean over the frames.
        iou_worst: that of the worst frame.
        worst_frame: the worst frame's name.
        mae: mean absolute error of the masks, 0 to 1.
        constant: frames with the same value all over the mask, where the network's mask has a shape.
        runtime: what ran it.
        against: what it was compared with.
        truth: of ground truth, what the masks reach of it, as ``truth_metric`` says: 0 to 1; None without.
        truth_reference: what the reference's masks reach.
        truth_metric: "max F-measure", or for classes "mean IoU".
    """

    frames: int
    source: str
    iou_mean: float
    iou_worst: float
    worst_frame: str
    mae: float
    constant: int
    runtime: str
    against: str
    truth: float | None = None
    truth_reference: float | None = None
    truth_metric: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """In the form of the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        """For the user, in one line."""
        return (
            f"IoU {self.iou_mean:.4f}, worst {self.iou_worst:.4f} ({self.worst_frame}), "
            f"mean absolute error {self.mae:.5f}, on {self.frames} frames"
        ) + (
            ""
            if self.truth is None
            else f"; {self.truth_metric} against ground truth {self.truth:.4f}, {self.truth_reference:.4f} in FP32"
        )


def open_session(model: bytes | str, what: str) -> onnxruntime.InferenceSession:
    """Load an ONNX model, as bytes or from a path, into ONNX Runtime on the CPU.

    Raises:
        CompileError: it cannot be loaded; ``what`` is how the message calls it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    # INT8 as it is written: its own way to compute it rounds the bias too.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CompileError(f"ONNX Runtime cannot load {what}: {str(error).strip().splitlines()[0]}") from error


def as_taken(frames_nhwc: NDArray[np.uint8], pixels: Pixels) -> NDArray[np.uint8]:
    """Frames as a program takes them: (N, H, W, 3) uint8 BGR as they are, or as NV12, for which H and W are even."""
    return frames_nhwc if pixels == "bgr" else np.stack([to_nv12(image) for image in frames_nhwc])


def program_masks(program: bytes, pixels: Pixels = "bgr") -> tuple[Masks, str]:
    """A frame program as ONNX on ONNX Runtime: what computes its masks, and the runtime's name.

    Args:
        program: its content.
        pixels: how it takes frames; what computes the masks makes them so.

    Raises:
        CompileError: it cannot be loaded; or later, when it cannot be run.
    """
    session = open_session(program, "the compiled program")
    name, *others = [value.name for value in session.get_inputs()]
    # A program that composes has masks first; how they are shown does not change them.
    rest = {other: np.zeros(len(LOOK_VALUES), np.float32) for other in others}
    output = session.get_outputs()[0].name

    def masks(frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            (masks_nhw,) = session.run([output], {name: as_taken(frames_nhwc, pixels), **rest})
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise CompileError(f"ONNX Runtime cannot run the compiled program: {reason}") from error
        return np.asarray(masks_nhw, np.uint8)

    return masks, f"onnxruntime {onnxruntime.__version__}, CPU"


def take_samples(
    frames: Iterable[Frame],
    reference: Masks,
    source: str,
    frame_size_hw: tuple[int, int] | None = None,
    count: int = MOST_FRAMES,
    truths: Truths | None = None,
    pixels: Pixels = "bgr",
) -> list[Sample]:
    """Read the frames to check on, at most ``count`` and ``MOST_BYTES`` of them, and compute the reference's masks.

    Args:
        frames: real pictures, best of the kind that will be seen.
        reference: the same contract around the trained network, in FP32.
        source: where the frames come from, for a message.
        count: the most frames.
        frame_size_hw: (height, width) that the program has fixed, and frames are resized to; None for any.
        truths: reads their ground truth.
        pixels: how the program takes frames; for NV12 the last row and column of odd sides is left out.

    Raises:
        CompileError: there are no frames, or for NV12 one of a single row or column.
        CalibrationError: a frame has no ground truth.
    """
    samples: list[Sample] = []
    size_bytes = 0
    for frame in frames:
        image = frame.image
        if frame_size_hw is not None and frame.size_hw != frame_size_hw:
            height, width = frame_size_hw
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        truth_hw = None if truths is None else truths(frame.name, frame.size_hw)
        if truth_hw is not None and truth_hw.shape != image.shape[:2]:
            truth_hw = resize_truth(truth_hw, image.shape[:2])
        if pixels == "nv12":
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            if not height or not width:
                raise CompileError(f"--verify {source}: expected frames of 2×2 or more for NV12, got {describe(image)}")
            image, truth_hw = image[:height, :width], None if truth_hw is None else truth_hw[:height, :width]
        frames_nhwc = np.ascontiguousarray(image[None])
        samples.append(Sample(frame.name, frames_nhwc, reference(frames_nhwc), truth_hw))
        size_bytes += frames_nhwc.nbytes
        if len(samples) == count or size_bytes >= MOST_BYTES:
            break
    if not samples:
        raise CompileError(f"--verify {source}: expected frames, got none")
    return samples


def verify(
    masks: Masks,
    samples: Sequence[Sample],
    task: Task,
    *,
    source: str,
    runtime: str,
    against: str = "the trained network in FP32",
) -> Verification:
    """Compare what was compiled with the reference.

    Args:
        masks: what was compiled.
        samples: at least one.
        task: what masks mean.
        source: where the frames come from, for the manifest.
        runtime: what runs ``masks``, for the manifest.
        against: what made the samples' masks, for the manifest.
    """
    ious: list[tuple[float, str]] = []
    errors: list[float] = []
    constant = 0
    reached, reached_by_reference = _Reached(task), _Reached(task)
    for sample in samples:
        (got,), (expected,) = masks(sample.frames_nhwc), sample.expected_nhw
        if sample.truth_hw is not None:
            reached.add(got, sample.truth_hw)
            reached_by_reference.add(expected, sample.truth_hw)
        ious.append((iou(got, expected, task), sample.name))
        errors.append(mean_absolute_error(got, expected, task))
        constant += bool(got.min() == got.max() and np.ptp(expected) > (_FLAT if task == "binary" else 0))
    worst, worst_frame = min(ious)
    return Verification(
        frames=len(ious),
        source=source,
        iou_mean=round(float(np.mean([value for value, _ in ious])), 6),
        iou_worst=round(worst, 6),
        worst_frame=worst_frame,
        mae=round(float(np.mean(errors)), 6),
        constant=constant,
        runtime=runtime,
        against=against,
        truth=reached.result,
        truth_reference=reached_by_reference.result,
        truth_metric=None if reached.result is None else reached.metric,
    )


class _Reached:
    """What masks reach of ground truth."""

    def __init__(self, task: Task) -> None:
        self.metric = "max F-measure" if task == "binary" else "mean IoU"
        self._saliency = SaliencyMetrics() if task == "binary" else None
        self._count = 0
        self._ious: list[float] = []

    def add(self, mask_hw: NDArray[np.uint8], truth_hw: Truth) -> None:
        self._count += 1
        if self._saliency is not None:
            self._saliency.add(mask_hw, truth_hw > 127)
        else:
            self._ious.append(iou(mask_hw, truth_hw, "classes"))

    @property
    def result(self) -> float | None:
        if not self._count:
            return None
        return round(float(np.mean(self._ious) if self._saliency is None else self._saliency.result()["max_f"]), 6)


def check(verification: Verification, min_iou: float) -> None:
    """Refuse what does not agree with the network, or falls behind it against ground truth.

    Where neither mask reaches 0.5 anywhere the IoU is 1 whatever comes out. So the mean absolute error counts too: it may be 0.01, or
    1 − ``min_iou`` if that is more.

    Raises:
        CompileError: the mean IoU is below ``min_iou``, the error too large, or masks are empty; says by how much and what to try.
    """
    got, mae, mae_limit = verification.iou_mean, verification.mae, max(0.01, 1 - min_iou)
    remedy = "try --precision fp32, or frames of your own with --verify, or allow it with --min-iou"
    if verification.constant and min_iou > 0:
        raise CompileError(
            f"what was compiled gives the same value all over the mask on {verification.constant} of {verification.frames} frames of "
            f"{verification.source} ({verification.runtime}), expected a shape as {verification.against} gives: {remedy}"
        )
    behind = 0.0 if verification.truth is None else (verification.truth_reference or 0.0) - verification.truth
    if behind > MOST_BEHIND and min_iou > 0:
        raise CompileError(
            f"what was compiled reaches a {verification.truth_metric} of {verification.truth:.4f} against ground truth, expected "
            f"{verification.truth_reference:.4f} as in FP32, or {MOST_BEHIND:g} less: {remedy}"
        )
    if not (got >= min_iou and mae <= mae_limit):
        raise CompileError(
            f"what was compiled agrees with {verification.against} to IoU {got:.4f} on {verification.frames} frames of "
            f"{verification.source} (worst {verification.iou_worst:.4f}, {verification.worst_frame}) and mean absolute error {mae:.4f} "
            f"({verification.runtime}), expected IoU {min_iou:.4f} and error {mae_limit:.4f}: {remedy}"
        )
