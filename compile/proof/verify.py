"""The gate: what was compiled against the trained network, on real frames, before a bundle is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from calibration.metrics.agreement import iou, mean_absolute_error
from calibration.metrics.saliency import SaliencyMetrics
from calibration.metrics.truth import VOID, Truth, Truths, resize_truth, with_void_agreed
from compile.proof.raw_values import FRAMES, Raw, RawAgreement, RawComparison, thinned, with_raw_outputs
from pipeline.bundles.bundle import GATE_WORST_IOU, LOOK_VALUES, NEXT_STATE, NOT_FINITE, STATE, Task
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame, Image, describe
from pipeline.frames.iou import LEAST_COVERED, MOST_UNDECIDED, covered_share, undecided_share
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.frames.pixels import Pixels, bands_of

Masks = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(N, H, W, 3) uint8 BGR to (N, H, W) uint8."""


class Expected(NamedTuple):
    """What a reference makes of frames.

    Attributes:
        masks_nhw: (N, H, W) uint8.
        undecided_nhw: (N, h, w) bool, where the network is undecided, at any size; None where that is seen in the masks, or unknown.
        raw: what the masks are made of; None where that is unknown.
    """

    masks_nhw: NDArray[np.uint8]
    undecided_nhw: NDArray[np.bool_] | None = None
    raw: Raw | None = None


Reference = Callable[[NDArray[np.uint8]], Expected]
"""(N, H, W, 3) uint8 BGR to what is expected of what was compiled."""

TRAINED = "the trained network in FP32"

FEWEST_FRAMES = 8
MOST_FRAMES = 32
MOST_BYTES = 256 << 20

SEQUENCE = 4
"""Frames in a row that a recurrent network is judged on."""

MOST_BEHIND = 0.003
"""What may be lost against ground truth."""

# A mask that spreads over less than this says nothing about the picture.
_FLAT = 25
# Of masks of the same program that is looked into, and is not: what is fused rounds otherwise.
_SAME, _MOST_OTHERS = 2, 0.001
_RESAMPLES = 2000
# Of ground truth a network that is worth compiling reaches more, and masks of other frames, or exchanged ones, mostly less.
_BELIEVABLE = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame to check on, and what the trained network makes of it.

    Attributes:
        name: the frame's.
        frames_nhwc: (1, H, W, 3) uint8 BGR, or channels as files have them, as the program takes them; of a recurrent network
            (T, H, W, 3), frames in a row.
        expected_nhw: (1, H, W) uint8, or (T, H, W).
        truth_hw: ground truth, as ``calibration.metrics.truth`` has it; None without.
        covered: share of the expected mask that is subject; of classes, that is not the most frequent one.
        undecided: pixels where the network is undecided, as a share of those that are subject; None where that is unknown.
        shown_hwc: (H, W, 3) uint8 BGR, for people, where ``frames_nhwc`` are not; None where they are.
        raw: what the expected masks are made of; None where that is unknown, or of frames on which it is not compared.
    """

    name: str
    frames_nhwc: NDArray[np.uint8]
    expected_nhw: NDArray[np.uint8]
    truth_hw: Truth | None = None
    covered: float = 1.0
    undecided: float | None = None
    shown_hwc: Image | None = None
    raw: Raw | None = None

    @property
    def left_out(self) -> str | None:
        """Why the frame is not judged by itself, but only in the mean; None if it is."""
        if self.covered < LEAST_COVERED:
            return f"the subject covers {100 * self.covered:.1f} %"
        if self.undecided is not None and self.undecided > MOST_UNDECIDED:
            return f"undecided pixels, {100 * self.undecided:.0f} % of the subject's area"
        return None


@dataclass(frozen=True, slots=True)
class FrameResult:
    """How well one frame agrees.

    Attributes:
        name: the frame's.
        iou: of its masks, at 0.5.
        mae: mean absolute error of its masks, 0 to 1.
        covered: as in ``Sample``.
        undecided: as in ``Sample``.
        left_out: why it is not judged by itself; None if it is.
    """

    name: str
    iou: float
    mae: float
    covered: float
    undecided: float | None
    left_out: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """Agreement of what was compiled with the network that it was made of.

    Attributes:
        frames: how many were compared.
        source: where they came from.
        iou_mean: intersection over union at 0.5, mean over the frames.
        iou_low: lower end of the mean's 95 % interval (bootstrap over the frames).
        iou_high: its upper end.
        iou_worst: that of the worst frame, of those that are judged by themselves; None where there is none.
        worst_frame: the worst frame's name.
        left_out: how many frames count only in the mean: see ``Sample.left_out``.
        mae: mean absolute error of the masks, 0 to 1.
        constant: frames with the same value all over the mask, where the network's mask has a shape.
        runtime: what ran it.
        against: what it was compared with.
        truth: of ground truth, what the masks reach of it, as ``truth_metric`` says: 0 to 1; None without.
        truth_reference: what the reference's masks reach.
        truth_metric: "max F-measure", or for classes "mean IoU".
        raw: how far what masks are made of agrees; None where that is unknown, as of plans.
        per_frame: all of the frames, the worst first.
    """

    frames: int
    source: str
    iou_mean: float
    iou_low: float
    iou_high: float
    iou_worst: float | None
    worst_frame: str | None
    left_out: int
    mae: float
    constant: int
    runtime: str
    against: str
    truth: float | None = None
    truth_reference: float | None = None
    truth_metric: str | None = None
    raw: RawAgreement | None = None
    per_frame: tuple[FrameResult, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """In the form of the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        """For the user, in one line."""
        parts = [f"mean IoU {self.iou_mean:.4f} (95 % interval {self.iou_low:.4f} to {self.iou_high:.4f})"]
        if self.iou_worst is None:
            parts.append("no frame with a clear subject to judge by itself")
        else:
            parts.append(f"worst {self.iou_worst:.4f} ({self.worst_frame})")
        parts.append(f"mean absolute error {self.mae:.5f}")
        if self.raw is not None and self.raw.worst is not None:
            parts.append(str(self.raw))
        if self.left_out and self.iou_worst is not None:
            parts.append(f"{self.left_out} of {self.frames} frames without a clear subject count in the mean alone")
        line = ", ".join(parts)
        if self.truth is not None:
            line += (
                f"; {self.truth_metric} against ground truth {self.truth:.4f}, the reference {self.truth_reference:.4f}"
            )
        return line


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
    return frames_nhwc if pixels != "nv12" else np.stack([to_nv12(image) for image in frames_nhwc])


def program_masks(
    program: bytes, pixels: Pixels = "bgr", open_program: Callable[[bytes, str], Any] = open_session
) -> tuple[Masks, str]:
    """A frame program as ONNX on ONNX Runtime: what computes its masks, and the runtime's name.

    Args:
        program: its content.
        pixels: how it takes frames; what computes the masks makes them so.
        open_program: its content and name to a session of ONNX Runtime.

    Raises:
        CompileError: it cannot be loaded; or later, when it cannot be run or its scores are not finite.
    """
    run = _runner(program, pixels, open_program)

    def masks(frames_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        masks_nhw, *_ = run(frames_nhwc, ())
        return np.asarray(masks_nhw, np.uint8)

    return masks, f"onnxruntime {onnxruntime.__version__}, CPU"


def _runner(
    program: bytes, pixels: Pixels, open_program: Callable[[bytes, str], Any]
) -> Callable[[NDArray[np.uint8], Sequence[str]], list[NDArray[Any]]]:
    """What gives the masks of frames, and other outputs of the program by their names."""
    session = open_program(program, "the compiled program")
    name, *others = [value.name for value in session.get_inputs()]
    # A program that composes has masks first; how they are shown does not change them.
    rest = {other: np.zeros(len(LOOK_VALUES), np.float32) for other in others if not other.startswith(STATE)}
    outputs = [output.name for output in session.get_outputs()]
    counts = [output for output in outputs if output == NOT_FINITE]
    zeros = {
        value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs() if value.name.startswith(STATE)
    }
    kept = [state.replace(STATE, NEXT_STATE, 1) for state in zeros]

    def in_a_row(frames: NDArray[np.uint8], wanted: list[str]) -> list[NDArray[Any]]:
        state, rows = dict(zeros), []
        for frame in frames:
            results = session.run([*wanted, *kept], {name: frame[None], **rest, **state})
            rows.append(results[: len(wanted)])
            state = dict(zip(zeros, results[len(wanted) :], strict=True))
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    def run(frames_nhwc: NDArray[np.uint8], more: Sequence[str]) -> list[NDArray[Any]]:
        frames, wanted = as_taken(frames_nhwc, pixels), [outputs[0], *counts, *more]
        try:
            results = in_a_row(frames, wanted) if zeros else session.run(wanted, {name: frames, **rest})
        except CompileError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise CompileError(f"ONNX Runtime cannot run the compiled program: {reason}") from error
        require_finite(results[1] if counts else None)
        return [results[0], *results[1 + len(counts) :]]

    return run


def raw_agreement(
    program: bytes,
    samples: Sequence[Sample],
    limit: float,
    pixels: Pixels = "bgr",
    open_program: Callable[[bytes, str], Any] = open_session,
) -> RawAgreement | None:
    """Compare what a program's masks are made of with what is expected; None where that is unknown.

    Args:
        program: its content.
        samples: those with ``raw`` are compared.
        limit: how far apart it may be.
        pixels: as for ``program_masks``.
        open_program: as for ``program_masks``.

    Raises:
        CompileError: it cannot be run, or gives other masks where more of it is looked at.
    """
    raws = [sample.raw for sample in samples if sample.raw is not None]
    if not raws:
        return None
    tapped, names = with_raw_outputs(program)
    run, plain = _runner(tapped, pixels, open_program), _runner(program, pixels, open_program)
    compared = {what: RawComparison() for what in names}
    for raw in raws:
        masks_nhw, *found = run(raw.frames_nhwc, list(names.values()))
        (same_nhw,) = plain(raw.frames_nhwc, ())
        if np.mean(np.abs(masks_nhw.astype(np.int16) - same_nhw) > _SAME) > _MOST_OTHERS:
            raise CompileError(
                "ONNX Runtime gives other masks where the scores are read too: its optimization changes the program: "
                f"update it (this is {onnxruntime.__version__})"
            )
        for (what, comparison), values in zip(compared.items(), found, strict=True):
            expected = getattr(raw, what)
            if expected is not None:
                comparison.add(thinned(values), expected)
    errors = {what: _rounded(comparison.error()) for what, comparison in compared.items()}
    exchanged = next((pair for one in compared.values() if (pair := one.exchanged(limit)) is not None), None)
    return RawAgreement(len(raws), errors.get("scores"), errors.get("values"), limit, exchanged)


def _rounded(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.3g}")


def require_finite(not_finite: NDArray[np.int32] | None, what: str = "what was compiled") -> None:
    """Refuse scores that are NaN or infinite, whose mask would be empty; counts of None are unknown.

    Raises:
        CompileError: there are such scores.
    """
    if not_finite is not None and not_finite.any():
        raise CompileError(
            f"{what}: expected finite scores, got {int(not_finite.sum())} of a frame that are NaN or infinite: take fp32; if "
            "that has them too, the weights are damaged"
        )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How samples are taken.

    Attributes:
        task: what masks mean.
        frame_size_hw: (height, width) that the program has fixed, and frames are resized to; None for any.
        count: the most frames.
        truths: reads their ground truth; None without.
        pixels: how the program takes frames; for NV12 the last row and column of odd sides is left out.
        sequence: of each frame so many are made, through a window that opens: what a recurrent network remembers is judged too.
    """

    task: Task = "binary"
    frame_size_hw: tuple[int, int] | None = None
    count: int = MOST_FRAMES
    truths: Truths | None = None
    pixels: Pixels = "bgr"
    sequence: int = 1


def take_samples(
    frames: Iterable[Frame], reference: Reference, source: str, sampling: Sampling | None = None
) -> list[Sample]:
    """Read the frames to check on, at most ``sampling.count`` and ``MOST_BYTES`` of them, and compute the reference's masks.

    Args:
        frames: real pictures, best of the kind that will be seen.
        reference: the same contract around the trained network, in FP32.
        source: where the frames come from, for a message.
        sampling: how; None for binary masks and frames as they are.

    Raises:
        CompileError: there are no frames, or for NV12 one of a single row or column.
        CalibrationError: a frame has no ground truth.
    """
    how = sampling or Sampling()
    samples: list[Sample] = []
    size_bytes = 0
    for frame in frames:
        image, truth_hw = _picture(frame, how, source)
        frames_nhwc = _in_motion(image, how.sequence)
        # What NV12 loses of a photo's colours is lost before the program, as in a video: the network sees it so too.
        seen = frames_nhwc if how.pixels != "nv12" else np.stack([to_bgr(to_nv12(one)) for one in frames_nhwc])
        expected = reference(seen)
        covered, undecided = _clarity(expected, how.task)
        shown_hwc = None if bands_of(how.pixels) is None else frame.image
        raw = expected.raw if len(samples) < FRAMES else None
        if raw is not None and how.pixels == "nv12":
            raw = raw._replace(frames_nhwc=frames_nhwc)
        samples.append(
            Sample(frame.name, frames_nhwc, expected.masks_nhw, truth_hw, covered, undecided, shown_hwc, raw)
        )
        size_bytes += frames_nhwc.nbytes
        if len(samples) == how.count or size_bytes >= MOST_BYTES:
            break
    if not samples:
        raise CompileError(f"--verify {source}: expected frames, got none")
    return samples


def _in_motion(image: Image, count: int) -> NDArray[np.uint8]:
    """(count, H, W, 3): a window that opens from seven eighths of a picture to all of it, at the picture's size."""
    height, width = image.shape[:2]
    frames = [image]
    for left in range(1, count):
        rows, columns = (max(1, side - side * left // (8 * (count - 1))) for side in (height, width))
        window = image[:rows, :columns]
        frames.append(np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8))
    return np.ascontiguousarray(np.stack(frames[::-1]))


def _picture(frame: Frame, how: Sampling, source: str) -> tuple[Image, Truth | None]:
    """A frame in the size that it is checked in, and its ground truth in that size."""
    bands = bands_of(how.pixels)
    image: NDArray[Any] = frame.image if bands is None else frame.as_pixels(how.pixels)
    if how.frame_size_hw is not None and frame.size_hw != how.frame_size_hw:
        height, width = how.frame_size_hw
        if bands is not None:
            raise CompileError(
                f"--verify {source}: expected pictures of {height}×{width} as --frame says, got {describe(image)}: leave --frame out"
            )
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    truth_hw = None if how.truths is None else how.truths(frame.name, frame.size_hw)
    if truth_hw is not None and truth_hw.shape != image.shape[:2]:
        truth_hw = resize_truth(truth_hw, image.shape[:2])
    if how.pixels != "nv12":
        return image, truth_hw
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if not height or not width:
        raise CompileError(f"--verify {source}: expected frames of 2×2 or more for NV12, got {describe(image)}")
    return image[:height, :width], None if truth_hw is None else truth_hw[:height, :width]


def verify(
    masks: Masks,
    samples: Sequence[Sample],
    task: Task,
    *,
    source: str,
    runtime: str,
    against: str = TRAINED,
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
    results: list[FrameResult] = []
    constant = 0
    reached, reached_by_reference = _Reached(task), _Reached(task)
    for sample in samples:
        got, expected = masks(sample.frames_nhwc), sample.expected_nhw
        if sample.truth_hw is not None:  # of the last frame
            reached.add(got[-1], sample.truth_hw)
            reached_by_reference.add(expected[-1], sample.truth_hw)
        # Frames of a sequence below each other, as one picture.
        got, expected = got.reshape(-1, got.shape[-1]), expected.reshape(-1, expected.shape[-1])
        results.append(
            FrameResult(
                sample.name,
                round(iou(got, expected, task), 6),
                round(mean_absolute_error(got, expected, task), 6),
                round(sample.covered, 6),
                None if sample.undecided is None else round(sample.undecided, 6),
                sample.left_out,
            )
        )
        constant += bool(got.min() == got.max() and np.ptp(expected) > (_FLAT if task == "binary" else 0))
    results.sort(key=lambda result: (result.iou, result.name))
    judged = [result for result in results if result.left_out is None]
    low, high = mean_interval([result.iou for result in results])
    return Verification(
        frames=len(results),
        source=source,
        iou_mean=round(float(np.mean([result.iou for result in results])), 6),
        iou_low=round(low, 6),
        iou_high=round(high, 6),
        iou_worst=judged[0].iou if judged else None,
        worst_frame=judged[0].name if judged else None,
        left_out=len(results) - len(judged),
        mae=round(float(np.mean([result.mae for result in results])), 6),
        constant=constant,
        runtime=runtime,
        against=against,
        truth=reached.result,
        truth_reference=reached_by_reference.result,
        truth_metric=None if reached.result is None else reached.metric,
        per_frame=tuple(results),
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """What something compiled is proven with.

    Attributes:
        samples: frames and what is expected of them, at least one.
        task: what masks mean.
        source: where the frames come from.
        against: what made the expected masks.
    """

    samples: Sequence[Sample]
    task: Task
    source: str
    against: str = TRAINED

    def of(self, masks: Masks, runtime: str) -> Verification:
        """Compare what was compiled with what is expected: see ``verify``."""
        return verify(masks, self.samples, self.task, source=self.source, runtime=runtime, against=self.against)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of all frames of this kind, by a bootstrap over those that were seen.

    Percentiles of the means of resamples, from a fixed seed: the same values give the same interval. It is as good as the frames are
    independent: of a video's successive frames it is too narrow.

    Args:
        values: at least one; of a single one the interval is that value.

    Returns:
        Lower and upper end.
    """
    seen = np.asarray(values, np.float64)
    picks = np.random.default_rng(0).integers(0, len(seen), (_RESAMPLES, len(seen)))
    low, high = np.percentile(seen[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _clarity(expected: Expected, task: Task) -> tuple[float, float | None]:
    """What of a mask is subject, and what of the subject is undecided, as ``Sample`` has them."""
    mask_hw = expected.masks_nhw[-1]
    covered = covered_share(mask_hw, task)
    if task == "binary":
        undecided = undecided_share(mask_hw)
    elif expected.undecided_nhw is not None:
        undecided = float(np.mean(expected.undecided_nhw[-1]))
    else:
        return covered, None
    return covered, undecided / max(covered, 1e-9)


def doubt_of_truth(samples: Sequence[Sample], task: Task) -> str | None:
    """What speaks against the ground truth being that of these frames; None if nothing does, or there is none."""
    ious = []
    for sample in samples:
        if sample.truth_hw is not None:
            got_hw, truth_hw = sample.expected_nhw[-1], sample.truth_hw
            known = truth_hw != VOID[task]
            if known.any():
                ious.append(iou(got_hw[known][None], truth_hw[known][None], task))
    if not ious or np.mean(ious) >= _BELIEVABLE:
        return None
    return (
        f"--calib-masks: the masks of the trained network itself have a mean IoU of {np.mean(ious):.2f} with them: are they the masks "
        "of these frames, with the subject bright (classes: the indices that it was trained with)?"
    )


class _Reached:
    """What masks reach of ground truth."""

    def __init__(self, task: Task) -> None:
        self.metric = "max F-measure" if task == "binary" else "mean IoU"
        self._saliency = SaliencyMetrics() if task == "binary" else None
        self._count = 0
        self._ious: list[float] = []

    def add(self, mask_hw: NDArray[np.uint8], truth_hw: Truth) -> None:
        if self._saliency is not None:
            self._count += 1
            self._saliency.add(*with_void_agreed(mask_hw, truth_hw))
            return
        known = truth_hw != VOID["classes"]
        if known.any():
            self._count += 1
            self._ious.append(iou(mask_hw[known][None], truth_hw[known][None], "classes"))

    @property
    def result(self) -> float | None:
        if not self._count:
            return None
        return round(float(np.mean(self._ious) if self._saliency is None else self._saliency.result()["max_f"]), 6)


def limits_of(min_iou: float, min_worst_iou: float | None) -> dict[str, float]:
    """What the gate asks for, as the manifest keeps it: "mean" of the mean IoU's lower end, "worst" of the worst frame."""
    worst = min(GATE_WORST_IOU, min_iou) if min_worst_iou is None else min_worst_iou
    return {"mean": min_iou, "worst": worst}


def problem_with(
    verification: Verification,
    min_iou: float,
    min_worst_iou: float | None = None,
    remedy: str = "take a higher --precision",
) -> str | None:
    """What is wrong with what was compiled: it does not agree with the network, or falls behind it against ground truth.

    Where neither mask reaches 0.5 anywhere the IoU is 1 whatever comes out. So the mean absolute error counts too: it may be 0.01, or
    1 − ``min_iou`` if that is more.

    Args:
        verification: the result.
        min_iou: what the lower end of the mean IoU's interval must reach; 0 to let everything through.
        min_worst_iou: what the worst frame must reach; None for ``GATE_WORST_IOU``, or ``min_iou`` where that is less.
        remedy: what to try.

    Returns:
        By how much and what to try; None if all is well.
    """
    got = verification
    least_worst = limits_of(min_iou, min_worst_iou)["worst"]
    mae_limit = max(0.01, 1 - min_iou)
    behind = 0.0 if got.truth is None else (got.truth_reference or 0.0) - got.truth
    allowed_by = "--min-iou"
    if min_iou <= 0:
        return None
    if got.constant:
        expected = f"a mask with a shape on all frames, got one value all over on {got.constant} of {got.frames}"
    elif behind > MOST_BEHIND:
        expected = f"a {got.truth_metric} of {got.truth_reference:.4f} as the reference has, or {MOST_BEHIND:g} less"
    elif not got.iou_low >= min_iou:
        expected = f"a mean IoU whose interval begins at {min_iou:.4f} or more"
    elif got.iou_worst is not None and not got.iou_worst >= least_worst:
        expected, allowed_by = f"an IoU of {least_worst:.4f} or more on the worst frame", "--min-worst-iou"
    elif not got.mae <= mae_limit:
        expected = f"a mean absolute error of {mae_limit:.4f} or less"
    elif got.raw is not None and got.raw.problem is not None:
        return (
            f"what was compiled does not agree with {got.against} on {got.raw.frames} {got.source} ({got.runtime}): "
            f"{got.raw.problem}: {remedy}, or allow it with --min-iou 0"
        )
    else:
        return None
    return (
        f"what was compiled does not agree with {got.against} on {got.frames} {got.source} ({got.runtime}): expected {expected}, "
        f"got {got}: {remedy}, or allow it with {allowed_by}"
    )
