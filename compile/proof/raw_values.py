"""What masks are made of, compared before it is cut to 8 bits or to the likeliest class, where a conversion's mistake can hide.

    the network -> scores -> activation, size -> values -> rounded, or the largest -> masks

Of the program that is judged a copy is made that has scores and values at its output too. Both are compared with those of the trained
network: classes that have changed places but seldom win, an offset of all scores, a second activation, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline.bundles.bundle import MASKS, NOT_FINITE, Precision

FRAMES = 4
"""On how many frames: every channel of each pixel is compared, so that few are enough."""

RAW_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.1, "int8": 0.7}
"""How far scores may be from the reference's, as a share of their standard deviation.

In FP32 that is rounding: 1e-6 to 1e-5 of it was measured, and 8e-5 where the contract cuts to steps. FP16 took 0.004 to 0.02, INT8
0.004 to 0.37. What a precision costs the masks say; these are for mistakes: beyond 0.7 half of what the scores say is lost.
"""
CONVERTED_LIMIT = 0.3
"""The same of NV12, whose colors the host and the program round apart, and of a reference that is not in FP32 itself."""

# As many numbers of a frame are kept: at 8 bits of a full HD frame with 21 classes they would be 44 millions.
_MOST_NUMBERS = 1 << 17
# A class whose scores are this much nearer to those of another class has its place: rounding brings none nearer to another.
_NEARER = 0.5


class Raw(NamedTuple):
    """What the masks of some frames are made of, at some of their pixels.

    Attributes:
        frames_nhwc: the frames, as the program takes them, but for NV12 in BGR.
        scores: (N, C, K) float32, of the network at K of its pixels; None where the program's are other ones.
        values: (N, C, K) float32, what is rounded to 8 bits, 0 to 255, or of which the largest gives the class; None where the network
            gives class indices itself.
    """

    frames_nhwc: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    values: NDArray[np.float32] | None


def thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C, H, W) at some pixels, the same ones for each shape, (N, C, K)."""
    count, channels, height, width = values.shape
    flat = np.asarray(values, np.float32).reshape(count, channels, height * width)
    wanted = max(1, _MOST_NUMBERS // channels)
    if wanted >= height * width:
        return flat
    return flat[:, :, np.random.default_rng(0).choice(height * width, wanted, replace=False)]


def with_raw_outputs(program: bytes) -> tuple[bytes, dict[str, str]]:
    """A copy of a frame program that gives what its masks are made of too.

    Returns:
        The copy, and the names of those outputs, under "scores" and "values"; what it does not have is not there.
    """
    model = onnx.load_from_string(program)
    makers = {name: node for node in model.graph.node for name in node.output}
    counted = _nearest(NOT_FINITE, ("Abs",), makers, ())
    scores = () if counted is None else tuple(counted.input[:1])
    decided = _nearest(MASKS, ("Round", "ArgMax"), makers, scores)
    names = {"scores": scores[0]} if scores else {}
    if decided is not None:
        names["values"] = decided.input[0]
    there = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names.values()):
        if name not in there:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    content: bytes = model.SerializeToString()
    return content, names


def _nearest(
    result: str, kinds: Sequence[str], makers: dict[str, onnx.NodeProto], ends: Sequence[str]
) -> onnx.NodeProto | None:
    """The nearest node of some kinds that a result is made by; nothing behind ``ends`` is looked at."""
    names, seen = [result], set(ends)
    while names:
        name = names.pop(0)
        node = makers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type in kinds:
            return node
        names.extend(node.input)
    return None


@dataclass(frozen=True, slots=True)
class RawAgreement:
    """How far what masks are made of agrees with the reference's.

    Attributes:
        frames: on how many frames.
        scores: root mean square of the difference, as a share of the standard deviation; None where there is nothing to compare.
        values: the same of what is rounded, or of which the largest counts.
        limit: what either may be.
        exchanged: a class, and the class whose numbers it has; None where none has another's.
    """

    frames: int
    scores: float | None
    values: float | None
    limit: float
    exchanged: tuple[int, int] | None = None

    @property
    def worst(self) -> float | None:
        """The larger of both."""
        return max((one for one in (self.scores, self.values) if one is not None), default=None)

    @property
    def problem(self) -> str | None:
        """What is wrong; None if nothing is."""
        if self.exchanged is not None:
            one, other = self.exchanged
            return f"expected the scores of class {one} as the reference gives them, got those of its class {other}"
        for what, error in (("scores", self.scores), ("values that become masks", self.values)):
            if error is not None and not error <= self.limit:
                return (
                    f"expected {what} within {self.limit:g} of the reference's (root mean square, by their standard deviation), "
                    f"got {error:.3g}: masks alone do not show that"
                )
        return None

    def __str__(self) -> str:
        return "no scores to compare" if self.worst is None else f"scores within {self.worst:.2g} of their deviation"


class RawComparison:
    """Adds up, frame by frame, how far one kind of number agrees."""

    def __init__(self) -> None:
        self._got: list[NDArray[np.float32]] = []
        self._expected: list[NDArray[np.float32]] = []

    def add(self, got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """(N, C, K) of some frames; of another shape than what is expected, nothing agrees."""
        self._got.append(got)
        self._expected.append(expected)

    def error(self) -> float | None:
        """Root mean square of the difference by the standard deviation; infinite where other numbers are finite; None without any."""
        if not self._got:
            return None
        if any(got.shape != expected.shape for got, expected in zip(self._got, self._expected, strict=True)):
            return float("inf")
        got, expected = self._by_channel()
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(got)):
            return float("inf")
        if not finite.any():
            return 0.0
        exact = np.where(finite, expected, np.nan)
        spread = float(np.sqrt(np.nanmean(np.square(exact - np.nanmean(exact, axis=1, keepdims=True)))))
        scale = spread or float(np.nanmax(np.abs(exact))) or 1.0
        return float(np.sqrt(np.mean(np.square(got[finite] - expected[finite])))) / scale

    def exchanged(self, limit: float) -> tuple[int, int] | None:
        """A channel that has the numbers of another, within the limit; None where there is none, or one channel alone."""
        if not self._got or any(g.shape != e.shape for g, e in zip(self._got, self._expected, strict=True)):
            return None
        got, expected = (np.nan_to_num(one, posinf=0.0, neginf=0.0) for one in self._by_channel())
        own = np.square(got - expected).sum(1)
        others = np.square(got).sum(1)[:, None] + np.square(expected).sum(1) - 2 * got @ expected.T
        nearest = others.argmin(1)
        most = limit**2 * float(np.square(expected - expected.mean(1, keepdims=True)).mean()) * expected.shape[1]
        for channel, other in enumerate(nearest):
            # Sums of squares that nearly cancel are as exact as their parts.
            least = 1e-9 * float(np.square(expected[channel]).sum())
            found = others[channel, other] + least
            if other != channel and found < min(_NEARER**2 * own[channel], most):
                return channel, int(other)
        return None

    def _by_channel(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C, all pixels of all frames)."""
        joined = [
            np.concatenate([frame for part in parts for frame in part], axis=1).astype(np.float64)
            for parts in (self._got, self._expected)
        ]
        return joined[0], joined[1]
