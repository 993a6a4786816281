"""Ranges of activations for INT8: a histogram of each tensor in one pass over the frames, and four ways to read it.

Memory is one histogram for each tensor, however many frames there are.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Method = Literal["max", "mse", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)

LEVELS = 127
"""INT8 is symmetric: −127 to 127, zero is zero."""

PERCENTILE = 99.99
_BINS = 4096


class Histogram:
    """Absolute values of a tensor over all frames, in bins of equal width; the range doubles when a value leaves it.

    Attributes:
        largest: the largest absolute value so far.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._end = 0.0
        self._counts = np.zeros(_BINS, np.float64)

    def add(self, values: Tensor) -> None:
        """Count a tensor of any shape, float; not changed."""
        magnitudes = values.detach().abs().flatten().float()
        largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
        self.largest = max(self.largest, largest)
        if self._end == 0.0:
            self._end = largest
        while largest > self._end > 0.0:
            self._counts = np.concatenate([self._counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2)])
            self._end *= 2
        if self._end > 0.0:
            self._counts += torch.histc(magnitudes, _BINS, 0.0, self._end).double().numpy()

    def range(self, method: Method) -> float:
        """The absolute value that becomes ``LEVELS``; larger ones are clipped. 0 if there was nothing but zeros."""
        if self._end == 0.0:
            return 0.0
        if method == "max":
            return self.largest
        if method == "percentile":
            below = np.cumsum(self._counts) / self._counts.sum()
            return float((np.searchsorted(below, PERCENTILE / 100) + 1) * self._end / _BINS)
        limits = np.linspace(0.2, 1.0, 81) * self.largest
        errors = [self._squared_error(limit) if method == "mse" else self._divergence(limit) for limit in limits]
        return float(limits[int(np.argmin(errors))])

    @property
    def _centers(self) -> NDArray[np.float64]:
        return np.asarray((np.arange(_BINS) + 0.5) * (self._end / _BINS), np.float64)

    def _squared_error(self, limit: float) -> float:
        step = limit / LEVELS
        rounded = np.clip(np.round(self._centers / step), 0, LEVELS) * step
        return float((self._counts * (self._centers - rounded) ** 2).sum())

    def _divergence(self, limit: float) -> float:
        """Kullback-Leibler divergence of the values from what INT8 keeps of them, as TensorRT's entropy calibrator has it."""
        inside = max(LEVELS + 1, min(_BINS, round(limit / self._end * _BINS)))
        exact = self._counts[:inside].copy()
        exact[-1] += self._counts[inside:].sum()
        level = (np.arange(inside) * (LEVELS + 1)) // inside
        filled = (self._counts[:inside] > 0).astype(np.float64)
        sums, counts = np.bincount(level, self._counts[:inside]), np.bincount(level, filled)
        kept = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)[level] * filled
        used = (exact > 0) & (kept > 0)
        if not used.any() or exact.sum() == 0 or kept.sum() == 0:
            return float("inf")
        p, q = exact / exact.sum(), kept / kept.sum()
        missing = p[(exact > 0) & (kept == 0)].sum()
        return float((p[used] * np.log(p[used] / q[used])).sum() + missing * 10.0)
