"""Ranges of activations for INT8: a histogram of each channel in one pass over the frames, and four ways to read them.

Channels are counted apart, so that a range can be had for some of them, or for channels that are multiplied by a factor, without a
second pass. Memory is one histogram for each channel, however many frames there are.
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
# Of a channel, and of a tensor.
_BINS = 1024
_TENSOR_BINS = 4096
# Of a frame's larger maps a sample is counted; the largest values are those of all.
_MOST_POSITIONS = 1 << 14


class Histograms:
    """Absolute values of a tensor's channels over all frames, in bins of equal width; a range doubles when a value leaves it.

    Attributes:
        reach: (C,) float32, the largest absolute value of each channel so far; empty before the first frame.
    """

    def __init__(self) -> None:
        self.reach = torch.zeros(0)
        self._ends = torch.zeros(0)
        self._counts = torch.zeros((0, _BINS))

    def add(self, values: Tensor, largest: Tensor | None = None) -> None:
        """Count a tensor.

        Args:
            values: (N, C, H, W) float; not changed.
            largest: (C,) the largest absolute value of each channel, where ``values`` are only some of them.
        """
        channels = values.detach().abs().float().transpose(0, 1).flatten(1)
        largest = channels.amax(1) if largest is None else largest
        if not len(self.reach):
            self.reach, self._ends = torch.zeros_like(largest), largest.clone()
            self._counts = torch.zeros((len(largest), _BINS))
        self.reach = torch.maximum(self.reach, largest)
        self._ends = torch.where(self._ends > 0, self._ends, largest)
        while bool((outside := largest > self._ends).any()):
            halves = self._counts[outside].view(-1, _BINS // 2, 2).sum(2)
            self._counts[outside] = torch.cat((halves, torch.zeros_like(halves)), 1)
            self._ends[outside] *= 2
        # An odd step, so that the sample does not run along one column.
        sample = channels[:, :: max(1, channels.shape[1] // _MOST_POSITIONS) | 1]
        bins = (sample * (_BINS / self._ends.clamp(min=1e-30)).view(-1, 1)).long().clamp_(max=_BINS - 1)
        bins += torch.arange(len(bins)).view(-1, 1) * _BINS
        self._counts += torch.bincount(bins.flatten(), minlength=self._counts.numel()).view_as(self._counts)

    def range(
        self,
        method: Method,
        channels: NDArray[np.int64] | None = None,
        factors: NDArray[np.float64] | None = None,
        levels: int = LEVELS,
    ) -> float:
        """The absolute value that becomes ``levels``; larger ones are clipped.

        Args:
            method: how it is chosen.
            channels: those that count; None for all.
            factors: (C,) what every channel is multiplied by; None for 1.
            levels: steps from 0 to the range; 255 for values that are never negative and take eight bits without a sign.

        Returns:
            0 if there was nothing but zeros.
        """
        chosen = np.arange(len(self.reach)) if channels is None else channels
        by = np.ones(len(self.reach)) if factors is None else factors
        largest = float((self.reach.double().numpy()[chosen] * by[chosen]).max(initial=0.0))
        if largest == 0.0 or method == "max":
            return largest
        counts = self._tensor_counts(chosen, by, largest)
        if method == "percentile":
            below = np.cumsum(counts) / counts.sum()
            return float((np.searchsorted(below, PERCENTILE / 100) + 1) * largest / _TENSOR_BINS)
        limits = np.linspace(0.2, 1.0, 81)
        error = _squared_error if method == "mse" else _divergence
        errors = [error(counts, limit, levels) for limit in limits]
        return float(limits[int(np.argmin(errors))] * largest)

    def _tensor_counts(
        self, channels: NDArray[np.int64], factors: NDArray[np.float64], largest: float
    ) -> NDArray[np.float64]:
        """One histogram of all, to ``largest``: what is in a bin of a channel is spread evenly over it."""
        edges = np.linspace(0.0, largest, _TENSOR_BINS + 1)
        below = np.zeros(_TENSOR_BINS + 1)
        for channel in channels:
            end = float(self._ends[channel]) * factors[channel]
            if end > 0:
                sums = np.concatenate([[0.0], np.cumsum(self._counts[channel].numpy(), dtype=np.float64)])
                below += np.interp(edges, np.linspace(0.0, end, _BINS + 1), sums)
            else:
                below[1:] += float(self._counts[channel].sum())
        return np.asarray(np.diff(below), np.float64)


def _squared_error(counts: NDArray[np.float64], limit: float, levels: int) -> float:
    """Of values counted in bins from 0 to 1, clipped at ``limit``."""
    centers = (np.arange(len(counts)) + 0.5) / len(counts)
    step = limit / levels
    rounded = np.clip(np.round(centers / step), 0, levels) * step
    return float((counts * (centers - rounded) ** 2).sum())


def _divergence(counts: NDArray[np.float64], limit: float, levels: int) -> float:
    """Kullback-Leibler divergence of the values from what INT8 keeps of them, as TensorRT's entropy calibrator has it."""
    inside = max(levels + 1, min(len(counts), round(limit * len(counts))))
    exact = counts[:inside].copy()
    exact[-1] += counts[inside:].sum()
    level = (np.arange(inside) * (levels + 1)) // inside
    filled = (counts[:inside] > 0).astype(np.float64)
    sums, sizes = np.bincount(level, counts[:inside]), np.bincount(level, filled)
    kept = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)[level] * filled
    used = (exact > 0) & (kept > 0)
    if not used.any() or exact.sum() == 0 or kept.sum() == 0:
        return float("inf")
    p, q = exact / exact.sum(), kept / kept.sum()
    missing = p[(exact > 0) & (kept == 0)].sum()
    return float((p[used] * np.log(p[used] / q[used])).sum() + missing * 10.0)
