"""What INT8 does to a network's masks: of one layer by its share in a gradient, of all together by looking."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from calibration.int8.quantized import Quantizable, QuantizedLayer, channel_axis

_LEAST_SQUARE = 1e-12


@dataclass(frozen=True)
class Example:
    """A frame to search on.

    Attributes:
        x: (1, C, h, w) float32, as the network takes it.
        logits: (1, classes, h, w) float32, what the trained network makes of it.
    """

    x: Tensor
    logits: Tensor

    @property
    def doubt(self) -> float:
        """How much of the subject, or of the picture if there are classes, is close to being something else; 0 to 1."""
        if self.logits.shape[1] > 1:
            first, second = self.logits.softmax(1).topk(2, 1).values.unbind(1)
            return float((first - second < 0.5).float().mean())
        probability = self.logits.sigmoid()
        subject = (probability > 1 / 16).sum().clamp(min=1)
        return float(((probability - 0.5).abs() < 0.25).sum() / subject)


@dataclass(frozen=True)
class Damage:
    """What a network that is not exact makes of the examples.

    Attributes:
        noise: root mean square of what the logits are off, where the decision is close; of several examples the geometric mean, since
            one on which the network is undecided is off by ten times as much as another and would decide for all.
        iou: mean agreement of the masks, 0 to 1, at the network's size.
    """

    noise: float
    iou: float


def damage(
    network: nn.Module, examples: Sequence[Example], advance: Callable[[float], None] = lambda _: None
) -> Damage:
    """Compare a network with the trained one.

    Args:
        network: gives scores by its ``logits`` method.
        examples: at least one.
        advance: told after each example which share of them it was.
    """
    logarithms, ious = 0.0, 0.0
    with torch.inference_mode():
        for example in examples:
            logits: Tensor = network.logits(example.x).float()  # type: ignore[operator]
            weight = _closeness(example.logits)
            error = (weight * (logits - example.logits)).square().sum() / weight.square().sum().clamp(min=1e-12)
            logarithms += math.log(max(float(error.nan_to_num(torch.inf)), _LEAST_SQUARE))
            ious += _iou(logits, example.logits)
            advance(1 / len(examples))
    return Damage(math.exp(logarithms / len(examples) / 2), ious / len(examples))


@dataclass(frozen=True)
class LayerDamage:
    """What one layer in INT8 does to the masks.

    Attributes:
        total: an estimate of its share in the mean square of what the logits are off where the decision is close; the mean over
            examples, each of which counts the same.
        channels: (C,) the same of rounding each input channel alone.
    """

    total: float
    channels: Tensor


def damage_by_layer(
    network: nn.Module,
    layers: Mapping[str, QuantizedLayer],
    examples: Sequence[Example],
    advance: Callable[[float], None] = lambda _: None,
) -> dict[str, LayerDamage]:
    """What each layer alone does to the masks, for small errors and in one pass forward and one back for each example.

    Args:
        network: the trained one; its weights take no gradient.
        layers: by name, what will stand in that layer's place.
        examples: at least one.
        advance: told after each example which share of them it was.
    """
    totals = dict.fromkeys(layers, 0.0)
    channels: dict[str, Tensor] = {}
    squares: dict[str, float] = {}  # of one example
    squares_by_channel: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def watch(name: str) -> Any:
        def forward(layer: Quantizable, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, quantised = inputs[0].detach(), layers[name]

            def backward(gradient: Tensor) -> None:
                # Not called but run: calling it would come back here.
                error = quantised(x) - layer.forward(x)
                squares[name] = float((gradient * error).sum()) ** 2
                by_input = (_gradient_of_input(layer, x, gradient) * quantised.input_error(x)).movedim(
                    channel_axis(layer), 0
                )
                squares_by_channel[name] = by_input.flatten(1).sum(1).square()

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    handles = [network.get_submodule(name).register_forward_hook(watch(name)) for name in layers]
    try:
        for example in examples:
            with torch.enable_grad():
                logits: Tensor = network.logits(example.x.clone().requires_grad_())  # type: ignore[operator]
                # The square of a sum with random signs is, in the mean, the sum of the squares.
                signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1.0
                (signs * _closeness(example.logits) * logits).sum().backward()  # type: ignore[no-untyped-call]
            counted = len(examples) * (sum(squares.values()) or 1.0)
            for name, square in squares.items():
                totals[name] += square / counted
                channels[name] = channels.get(name, 0) + squares_by_channel[name] / counted
            squares.clear()
            squares_by_channel.clear()
            advance(1 / len(examples))
    finally:
        for handle in handles:
            handle.remove()
    for name in layers.keys() - channels.keys():  # nothing depends on them
        layer: Any = network.get_submodule(name)
        channels[name] = torch.zeros(layer.weight.shape[1])
    return {name: LayerDamage(total, channels[name]) for name, total in totals.items()}


def _gradient_of_input(layer: Quantizable, x: Tensor, gradient: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return gradient @ layer.weight
    geometry: Any = layer.stride, layer.padding, layer.dilation
    by_input: Tensor = conv2d_input(x.shape, layer.weight, gradient, *geometry)  # type: ignore[no-untyped-call]
    return by_input


def _closeness(logits: Tensor) -> Tensor:
    """How close each decision is: the standard deviation of a draw by the probability."""
    probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    return (probability * (1 - probability)).sqrt()


def _iou(logits: Tensor, expected: Tensor) -> float:
    if logits.shape[1] == 1:
        got, wanted = logits > 0, expected > 0
        union = int((got | wanted).sum())
        return int((got & wanted).sum()) / union if union else 1.0
    first, second = logits.argmax(1), expected.argmax(1)
    ious = []
    for index in torch.unique(torch.cat((first.flatten(), second.flatten()))):
        got, wanted = first == index, second == index
        ious.append(float((got & wanted).sum() / (got | wanted).sum()))
    return sum(ious) / len(ious)
