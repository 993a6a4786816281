"""What every part of the GPU benchmark measures on, and how it is told: sample frames, agreement of masks, percentiles of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.metrics.agreement import iou
from calibration.sets.photographs import PhotographSource
from pipeline.bundles.bundle import Task

Frames = NDArray[np.uint8]
Masks = NDArray[np.uint8]

SIZES_HW = ((1080, 1920), (720, 1280))
QUICK_SIZES_HW = ((48, 64), (36, 48))
_COUNT = 4


@dataclass(frozen=True)
class Sample:
    """(1, H, W, 3) uint8 frames and the (H, W) mask that the CPU makes of them."""

    frames_nhwc: Frames
    expected_hw: Masks


def sample_frames(size_hw: tuple[int, int]) -> list[Frames]:
    """Some of the package's photographs at one size, each as (1, H, W, 3) uint8 BGR."""
    return [
        np.ascontiguousarray(cv2.resize(frame.image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)[None], np.uint8)
        for frame in islice(PhotographSource(), _COUNT)
    ]


def agreement(masks_of: Callable[[Frames], Masks], samples: Sequence[Sample], task: Task) -> dict[str, Any]:
    """IoU with the CPU's masks and the largest difference in a pixel, in steps of 255."""
    ious, differences = [], []
    for sample in samples:
        (got_hw,) = masks_of(sample.frames_nhwc)
        ious.append(iou(got_hw, sample.expected_hw, task))
        differences.append(int(np.abs(got_hw.astype(np.int16) - sample.expected_hw).max()))
    return {
        "pictures": len(samples),
        "iou_mean": round(float(np.mean(ious)), 5),
        "iou_worst": round(min(ious), 5),
        "max_difference": max(differences),
    }


def percentiles(times_ms: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile of times in milliseconds."""
    p50_ms, p95_ms = (round(float(value), 4) for value in np.percentile(times_ms, (50, 95)))
    return {"runs": len(times_ms), "p50_ms": p50_ms, "p95_ms": p95_ms}
