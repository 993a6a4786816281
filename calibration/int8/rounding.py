"""Weights in INT8 that give the same outputs, not the nearest values: what rounding one weight does wrong, the others make good.

Every weight in turn is rounded, and those that are still to come take over the error as far as their inputs go along with its input.
Neighboring pixels are nearly the same, so nearly all of it goes away: on U²-NetP's worst layers what rounding does to the outputs
falls 20 to 400 times in power. The method is that of Frantar et al., "GPTQ", ICLR 2023, after Hassibi and Stork's "Optimal brain
surgeon".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calibration.int8.ranges import LEVELS

SMALLEST_SCALE = 2.0**-14
"""FP16's smallest normal number: a smaller scale would lose bits."""

# Added to the second moments' diagonal, as a share of its mean: they come from some frames, not from all there will be.
_DAMPING = 0.01
# Columns whose errors are handed on together.
_AT_ONCE = 48


def weight_scales(weight: Tensor) -> Tensor:
    """The step of each output channel at which rounding does the least squared error.

    Args:
        weight: (K, columns) float32.

    Returns:
        (K,) float32, each a value that FP16 has.
    """
    largest = weight.abs().amax(1)
    best, error_of_best = largest, torch.full_like(largest, torch.inf)
    for share in np.linspace(0.5, 1.0, 26):
        scale = _as_half(largest * float(share) / LEVELS)
        error = (_levels(weight, scale[:, None]) * scale[:, None] - weight).square().sum(1)
        best = torch.where(error < error_of_best, scale, best)
        error_of_best = torch.minimum(error, error_of_best)
    return best


def round_weights(weight: Tensor, scales: Tensor, moments: Sequence[Tensor] | None = None) -> Tensor:
    """Round weights to INT8.

    Args:
        weight: (K, columns) float32.
        scales: (K,) float32.
        moments: second moments of the columns' inputs, in blocks along the diagonal; None rounds to the nearest.

    Returns:
        (K, columns) int8, −127 to 127.
    """
    if moments is None:
        return _levels(weight, scales[:, None]).to(torch.int8)
    parts = torch.split(weight, [len(block) for block in moments], 1)
    rounded = [_compensated(part.double(), scales.double(), block) for part, block in zip(parts, moments, strict=True)]
    return torch.cat(rounded, 1).to(torch.int8)


def output_error(weight: Tensor, rounded: Tensor, moments: Sequence[Tensor]) -> float:
    """Mean square of what other weights do to the outputs, over the frames that the moments are of.

    Args:
        weight: (K, columns) float32.
        rounded: the same.
        moments: as for ``round_weights``.
    """
    parts = torch.split(rounded - weight, [len(block) for block in moments], 1)
    errors = [float(((part @ block) * part).sum()) for part, block in zip(parts, moments, strict=True)]
    return max(0.0, sum(errors)) / len(weight)


def _compensated(weight: Tensor, scales: Tensor, moments: Tensor) -> Tensor:
    size = len(moments)
    damping = _DAMPING * float(moments.diagonal().mean()) or 1.0
    hessian = moments.double() + damping * torch.eye(size, dtype=torch.double)
    # Large inputs first: their errors have the most others left to take them over.
    order = hessian.diagonal().argsort(descending=True)
    weight, hessian = weight[:, order].clone(), hessian[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    levels = torch.empty_like(weight)
    errors = torch.empty((len(weight), _AT_ONCE), dtype=torch.double)
    for start in range(0, size, _AT_ONCE):
        end = min(start + _AT_ONCE, size)
        for column in range(start, end):
            levels[:, column] = _levels(weight[:, column], scales)
            error = (weight[:, column] - levels[:, column] * scales) / inverse[column, column]
            weight[:, column + 1 : end] -= error[:, None] * inverse[column, column + 1 : end]
            errors[:, column - start] = error
        # All that come later take over a block's errors together, which reads them from memory once.
        weight[:, end:] -= errors[:, : end - start] @ inverse[start:end, end:]
    restored = torch.empty_like(levels)
    restored[:, order] = levels
    return restored


def _levels(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales).round().clamp(-LEVELS, LEVELS)


def _as_half(scale: Tensor) -> Tensor:
    return scale.clamp(min=SMALLEST_SCALE).half().float()
