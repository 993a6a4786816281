"""Which convolutions can be INT8: ranges from calibration frames, and a search for the few that cannot.

Every convolution is tried in INT8 but the first and the last ones, where little is gained and much lost, and grouped ones. Where the
masks suffer, layers are ranked by the noise that INT8 makes in each of them alone; from the worst on each is repaired, by leaving the
input channels that reach furthest out of INT8, or else left in FP16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.ranges import Histogram, Method
from compile.program import fold_norms
from compile.quantized import QuantizedConv

GOAL_IOU = 0.99
"""Agreement on the frames of the search at which it ends."""

_MOST_REPAIRS = 6
# Input channels that are tried out of INT8.
_OUTLIERS = (1, 2)


@dataclass(frozen=True)
class Int8Plan:
    """What is INT8, and how.

    Attributes:
        ranges: by layer, the absolute value of the input that becomes 127.
        exact: by layer, the input channels that stay out of INT8.
        left: layers that stay FP16, and why.
        noise: by layer, what INT8 does to it alone, as a share of its output's spread.
        share: of the convolutions' multiply-accumulates that are INT8.
        iou: mean agreement with FP32 on the frames of the search.
    """

    ranges: Mapping[str, float]
    exact: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    share: float = 0.0
    iou: float = 0.0


class Int8Search:
    """Finds what can be INT8.

    Args:
        network: in evaluation mode, FP32; copied, its batch normalisations folded.

    Attributes:
        network: the copy, which is run on the calibration frames inside ``observe``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = fold_norms(copy.deepcopy(network))
        layers = self.network.named_modules()
        self._layers = {name: layer for name, layer in layers if isinstance(layer, nn.Conv2d)}
        self._histograms = {name: Histogram() for name in self._layers}
        self._reach: dict[str, Tensor] = {}
        self._work: dict[str, float] = {}

    def observe(self, run: Callable[[], object]) -> None:
        """Count the values of every layer's input while ``run`` runs the network on some frames."""

        def count(name: str, layer: nn.Conv2d, x: Tensor, output: Tensor) -> None:
            self._histograms[name].add(x)
            largest = x.detach().abs().amax((0, 2, 3))
            self._reach[name] = torch.maximum(self._reach.get(name, largest), largest)
            self._work[name] = float(layer.weight.numel()) * output.shape[-1] * output.shape[-2]

        self._hooked(count, run)

    def find(
        self,
        run: Callable[[], object],
        agreement: Callable[[nn.Module], float],
        method: Method,
        goal_iou: float = GOAL_IOU,
    ) -> Int8Plan:
        """Find what can be INT8, after ``observe``.

        Args:
            run: runs ``network`` on a frame or a few, for the noise of each layer.
            agreement: the mean IoU of a network's masks with FP32's on some frames.
            method: how a histogram becomes a range.
            goal_iou: enough.
        """
        order = list(self._work)
        fewest = min(layer.out_channels for layer in self._layers.values())
        left = {order[0]: "the first layer"} if order else {}
        left |= {
            name: "a last layer" for name in order if self._layers[name].out_channels == fewest and name not in left
        }
        left |= {name: "a grouped convolution" for name in order if self._layers[name].groups > 1}
        ranges = {name: self._histograms[name].range(method) for name in order if name not in left}
        exact: dict[str, tuple[int, ...]] = {}
        noise = self._noise(run, ranges)
        best = agreement(self.quantised(ranges, exact))
        for name in sorted(noise, key=lambda name: -noise[name])[:_MOST_REPAIRS]:
            if best >= goal_iou:
                break
            trials: list[tuple[float, dict[str, float], dict[str, tuple[int, ...]]]] = []
            for channels, reach in self._outliers(name).items():
                trial = {**ranges, name: min(ranges[name], reach)}, {**exact, name: channels}
                trials.append((agreement(self.quantised(*trial)), *trial))
            gained, *trial_of_best = max(trials, key=lambda one: one[0], default=(best, ranges, exact))
            if gained > best + 0.1 * (1 - best):
                best, (ranges, exact) = gained, trial_of_best  # type: ignore[assignment]
                continue
            without = {other: value for other, value in ranges.items() if other != name}
            others = {other: value for other, value in exact.items() if other != name}
            gained = agreement(self.quantised(without, others))
            if gained > best + 0.1 * (1 - best):  # a tenth of what is missing; less is not worth a layer
                best, ranges, exact = gained, without, others
                left[name] = f"in INT8 its output has {100 * noise[name]:.0f} % noise"
        return Int8Plan(ranges, exact, left, noise, self._share(ranges, exact), best)

    def quantised(
        self, ranges: Mapping[str, float], exact: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """A copy of the network with layers in INT8, and ``dtype`` between them."""
        network = copy.deepcopy(self.network)
        for name, input_range in ranges.items():
            network.set_submodule(name, QuantizedConv(self._layers[name], input_range, dtype, exact.get(name, ())))
        return network

    def _noise(self, run: Callable[[], object], ranges: Mapping[str, float]) -> dict[str, float]:
        noise: dict[str, float] = {}

        def measure(name: str, layer: nn.Conv2d, x: Tensor, output: Tensor) -> None:
            if name in ranges:
                error = QuantizedConv(layer, ranges[name])(x) - output
                share = float(error.square().mean().sqrt() / output.std().clamp(min=1e-12))
                noise[name] = max(noise.get(name, 0.0), share)

        self._hooked(measure, run)
        return noise

    def _hooked(self, told: Callable[[str, nn.Conv2d, Tensor, Tensor], None], run: Callable[[], object]) -> None:
        def hook(name: str) -> Any:
            return lambda layer, inputs, output: told(name, layer, inputs[0], output)

        handles = [layer.register_forward_hook(hook(name)) for name, layer in self._layers.items()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()

    def _outliers(self, name: str) -> dict[tuple[int, ...], float]:
        """Input channels of a layer that may be what spoils its scales, and how far the others' values reach.

        Those with the largest values, which the scale of the input is for; and those that count most, by weight times value.
        """
        values, weight = self._reach[name], self._layers[name].weight.detach().abs().amax((0, 2, 3))
        found: dict[tuple[int, ...], float] = {}
        for measure in (weight * values, values):
            order = measure.argsort(descending=True).tolist()
            for count in _OUTLIERS:
                if count < len(order):
                    found[tuple(sorted(order[:count]))] = float(values[order[count:]].max())
        return found

    def _share(self, ranges: Mapping[str, float], exact: Mapping[str, tuple[int, ...]]) -> float:
        done = sum(
            self._work[name] * (1 - len(exact.get(name, ())) / self._layers[name].in_channels) for name in ranges
        )
        return done / max(1.0, sum(self._work.values()))
