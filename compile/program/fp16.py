"""Which layers of a network cannot be of 16 bits: those whose values leave FP16's range, and those that lose the mask in rounding.

FP16 ends at 65504: beyond it a value is infinite, infinities make NaN, and NaN makes an empty mask. And it has 11 bits: a layer that
takes a small difference of large values keeps nothing of it. BF16, in which Intel's processors compute, ends where FP32 does, but has
8 bits. ONNX Runtime on a CPU computes FP16 in FP32 and shows only a part of this, so the values are looked at in the trained network
itself, while it computes the reference masks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from calibration.inference_form import convolutions_before_norms, fold_norms
from compile.networks.ends import layers_before
from pipeline.errors import CompileError

Rounding = Literal["fp16", "bf16"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# A quarter of FP16's largest value: frames that nobody has seen yet give larger values than those that were looked at.
LARGEST = torch.finfo(torch.float16).max / 4
# Where the search for what must stay FP32 ends: agreement that is good enough, and the share of the layers that it may cost.
GOAL_IOU = 0.998
MOST_KEPT = 0.1
MOST_TRIALS = 4
# Of what is missing to perfect agreement a layer must bring back so much. BF16 misses more everywhere, and what stays FP32 beside it is
# computed at half the rate or less.
_WORTH: dict[Rounding, float] = {"fp16": 0.1, "bf16": 0.25}

# What gives no larger value than it takes, so that what it takes says all; U²-Net has hundreds of these.
_ATEN = torch.ops.aten
_NEVER_LARGER = (
    *(torch.cat, torch.relu, nn.functional.relu, _ATEN.cat.default, _ATEN.relu.default, _ATEN.relu_.default),
    *(_ATEN.max_pool2d.default, _ATEN.upsample_bilinear2d.vec, _ATEN.upsample_nearest2d.vec),
)


class RangeRecorder:
    """The largest absolute value of every layer's inputs and output, over all frames that a network sees inside ``watching``.

    Args:
        network: in evaluation mode, with FP32 weights; not changed.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._outputs: dict[str, float] = {}
        self._inputs: dict[str, float] = {}
        self._steps: dict[fx.Node, float] = {}  # what functions between the layers of a graph give
        self.is_watching = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what passes through the network inside the body."""
        handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self._network.named_modules() if name
        ]
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False
            for handle in handles:
                handle.remove()

    def run(self, x: Tensor) -> Tensor:
        """The network's scores of (N, C, h, w) inputs; of a graph the steps between its layers are watched too."""
        network: Any = self._network
        if self.is_watching and isinstance(network, fx.GraphModule):
            scores: Tensor = _Watched(network, self._steps).run(x)
        else:
            scores = network.logits(x)
        return scores

    def beyond_half(self) -> dict[str, float]:
        """Layers that must stay FP32, and the largest value that each one takes or gives.

        Raises:
            CompileError: a value is infinite or no number in FP32 already.
        """
        for name, largest in self._outputs.items():
            if not math.isfinite(largest):
                raise CompileError(
                    f"the network: expected finite values, got {largest} from {name}: its weights are damaged"
                )
        # A convolution and the normalization behind it become one layer, so what stands between them is never a value of its own.
        folded = convolutions_before_norms(self._network)
        leaves = [name for name, module in self._network.named_modules() if name and not any(module.children())]
        beyond: dict[str, float] = {}
        for name in leaves:
            output = self._outputs.get(folded.get(name, name), 0.0)
            largest = max(output, 0.0 if name in folded.values() else self._inputs.get(name, 0.0))
            if largest > LARGEST:
                beyond[name] = largest
        for name, largest in self._outputs.items():
            inside = [leaf for leaf in leaves if leaf.startswith(f"{name}.")]
            # A sum between layers: in FP32 if what is added is.
            if largest > LARGEST and inside and not any(leaf in beyond for leaf in inside):
                beyond |= dict.fromkeys(inside, largest)
        if isinstance(self._network, fx.GraphModule):
            for step, largest in self._steps.items():
                if largest > LARGEST:  # in FP32 if what it is made of is
                    for name in layers_before(self._network, [step]):
                        beyond.setdefault(name, largest)
        # The others have no weights, and take the type that comes.
        weighted = set(_weighted(self._network)) - set(folded.values())
        return {name: largest for name, largest in beyond.items() if name in weighted}

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            given = [value for value in inputs if isinstance(value, Tensor)]
            self._inputs[name] = max([self._inputs.get(name, 0.0), *(_largest(value) for value in given)], key=_rank)
            if isinstance(output, Tensor):
                self._outputs[name] = max(self._outputs.get(name, 0.0), _largest(output), key=_rank)

        return record


class _Watched(fx.Interpreter):
    """Runs a graph, and notes the largest absolute value of each function's result."""

    def __init__(self, network: fx.GraphModule, largest: dict[fx.Node, float]) -> None:
        super().__init__(network)
        self._largest = largest

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        is_new = n.op == "call_function" and n.target not in _NEVER_LARGER
        if is_new and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            largest = _largest(value)
            if not math.isfinite(largest):  # padding before a maximum is infinite, and stays so in FP16
                finite = value[torch.isfinite(value)]
                largest = _largest(finite) if finite.numel() else 0.0
            self._largest[n] = max(self._largest.get(n, 0.0), largest)
        return value


class HalfEmulation:
    """A network that computes as hardware of 16 bits does, in FP32: each layer's inputs, weights and outputs are rounded, sums are not.

    Args:
        network: copied; its batch normalizations are folded in the copy.
        rounding: to which of the two types.

    Attributes:
        network: the copy, to be run inside ``keeping``.
        worth: the share of what is missing to perfect agreement that a layer must bring back to stay FP32.
    """

    def __init__(self, network: nn.Module, rounding: Rounding = "fp16") -> None:
        self.network = fold_norms(copy.deepcopy(network))
        self._dtype, self.worth = _DTYPES[rounding], _WORTH[rounding]
        self._layers = _weighted(self.network)
        self._exact = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}

    @property
    def layer_count(self) -> int:
        """How many layers have weights."""
        return len(self._layers)

    @contextmanager
    def keeping(self, keep: Collection[str]) -> Iterator[None]:
        """Round in every layer but these, inside the body."""
        handles = []
        rounded = {name: layer for name, layer in self._layers.items() if name not in keep}
        for name, layer in rounded.items():
            layer.weight.data = self._round(self._exact[name])
            handles.append(layer.register_forward_pre_hook(lambda _, inputs: tuple(map(self._round, inputs))))
            handles.append(layer.register_forward_hook(lambda _, __, output: self._round(output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, layer in rounded.items():
                layer.weight.data = self._exact[name]

    def noise(self, run: Callable[[], object]) -> dict[str, float]:
        """How much noise rounding makes in each layer alone, as a share of the spread of its output.

        Args:
            run: runs the network on some frames.

        Returns:
            Shares by layer, in the order in which the layers run.
        """
        noise: dict[str, float] = {}

        def measure(name: str) -> Any:
            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                layer.weight.data = self._round(self._exact[name])
                # Not called but run: calling it would come back here.
                error = layer.forward(*map(self._round, inputs)) - output
                layer.weight.data = self._exact[name]
                share = float(error.square().mean().sqrt() / output.std().clamp(min=1e-12))
                noise[name] = max(noise.get(name, 0.0), share)

            return hook

        handles = [layer.register_forward_hook(measure(name)) for name, layer in self._layers.items()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return noise

    def _round(self, value: Tensor) -> Tensor:
        return value.to(self._dtype).float()


def find_sensitive(
    emulation: HalfEmulation, run: Callable[[], float], keep: Collection[str], goal_iou: float = GOAL_IOU
) -> tuple[str, ...]:
    """The few layers that must stay FP32 for the masks to stay.

    The layers are tried in the order of the noise that they make, each together with the layer that ran before it: what it takes
    must be as exact as what it computes.

    Args:
        emulation: of the network.
        run: runs it on some frames, and gives the mean IoU of its masks with the reference's.
        keep: layers that stay FP32 in any case.
        goal_iou: enough.

    Returns:
        Layers beside ``keep``; none if 16 bits are good enough as they are, or if no few layers help.
    """
    with emulation.keeping(keep):
        best = run()
    if best >= goal_iou:
        return ()
    noise = emulation.noise(run)
    order = list(noise)
    kept: list[str] = []
    for name in sorted(noise, key=lambda name: -noise[name])[:MOST_TRIALS]:
        if len(kept) + 2 > max(2, MOST_KEPT * emulation.layer_count):
            break
        before = order[max(0, order.index(name) - 1)]
        trial = [*kept, *(layer for layer in dict.fromkeys((before, name)) if layer not in (*kept, *keep))]
        with emulation.keeping((*keep, *trial)):
            got = run()
        if got > best + emulation.worth * (1 - best):
            best, kept = got, trial
        if best >= goal_iou:
            break
    return tuple(kept)


def _weighted(network: nn.Module) -> dict[str, Any]:
    layers = network.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer._parameters.get("weight"), Tensor)}


def _largest(value: Tensor) -> float:
    low, high = torch.aminmax(value.detach())
    return max(abs(float(low)), abs(float(high)), key=_rank)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value
