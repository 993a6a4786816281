"""How a network is INT8: what a search has found, and how a network becomes it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.inference_form import fold_norms
from calibration.int8.equalise import Factors, equalise
from calibration.int8.quantized import QuantizedLayer
from calibration.int8.sensitivity import Damage


@dataclass(frozen=True)
class LayerRecipe:
    """How one layer is INT8.

    Attributes:
        input_range: the absolute value of the input that becomes 127.
        exact: input channels that stay out of INT8.
        levels: (K, columns) int8, the weights of the other channels.
        scales: (K,) float32.
        exact_share: of its input channels, those that stay out.
        noise: what INT8 does to its output, in power, as a share of the output's, estimated.
    """

    input_range: float
    exact: tuple[int, ...]
    exact_share: float
    levels: Tensor
    scales: Tensor
    noise: float


@dataclass(frozen=True)
class Step:
    """What was tried.

    Attributes:
        what: for the user.
        share: of the layers' multiply-accumulates in INT8.
        result: what it did to the masks of the examples.
    """

    what: str
    share: float
    result: Damage


_UNKNOWN = Damage(0.0, 0.0)


@dataclass(frozen=True)
class Int8Recipe:
    """How a network is INT8.

    Attributes:
        factors: by layer, and by constant of the network, what brings channels to one reach.
        layers: by name, those in INT8.
        left: those that stay FP16, and why.
        power: how far channels are brought to one reach.
        damage: by layer, its share of what INT8 does to the masks, before any was left.
        work: by layer, its share of the layers' multiply-accumulates.
        steps: what was tried, in order.
        result: of the whole, on the examples.
    """

    factors: Mapping[str, Factors]
    layers: Mapping[str, LayerRecipe]
    left: Mapping[str, str]
    work: Mapping[str, float]
    power: float = 0.0
    damage: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    result: Damage = _UNKNOWN

    @property
    def share(self) -> float:
        """Of the layers' multiply-accumulates that are INT8."""
        return sum(self.work[name] * (1 - layer.exact_share) for name, layer in self.layers.items())

    def as_dict(self) -> dict[str, Any]:
        """In the form of the manifest."""
        return {
            "share_of_work": round(self.share, 5),
            "iou_in_search": round(self.result.iou, 5),
            "exact_channels": {name: list(layer.exact) for name, layer in self.layers.items() if layer.exact},
            "left": dict(self.left),
            "layers": [
                {
                    "name": name,
                    "precision": "int8" if name in self.layers else "fp16",
                    "share_of_work": round(work, 6),
                    "share_of_damage": round(self.damage[name], 6) if name in self.damage else None,
                }
                for name, work in self.work.items()
            ],
            "steps": [
                {
                    "what": step.what,
                    "share_of_work": round(step.share, 5),
                    "noise": round(step.result.noise, 5),
                    "iou": round(step.result.iou, 5),
                }
                for step in self.steps
            ],
        }

    def apply(self, network: nn.Module, dtype: torch.dtype = torch.float32, single: Collection[str] = ()) -> nn.Module:
        """A copy of a network in INT8.

        Args:
            network: the trained one; not changed.
            dtype: of what is between the layers in INT8.
            single: layers that are FP32 between their input and their output all the same: what FP16 would spoil.
        """
        copied = fold_norms(copy.deepcopy(network))
        equalise(copied, self.factors)
        for name, layer in self.layers.items():
            whole: Any = copied.get_submodule(name)
            rounded = layer.levels, layer.scales
            own_dtype = torch.float32 if name in single else dtype
            quantised = QuantizedLayer(whole, layer.input_range, own_dtype, layer.exact, rounded)
            copied.set_submodule(name, quantised)
        return copied
