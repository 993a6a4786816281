"""Whether a way to run a program gives the masks that the program gives in FP32, on a few frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import GATE_MEAN_IOU, GATE_WORST_IOU, Task
from pipeline.frames.iou import (
    LEAST_COVERED,
    MOST_UNDECIDED,
    covered_share,
    iou,
    mean_absolute_error,
    undecided_share,
)

Masks = NDArray[np.uint8]

MAX_MAE = 0.01
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

    def problem(self, gate: Mapping[str, float], *, exact: bool) -> str:
        """Why they do not agree well enough, in a phrase; empty if they do.

        Args:
            gate: what the bundle's own gate asked for, see ``Manifest.gate``; the defaults of ``compile`` where it does not say.
            exact: the program is computed as it is, so that no frame has to show a clear subject.
        """
        mean, worst = gate.get("mean", GATE_MEAN_IOU), gate.get("worst", GATE_WORST_IOU)
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
    ious = [iou(mask, reference, task) for mask, reference in pairs if _is_clear(reference, task)]
    errors = [mean_absolute_error(mask, reference, task) for mask, reference in pairs]
    if not ious:
        return Agreement(1.0, 1.0, 1.0, float(np.mean(errors)), 0)
    drawn = np.random.default_rng(0).integers(0, len(ious), (_RESAMPLES, len(ious)))
    low = float(np.quantile(np.asarray(ious)[drawn].mean(axis=1), 0.025))
    return Agreement(float(np.mean(ious)), low, min(ious), float(np.mean(errors)), len(ious))


def _is_clear(reference: Masks, task: Task) -> bool:
    """Whether a frame is judged by itself, as the gate of ``compile`` does."""
    covered = covered_share(reference, task)
    if covered < LEAST_COVERED or task == "classes":
        return covered >= LEAST_COVERED
    return undecided_share(reference) <= MOST_UNDECIDED * covered
