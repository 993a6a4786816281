"""Whether a figure that was sampled over time grows: a robust slope with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

CONFIDENCE = 0.99
MIN_BLOCKS = 8
_BLOCKS = 30
_HOURS_OF_30_DAYS = 720.0


@dataclass(frozen=True, slots=True)
class Slope:
    """How a figure changes, in its unit per hour.

    Attributes:
        per_hour: the median of the slopes between all pairs of blocks (Theil-Sen).
        low_per_hour: the lower end of the interval that holds the slope with `CONFIDENCE`.
        high_per_hour: its upper end.
        blocks: how many medians it was fitted to.
    """

    per_hour: float
    low_per_hour: float
    high_per_hour: float
    blocks: int

    @property
    def verdict(self) -> str:
        """In two words; a figure that does not change at all is within noise too."""
        if self.low_per_hour > 0:
            return "it grows"
        return "it falls" if self.high_per_hour < 0 else "within noise"

    @property
    def in_30_days(self) -> float:
        """What the slope would add in 30 days, if it went on."""
        return self.per_hour * _HOURS_OF_30_DAYS


def slope_of(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Fit a line to samples.

    Neighboring samples are not independent of each other, since a camera that drops or a viewer who comes is seen in several. So a
    line is fitted to the medians of 30 blocks, each longer than such an event, and not to the samples: their interval would be far
    too narrow.

    Args:
        times_s: when the samples were taken, in seconds, in order.
        values: the samples.

    Raises:
        ValueError: they are too few for an interval.
    """
    count = min(_BLOCKS, len(times_s) // 2)
    if count < MIN_BLOCKS:
        raise ValueError(f"expected {2 * MIN_BLOCKS} samples or more for a slope, got {len(times_s)}")
    parts = list(
        zip(np.array_split(np.asarray(times_s), count), np.array_split(np.asarray(values), count), strict=True)
    )
    hours = [float(np.median(part_s)) / 3600 for part_s, _ in parts]
    medians = [float(np.median(part)) for _, part in parts]
    fitted = theilslopes(medians, hours, CONFIDENCE)
    return Slope(float(fitted.slope), float(fitted.low_slope), float(fitted.high_slope), count)
