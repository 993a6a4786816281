"""Which layers can be INT8, and how: a search for what keeps the masks, from calibration frames.

Every convolution and linear layer is INT8 but the first and the last ones, where little is gained and much lost, grouped ones, and
those of a single place, such as the gates of squeeze-and-excitation, where nothing is gained. Before any other is given up it is
repaired, by what costs nothing or next to nothing when the program runs: channels are brought to similar reach, weights are rounded so
that the outputs stay, and single input channels that reach further than all others stay out. What is left of the damage is found layer
by layer and channel by channel in one pass, and what does most of it for its work becomes FP16, within a limit: small
layers whole, and of large ones a few input channels. Only where that is far from enough, more layers are given up.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibration.inference_form import fold_norms
from calibration.int8.equalise import ChannelGraph, Factors, equalise
from calibration.int8.moments import Moments
from calibration.int8.quantized import Quantizable, channel_axis
from calibration.int8.ranges import LEVELS, Histograms, Method
from calibration.int8.recipe import Int8Recipe, LayerRecipe, Step
from calibration.int8.rounding import output_error, round_weights, weight_scales
from calibration.int8.sensitivity import Example, LayerDamage, damage, damage_by_layer
from pipeline.errors import CompileError

GOAL_IOU = 0.995
"""Agreement on the examples at which the search ends; they are those where agreement is hardest."""

LEAST_IOU = 0.992
"""Agreement on the examples below which the search gives up more than the least that it may."""

SHARES = (0.985, 0.9, 0.8, 0.65, 0.5)
"""Of the multiply-accumulates that can be INT8 at all, what stays INT8 whatever it would help to give up. The others are tried where
the first gives less than ``LEAST_IOU``: the first that reaches the goal is taken, or one that halves the noise with each step down."""

GROUPED, ONE_PLACE = "a grouped convolution", "a layer of one place, where nothing is gained"
"""Why layers stay FP16 that are never INT8."""

# How far channels are brought to one reach: 0 not at all, 1 wholly.
_POWERS = (0.0, 0.5, 0.75, 1.0)
# Input channels that are looked at as outliers of a layer: how many, how far above the next one they must be, and what each must leave
# of the noise of the layer's output.
_MOST_EXACT = 2
_LEAST_CHANNELS = 16  # for each one that is left out, so that little work is lost
_OUTLIER = 3.0
_SAVED = 0.1
# Of what is still to be given up, steps of the share that is tried.
_STEPS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
# What a step must take off the noise to be worth its layers.
_WORTH = 0.97
# The same of each lower share: where the goal is not reached, it must be worth the work that leaves INT8.
_WORTH_A_LOWER_SHARE = 0.5
# How long the parts of a search take, beside one look at all examples: a pass back, making all layers before that was measured, and
# making a few layers anew beside that.
_BACK, _MAKING, _SOME_OF_MAKING = 4.5, 0.65, 0.25
# Layers of more than this share of the work give up input channels, so many at a time and at most that share of them, and not in
# more layers than this, for each is one more convolution to run.
_LARGE = 0.01
_CHANNELS, _MOST_CHANNELS = 4, 0.25
_MOST_SPLIT = 6


class _Pace:
    """Which share of a search is done, in looks at all examples; how long making layers takes beside one is measured on the way.

    Lower shares of INT8 are seldom tried, and count from when they are.

    Args:
        progress: is told the share.

    Attributes:
        making: how long all layers are made.
    """

    def __init__(self, progress: Callable[[float], object]) -> None:
        self.making = _MAKING
        self._progress = progress
        self._done = self._expected = 0.0
        self._rounds, self._made_s, self._looked_s = 0, 0.0, 0.0

    @property
    def some(self) -> float:
        """How long a few layers are made."""
        return _SOME_OF_MAKING * self.making

    def advance(self, looks: float) -> None:
        """Something is done."""
        self._done += looks
        whole = len(_POWERS) * (self.making + 1) + _BACK + len(_STEPS) * (self.some + 1)
        self._progress(min(self._done / max(whole, self._expected), 1.0))

    def measured(self, made_s: float, looked_s: float) -> None:
        """All layers were made, and all examples looked at, in so many seconds."""
        self._rounds += 1
        self._made_s += made_s
        self._looked_s += looked_s
        self.making = self._made_s / max(self._looked_s, 1e-9)
        self._done = self._rounds * (self.making + 1)

    def expect(self, trials: int) -> None:
        """So many may follow, each of a few layers."""
        self._expected = self._done + trials * (self.some + 1)


class Int8Search:
    """Finds how a network can be INT8.

    Args:
        network: in evaluation mode, FP32; copied, its batch normalizations folded.
        input_size_hw: (height, width) of its input.
        channels: of its input.

    Attributes:
        network: the copy, which is run on the calibration frames inside ``observe``.
    """

    def __init__(self, network: nn.Module, input_size_hw: tuple[int, int], channels: int = 3) -> None:
        self.network = fold_norms(copy.deepcopy(network)).requires_grad_(False)
        self._graph = ChannelGraph(self.network, (1, channels, *input_size_hw))
        self._layers: dict[str, Quantizable] = {
            name: layer for name, layer in self.network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        }
        for layer in self._layers.values():
            if isinstance(layer, nn.Conv2d):  # what a CPU convolves in half the time
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        self._able = [name for name, layer in self._layers.items() if getattr(layer, "groups", 1) == 1]
        self._histograms = {name: Histograms() for name in self._able}
        self._moments = {name: Moments(self._layers[name], generator) for name in self._able}
        self._macs: dict[str, float] = {}
        self._of_one_place: set[str] = set()
        self._peaks: dict[str, Tensor] = {}
        self._recipes: dict[tuple[str, float, tuple[int, ...]], LayerRecipe] = {}
        self._known_factors: dict[float, dict[str, Factors]] = {}

    def observe(self, run: Callable[[], object]) -> None:
        """Count the values of every layer's input while ``run`` runs the network on a frame or some.

        Raises:
            CompileError: a value is infinite or no number.
        """

        def watch(name: str) -> Any:
            def hook(layer: Quantizable, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                x = inputs[0]
                if not bool(torch.isfinite(x.sum())):
                    raise CompileError(
                        f"the network: expected finite values, got others before {name}: its weights are damaged"
                    )
                if name in self._histograms:
                    self._histograms[name].add(x.movedim(channel_axis(layer), 1))
                    self._moments[name].add(x)
                # Frames come one at a time: a linear layer's first axis may be places of a picture.
                places = output.numel() // layer.weight.shape[0]
                self._macs[name] = float(layer.weight.numel()) * places
                if places == 1:
                    self._of_one_place.add(name)
                if name in self._graph.clipped_layers:
                    peak = output.movedim(channel_axis(layer), 0).flatten(1).amax(1)
                    self._peaks[name] = torch.maximum(self._peaks.get(name, peak), peak)

            return hook

        handles = [layer.register_forward_hook(watch(name)) for name, layer in self._layers.items()]
        try:
            with torch.inference_mode():
                run()
        finally:
            for handle in handles:
                handle.remove()

    def find(
        self,
        examples: Sequence[Example],
        method: Method,
        *,
        goal_iou: float = GOAL_IOU,
        shares: Sequence[float] = SHARES,
        tried: Callable[[Step], None] = lambda _: None,
        progress: Callable[[float], object] = lambda _: None,
    ) -> Int8Recipe:
        """Find how the network can be INT8, after ``observe``.

        Args:
            examples: what to search on, best those frames where the masks are hardest to keep.
            method: how a histogram becomes a range.
            goal_iou: enough.
            shares: of the multiply-accumulates that can be INT8, what stays INT8, at least one; see ``SHARES``.
            tried: told of every step.
            progress: told now and then which share of the search is done, 0 to 1; less again where more turns out to be needed.
        """
        steps: list[Step] = []
        pace = _Pace(progress)

        def measured(recipe: Int8Recipe, what: str) -> Int8Recipe:
            result = damage(recipe.apply(self.network), examples, pace.advance)
            steps.append(Step(what, recipe.share, result))
            tried(steps[-1])
            return replace(recipe, result=result)

        left = self._left()
        best: Int8Recipe | None = None
        for power in _POWERS:
            begin_s = time.perf_counter()
            start = self._start(power, method, left, lambda share: pace.advance(share * pace.making))
            made_s = time.perf_counter()
            recipe = measured(start, f"cross-layer equalization, strength {power:g}")
            pace.measured(made_s - begin_s, time.perf_counter() - made_s)
            if best is None or recipe.result.noise < best.result.noise:
                best = recipe
        assert best is not None
        damages = self._damages(best, examples, lambda share: pace.advance(share * _BACK))
        total = sum(one.total for one in damages.values()) or 1.0
        best = replace(best, damage={name: one.total / total for name, one in damages.items()})
        able = 1.0 - sum(best.work[name] for name in left)

        def given_up(found: Int8Recipe, names: list[str], channels: dict[str, list[int]], to_come: int) -> Int8Recipe:
            pace.expect(to_come + 1)
            trial = self._without(found, names, channels, method)
            pace.advance(pace.some)
            return measured(trial, f"{len(trial.left)} layers and {sum(map(len, channels.values()))} channels in FP16")

        best = self._with_less(best, damages, given_up, goal_iou, [share * able for share in shares])
        progress(1.0)
        return replace(best, steps=tuple(steps))

    def _with_less(
        self,
        best: Int8Recipe,
        damages: Mapping[str, LayerDamage],
        given_up: Callable[[Int8Recipe, list[str], dict[str, list[int]], int], Int8Recipe],
        goal_iou: float,
        shares: Sequence[float],
    ) -> Int8Recipe:
        """Give up what does most damage for its work, as much of it as the goal needs or as is worth it.

        ``given_up`` is told how many more trials may follow.
        """
        for names, channels in self._worst(best, damages, shares[0]):
            if best.result.iou >= goal_iou:
                return best
            trial = given_up(best, names, channels, 0)
            if trial.result.noise < _WORTH * best.result.noise:
                best = trial
        enough = 1.0
        for to_come, share in zip(reversed(range(len(shares) - 1)), shares[1:], strict=True):
            if best.result.iou >= min(goal_iou, LEAST_IOU):
                break
            some = list(self._worst(best, damages, share, whole=True))[-1:]
            trial = given_up(best, *some[0], to_come) if some else best
            enough *= _WORTH_A_LOWER_SHARE
            if trial.result.iou >= goal_iou or trial.result.noise < enough * best.result.noise:
                best, enough = trial, 1.0
        return best

    def _left(self) -> dict[str, str]:
        order = list(self._macs)
        left = {name: "the first layer" for name in order if name in self._graph.first_layers}
        left |= {name: "a last layer" for name in order if name in self._graph.last_layers and name not in left}
        left |= {name: GROUPED for name in order if name not in self._histograms}
        return left | {name: ONE_PLACE for name in order if name in self._of_one_place and name not in left}

    def _start(
        self,
        power: float,
        method: Method,
        left: Mapping[str, str],
        advance: Callable[[float], None] = lambda _: None,
    ) -> Int8Recipe:
        """Every layer in INT8, outlier channels out of it."""
        layers: dict[str, LayerRecipe] = {}
        for name in self._macs:
            advance(1 / len(self._macs))
            if name in left:
                continue
            layers[name] = self._layer(name, power, method)
            for exact in self._outliers(name, power):
                trial = self._layer(name, power, method, exact)
                if trial.noise < _SAVED ** len(exact) * layers[name].noise:
                    layers[name] = trial
        total = max(1.0, sum(self._macs.values()))
        work = {name: macs / total for name, macs in self._macs.items()}
        return Int8Recipe(self._factors(power), layers, left, work, power)

    def _damages(
        self, recipe: Int8Recipe, examples: Sequence[Example], advance: Callable[[float], None]
    ) -> dict[str, LayerDamage]:
        network = copy.deepcopy(self.network)
        equalise(network, recipe.factors)
        quantised: Any = recipe.apply(self.network)
        layers = {name: quantised.get_submodule(name) for name in recipe.layers}
        return damage_by_layer(network, layers, examples, advance)

    def _worst(
        self, recipe: Int8Recipe, damages: Mapping[str, LayerDamage], least_share: float, *, whole: bool = False
    ) -> Iterator[tuple[list[str], dict[str, list[int]]]]:
        """Growing lists of small layers, and of input channels of large ones: what does most damage for its work first.

        Args:
            recipe: that is begun with.
            damages: of the layers that are INT8 at first.
            least_share: of the multiply-accumulates, what stays INT8.
            whole: give up large layers too, not only channels.
        """
        items: list[tuple[float, float, str, list[int]]] = []
        for name, one in damages.items():
            work = recipe.work[name]
            most = int(_MOST_CHANNELS * len(one.channels))
            if whole or work <= _LARGE or most < _CHANNELS:
                items.append((one.total / max(work, 1e-12), work, name, []))
                continue
            order = one.channels.argsort(descending=True).tolist()
            by_channel = one.channels / one.channels.sum().clamp(min=1e-30)
            for start in range(0, most - _CHANNELS + 1, _CHANNELS):
                part = order[start : start + _CHANNELS]
                cost = work * _CHANNELS / len(order)
                items.append((one.total * float(by_channel[part].sum()) / cost, cost, name, part))
        items.sort(key=lambda item: -item[0])
        spare = sum(recipe.work[name] for name in damages) - least_share
        before = 0.0
        for step in _STEPS:
            used, names, channels = 0.0, [], dict[str, list[int]]()
            for _, cost, name, part in items:
                if used + cost > step * spare or (part and name not in channels and len(channels) == _MOST_SPLIT):
                    continue
                used += cost
                if part:
                    channels.setdefault(name, []).extend(part)
                else:
                    names.append(name)
            if used > before:
                yield names, channels
            before = max(used, before)

    def _without(
        self, recipe: Int8Recipe, names: Sequence[str], channels: Mapping[str, Sequence[int]], method: Method
    ) -> Int8Recipe:
        why = {name: f"{100 * recipe.damage[name]:.1f} % of the damage for its work" for name in names}
        start = self._start(recipe.power, method, self._left())
        layers = {name: layer for name, layer in start.layers.items() if name not in why}
        for name, some in channels.items():
            exact = tuple(sorted({*layers[name].exact, *some}))
            layers[name] = self._layer(name, recipe.power, method, exact)
        return replace(recipe, layers=layers, left={**start.left, **why})

    def _layer(self, name: str, power: float, method: Method, exact: tuple[int, ...] = ()) -> LayerRecipe:
        key = name, power, exact
        if key not in self._recipes:
            self._recipes[key] = self._make_layer(name, power, method, exact)
        return self._recipes[key]

    def _make_layer(self, name: str, power: float, method: Method, exact: tuple[int, ...]) -> LayerRecipe:
        weight, inputs = self._weight(name, power)
        area = weight[0, 0].numel()
        rest = [channel for channel in range(weight.shape[1]) if channel not in exact]
        input_range = self._histograms[name].range(method, np.asarray(rest), inputs.double().numpy())
        by_column = inputs.repeat_interleave(area)
        kept = torch.ones(len(inputs), dtype=torch.bool)
        kept[list(exact)] = False
        columns = kept.repeat_interleave(area)
        moments = []
        power_out, start = 0.0, 0
        flat = weight.flatten(1)
        for block in self._moments[name].blocks():
            part = slice(start, start + len(block))
            scaled = block * by_column[part, None] * by_column[None, part]
            power_out += float(((flat[:, part] @ scaled) * flat[:, part]).sum()) / len(flat)
            chosen = columns[part]
            if bool(chosen.any()):
                moments.append(scaled[chosen][:, chosen])
            start += len(block)
        part_weight = flat[:, columns]
        scales = weight_scales(part_weight)
        levels = round_weights(part_weight, scales, moments)
        step = input_range / LEVELS
        noise = step**2 / 12 * float(part_weight.square().sum()) / len(flat)
        noise += output_error(part_weight, levels * scales[:, None], moments)
        return LayerRecipe(
            input_range, exact, len(exact) / weight.shape[1], levels, scales, noise / max(power_out, 1e-30)
        )

    def _outliers(self, name: str, power: float) -> list[tuple[int, ...]]:
        """Input channels of a layer whose weights or values are so much larger than all others' that they may drown them."""
        weight, inputs = self._weight(name, power)
        largest = weight.abs().movedim(1, 0).flatten(1).amax(1)
        found: dict[tuple[int, ...], None] = {}
        for measure in (largest, self._histograms[name].reach * inputs):
            order = measure.argsort(descending=True).tolist()
            for count in range(1, min(_MOST_EXACT, len(order) // _LEAST_CHANNELS) + 1):
                if measure[order[count - 1]] > _OUTLIER * measure[order[count]]:
                    found[tuple(sorted(order[:count]))] = None
        return list(found)

    def _weight(self, name: str, power: float) -> tuple[Tensor, Tensor]:
        """A layer's weights with their factors in, and what its inputs arrive multiplied by."""
        layer, factors = self._layers[name], self._factors(power).get(name)
        if factors is None:
            return layer.weight.detach(), torch.ones(layer.weight.shape[1])
        layer = copy.deepcopy(layer)
        factors.apply(layer)
        return layer.weight.detach(), factors.inputs

    def _factors(self, power: float) -> dict[str, Factors]:
        if power == 0.0:
            return {}
        if power not in self._known_factors:
            left = self._left()
            reach = {name: histograms.reach for name, histograms in self._histograms.items() if name not in left}
            self._known_factors[power] = self._graph.factors(reach, power, self._peaks)
        return self._known_factors[power]
