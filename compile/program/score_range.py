"""Whether what a network gives can be what its contract says, and whether its masks show anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from compile.networks.contract import Contract
from compile.program.outputs import Form, task_of
from compile.proof.verify import Sample
from pipeline.bundles.bundle import Task
from pipeline.errors import CompileError

# How far probabilities, and their sum, may leave 0 to 1 by rounding.
_SLACK = 0.01
# A mask that spreads over less than this has no shape.
_FLAT = 25


class ScoreRange:
    """What values a network of another family gives, and whether the contract allows them.

    Args:
        contract: the network's.
        class_count: of its output.
        form: what the contract takes its numbers for.
    """

    def __init__(self, contract: Contract, class_count: int, form: Form = "scores") -> None:
        self._contract, self._count, self._form = contract, class_count, form
        self._low, self._high = math.inf, -math.inf
        self._off_one = 0.0  # how far a pixel's values are from a sum of 1

    def add(self, scores: Tensor) -> None:
        """Look at (1, C, h, w) scores of a frame, with the activation that belongs to the network; NaN is left to others."""
        if self._form == "scores" and self._contract.subject is not None and self._contract.activation == "none":
            scores = scores[:, self._contract.subject : self._contract.subject + 1]
        finite = scores[torch.isfinite(scores)]
        if finite.numel():
            self._low, self._high = min(self._low, float(finite.min())), max(self._high, float(finite.max()))
        if scores.shape[1] > 1:
            self._off_one = max(self._off_one, float((scores.sum(1) - 1).abs().max()))

    def check(self) -> str | None:
        """What is to be told of the values; None if nothing is.

        Raises:
            CompileError: they cannot be what the contract says.
        """
        if self._low > self._high or self._form in ("bytes", "decisions"):
            return None
        if self._form == "indices":
            self._check_indices()
            return None
        is_mixed = task_of(self._contract, self._count) == "classes" and not self._contract.multilabel
        return self._doubt_of_classes() if is_mixed else self._check_probabilities()

    @property
    def _within(self) -> str:
        return f"values from {self._low:.3g} to {self._high:.3g}"

    @property
    def _are_probabilities(self) -> bool:
        return self._low >= 0 and self._high <= 1

    @property
    def _add_up(self) -> bool:
        return self._off_one <= _SLACK

    def _check_indices(self) -> None:
        if self._contract.subject is None and not (self._low >= 0 and self._high < self._count):
            raise CompileError(
                f"contract {self._contract.name}: classes: expected a name for each class index, got {self._count} names and indices "
                f"up to {self._high:g}: name all classes"
            )

    def _check_probabilities(self) -> str | None:
        """Of what becomes a probability for each channel, or for one."""
        contract, name = self._contract, f"contract {self._contract.name}"
        if contract.activation == "none":
            if not (self._low >= -_SLACK and self._high <= 1 + _SLACK):
                what = "divide them by 255 in the network" if self._is_of_bytes else "divide them in the network"
                raise CompileError(
                    f"{name}: activation: expected values from 0 to 1 for none, got {self._within}: "
                    f"set activation: sigmoid, or {what}"
                )
            return None
        is_of_subject = contract.subject is not None and not contract.multilabel
        if self._low == self._high:
            return None  # the masks are flat, which is told
        if is_of_subject and self._are_probabilities and not self._add_up:
            return (
                f"{name}: the network's values are from 0 to 1 and do not add up to 1, as probabilities of several labels, and "
                "softmax makes nearly the same of all: set multilabel: true and activation: none if they are"
            )
        if self._are_probabilities:
            activation = "softmax" if is_of_subject else "sigmoid"
            raise CompileError(
                f"{name}: activation: expected logits for {activation}, got {self._within} on all frames, as probabilities are, of "
                f"which a second {activation} makes nearly the same everywhere: set activation: none"
            )
        if self._is_of_bytes:
            raise CompileError(
                f"{name}: activation: expected logits for {contract.activation}, got {self._within} on all frames, as "
                "probabilities × 255 are: set activation: none"
            )
        return None

    @property
    def _is_of_bytes(self) -> bool:
        """Whether it looks as probabilities × 255."""
        return self._low >= 0 and 100 < self._high <= 255

    def _doubt_of_classes(self) -> str | None:
        """Of what only the largest counts."""
        if not self._are_probabilities:
            return None
        name = f"contract {self._contract.name}"
        if self._add_up:
            if self._contract.activation != "softmax":
                return None
            return f"{name}: the network gives probabilities already: activation: none says so"
        return (
            f"{name}: the network's values are from 0 to 1 and do not add up to 1, as probabilities of several labels, and each pixel "
            "gets the likeliest: set multilabel: true and activation: none if there are pixels of none"
        )


def doubt_of_masks(samples: Sequence[Sample], task: Task) -> str | None:
    """What is to be told where the trained network's masks show the same on all frames; None where they do not."""
    masks = [sample.expected_nhw for sample in samples]
    if len(masks) < 2:
        return None
    if task == "binary" and all(bool((mask >= 128).all()) for mask in masks):
        what = "all of the picture is subject"
    elif task == "binary" and not any(bool((mask >= 128).any()) for mask in masks):
        what = "nothing is subject"
    elif all(int(np.ptp(mask)) <= (_FLAT if task == "binary" else 0) for mask in masks):
        what = "the mask is the same all over"
    else:
        return None
    return (
        f"on each of {len(masks)} frames {what}: expected masks with a shape: check channels, divide_by, mean, std and activation of "
        "the contract, or verify on frames of the kind that the network knows (--verify)"
    )
