"""The one form of every network: a graph whose layers with weights are modules, and whose other steps are functions.

FP16 emulation, the search for INT8 and the exporter work on layers by name: they look for ``nn.Conv2d``, ``nn.ConvTranspose2d`` and
``nn.Linear``, change their weights or put others in their place. A graph of that form can come from anywhere.

Values carry their shape while the graph is built: what depends on the picture is a tensor on PyTorch's "meta" device, which has a shape
and a type and no data. So no operator guesses, and what does not depend on the picture is computed at once, if it is not too large.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import NotConvertibleError

MOST_ELEMENTS = 2**28
"""Of one tensor: 1 GiB in FP32. A constant above that was never a weight, and a picture's is more than a machine computes in time."""


class LayeredNetwork(fx.GraphModule):
    """A network in the one form: (N, C, h, w) float32 pictures to (N, classes, h, w) scores, or what else the graph gives."""

    def logits(self, x: Tensor) -> Tensor:
        """What the network gives, by the name that the searches call."""
        scores: Tensor = self(x)
        return scores


@dataclass(frozen=True, eq=False)
class Value:
    """What flows along an edge of the graph.

    Attributes:
        tensor: the numbers of a constant; shape and type, on the device "meta", of what depends on the picture.
        node: the step that gives it; None for a constant.
    """

    tensor: Tensor
    node: fx.Node | None = None

    @property
    def is_constant(self) -> bool:
        """Whether its numbers are known."""
        return self.node is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides, for a batch of 1."""
        return tuple(self.tensor.shape)

    def numbers(self, what: str) -> list[Any]:
        """The numbers of a constant, flat.

        Args:
            what: its name in messages.

        Raises:
            NotConvertibleError: it is none.
        """
        if not self.is_constant:
            raise NotConvertibleError(f"expected {what} that does not depend on the picture, got one that does")
        return list(self.tensor.reshape(-1).tolist())


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: of the module.
        macs: multiply-accumulates for one picture.
        weight_shape: of its weights.
    """

    name: str
    macs: int
    weight_shape: tuple[int, ...]


class GraphBuilder:
    """Builds a network step by step.

    Attributes:
        layers: made so far, in the order in which they run.
    """

    def __init__(self) -> None:
        self._root = fx.GraphModule({}, fx.Graph())  # it knows how to hold a layer below a name with dots
        self._graph = fx.Graph()
        self._held: dict[int, tuple[Tensor, str]] = {}
        self._taken: set[str] = set()
        self._folders: set[str] = set()
        self._counts: dict[str, int] = {}
        self.layers: list[Layer] = []

    def picture(self, shape: Sequence[int]) -> Value:
        """The network's input, (1, C, h, w) float32."""
        return Value(torch.empty(tuple(shape), device="meta"), self._graph.placeholder("x"))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """A step: a function of values and other arguments, that gives one tensor. Of constants alone it is computed at once.

        Raises:
            NotConvertibleError: what comes out is too large.
        """
        values = [value for value in _flat((args, kwargs)) if isinstance(value, Value)]
        shaped = function(*_each(args, _on_meta), **_each(kwargs, _on_meta))
        check_elements(shaped.shape)
        if all(value.is_constant for value in values):
            with torch.no_grad():
                return Value(function(*_each(args, _numbers), **_each(kwargs, _numbers)))
        node = self._graph.call_function(function, _each(args, self._node), _each(kwargs, self._node))
        return Value(shaped, node)

    def layer(self, name: str, module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, x: Value) -> Value:
        """A step with weights.

        Args:
            name: wanted for the module; another is taken where the form or another module forbids it.
            module: its weights are taken as they are.
            x: what it reads.
        """
        weights = {key: tensor.to("meta") for key, tensor in module.state_dict().items()}
        shaped = torch.func.functional_call(module, weights, (x.tensor.to("meta"),))
        check_elements(shaped.shape)
        if x.is_constant:
            with torch.no_grad():
                return Value(module(x.tensor))
        name = self._free_name(name)
        self._root.add_submodule(name, module.eval())
        weight = module.weight
        # Each weight of a convolution is used once for each place of the output, of a transposed one of the input.
        sides = {nn.Conv2d: shaped.shape[2:], nn.ConvTranspose2d: x.shape[2:], nn.Linear: shaped.shape[:-1]}[
            type(module)
        ]
        self.layers.append(Layer(name, weight.numel() * prod(sides), tuple(weight.shape)))
        return Value(shaped, self._graph.call_module(name, (self._node(x),)))

    def module_of(self, value: Value, *, alone: bool = True) -> nn.Module | None:
        """The layer that gave a value; None if a function did, or, with ``alone``, if another step reads it already."""
        node = value.node
        if node is None or node.op != "call_module" or (alone and node.users):
            return None
        return self._root.get_submodule(str(node.target))

    def finish(self, output: Value) -> LayeredNetwork:
        """The network, in evaluation mode, without what nothing reads."""
        self._graph.output(self._node(output))
        return layered(self._root, self._graph)

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Value):
            return value
        if value.node is not None:
            return value.node
        key = id(value.tensor)
        if key not in self._held:
            name = f"_constant_{len(self._held)}"
            self._root.register_buffer(name, value.tensor.detach().clone())
            self._held[key] = value.tensor, name
        return self._graph.get_attr(self._held[key][1])

    def _free_name(self, name: str) -> str:
        wanted = safe_name(name)
        free, count = wanted, self._counts.get(wanted, 1)
        # Neither may be inside the other: a layer has no layers of its own.
        while free in self._taken or free in self._folders or not self._taken.isdisjoint(_above(free)):
            count += 1
            free = f"{wanted.replace('.', '_') if count > 2 else wanted}_{count}"
        self._counts[wanted] = count
        self._taken.add(free)
        self._folders.update(_above(free))
        return free


def safe_name(name: str) -> str:
    """A layer's name whose parts can become attributes of modules, which have some already."""
    parts = [re.sub(r"\W", "_", part) for part in name.split(".") if part] or ["layer"]
    return ".".join(f"{part}_" if hasattr(nn.Conv2d, part) or hasattr(LayeredNetwork, part) else part for part in parts)


def layered(root: nn.Module, graph: fx.Graph) -> LayeredNetwork:
    """A network of modules and a graph, in evaluation mode, without steps and modules that nothing needs."""
    network = LayeredNetwork(root, graph)  # takes what the graph names, and nothing else
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    network.eval().requires_grad_(False)
    return network


def digest(network: LayeredNetwork) -> str:
    """SHA-256 of a network's weights and steps."""
    sha256 = hashlib.sha256(str(network).encode())
    for name, tensor in network.state_dict().items():
        sha256.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def take_into(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, factor: Tensor, offset: Tensor) -> None:
    """Multiply what a layer gives by a factor and add an offset, in its weights.

    Args:
        layer: changed.
        factor: (K,) by output channel.
        offset: (K,) by output channel.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        # (in, out of a group, kernel); the groups are parts of the first axis.
        grouped = weight.view(layer.groups, -1, *weight.shape[1:])
        weight = (grouped * factor.view(layer.groups, 1, -1, 1, 1)).view_as(weight)
    else:
        weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    if layer.bias is not None:
        offset = offset + layer.bias.detach().double() * factor
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(offset.float())


def check_elements(shape: Sequence[int]) -> None:
    """Refuse a tensor that is too large.

    Raises:
        NotConvertibleError: it is.
    """
    if prod(shape) > MOST_ELEMENTS:
        raise NotConvertibleError(
            f"expected tensors of at most {MOST_ELEMENTS} elements, got one of {'×'.join(str(side) for side in shape)}"
        )


def _above(name: str) -> list[str]:
    """The names of the modules that a module of this name is inside of."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, change) for item in value)
    return change(value)


def _on_meta(value: Any) -> Any:
    return value.tensor.to("meta") if isinstance(value, Value) else value


def _numbers(value: Any) -> Any:
    return value.tensor if isinstance(value, Value) else value
