"""Whether a way to run a program gives the masks that the program gives in FP32, on a few frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task

Masks = NDArray[np.uint8]

# What compile's gate asks for.
MIN_MEAN_IOU, MIN_WORST_IOU, MAX_MAE = 0.99, 0.90, 0.01
# A frame is judged by itself whose subject covers so much of it, and whose undecided pixels are at most so much of the subject.
_LEAST_COVERED, _MOST_UNDECIDED = 0.01, 0.25
_UNDECIDED = (0.3 * 255, 0.7 * 255)
_RESAMPLES = 2000
FEWEST_CLEAR = 4
"""So many frames must show a clear subject: where both masks are empty, any network agrees with any other."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far masks agree with those in FP32.

    Attributes:
        mean: IoU, mean over the frames with a clear subject.
        low: lower end of the mean's 95 % interval (bootstrap over the frames).
        worst: that of the worst one.
        mae: mean absolute error of all frames, 0 to 1.
        clear: how many frames show a clear subject.
    """

    mean: float
    low: float
    worst: float
    mae: float
    clear: int

    def problem(self, gate: Mapping[str, Any], *, exact: bool) -> str:
        """Why they do not agree well enough, in a phrase; empty if they do.

        Args:
            gate: what the bundle's own gate asked for under "mean" and "worst"; the defaults of ``compile`` where it does not say.
            exact: the program is computed as it is, so that no frame has to show a clear subject.
        """
        mean, worst = float(gate.get("mean", MIN_MEAN_IOU)), float(gate.get("worst", MIN_WORST_IOU))
        if not exact and self.clear < FEWEST_CLEAR:
            return f"expected {FEWEST_CLEAR} frames with a clear subject to compare masks on, got {self.clear}"
        if self.clear and self.low < mean:
            return f"expected a mean IoU with FP32 whose interval begins at {mean:g}, got {self.mean:.4f} (from {self.low:.4f})"
        if self.clear and self.worst < worst:
            return f"expected an IoU with FP32 of {worst:g} on the worst frame, got {self.worst:.4f}"
        if not self.mae <= max(MAX_MAE, 1 - mean):
            return f"expected masks within {max(MAX_MAE, 1 - mean):g} of FP32's in the mean, got {self.mae:.4f}"
        return ""

    def __str__(self) -> str:
        return f"mean IoU with FP32 {self.mean:.4f}, worst {self.worst:.4f}" if self.clear else f"error {self.mae:.4f}"


def compare(masks: Sequence[Masks], references: Sequence[Masks], task: Task) -> Agreement:
    """Compare masks with those in FP32.

    Args:
        masks: (H, W) uint8 each, of any sizes.
        references: the same, of the same frames.
        task: what values mean.
    """
    pairs = list(zip(masks, references, strict=True))
    ious = [_iou(mask, reference, task) for mask, reference in pairs if _is_clear(reference, task)]
    errors = [
        float(np.mean(mask != reference))
        if task == "classes"
        else float(np.mean(np.abs(mask.astype(np.int16) - reference))) / 255
        for mask, reference in pairs
    ]
    if not ious:
        return Agreement(1.0, 1.0, 1.0, float(np.mean(errors)), 0)
    drawn = np.random.default_rng(0).integers(0, len(ious), (_RESAMPLES, len(ious)))
    low = float(np.quantile(np.asarray(ious)[drawn].mean(axis=1), 0.025))
    return Agreement(float(np.mean(ious)), low, min(ious), float(np.mean(errors)), len(ious))


def _is_clear(mask_hw: Masks, task: Task) -> bool:
    if task == "classes":
        return float(np.bincount(mask_hw.ravel()).max()) <= (1 - _LEAST_COVERED) * mask_hw.size
    subject = np.count_nonzero(mask_hw >= 127.5)
    low, high = _UNDECIDED
    undecided = np.count_nonzero((mask_hw >= low) & (mask_hw <= high))
    return bool(subject >= _LEAST_COVERED * mask_hw.size and undecided <= _MOST_UNDECIDED * subject)


def _iou(mask_hw: Masks, reference_hw: Masks, task: Task) -> float:
    if task == "classes":
        present = np.union1d(np.unique(mask_hw), np.unique(reference_hw))
        return float(np.mean([_overlap(mask_hw == index, reference_hw == index) for index in present]))
    return _overlap(mask_hw >= 127.5, reference_hw >= 127.5)


def _overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0
