"""A network as it infers: its logits as what it returns, and batch normalizations folded into the convolutions before them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, fx, nn


class Scores(nn.Module):
    """A network's logits as a module's ``forward``, which is what is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) as the network takes to (N, classes, h, w) logits."""
        scores: Tensor = self.network.logits(x)  # type: ignore[operator]
        return scores


def convolutions_before_norms(network: nn.Module) -> dict[str, str]:
    """Names of a network's convolutions -> names of the batch normalizations that read them, where nothing else does.

    From the graph of what is computed; of a network that branches on the size of its input, from the graphs of its parts.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return {}
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # noqa: BLE001  whatever code raises that is given symbols for numbers
        parts = {name: convolutions_before_norms(part) for name, part in network.named_children()}
        return {f"{name}.{conv}": f"{name}.{norm}" for name, pairs in parts.items() for conv, norm in pairs.items()}
    steps = [node for node in graph.nodes if node.op == "call_module"]
    runs = Counter(node.target for node in steps)
    pairs: dict[str, str] = {}
    for node in steps:
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            conv, norm = (network.get_submodule(str(one.target)) for one in (before, node))
            once = runs[node.target] == runs[before.target] == 1
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d) and once:
                pairs[str(before.target)] = str(node.target)
    return pairs


def fold_norms(network: nn.Module) -> nn.Module:
    """Take batch normalizations into the convolutions before them; changes and returns ``network``, in evaluation mode."""
    network.eval()
    for conv_name, norm_name in convolutions_before_norms(network).items():
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        network.set_submodule(conv_name, nn.utils.fuse_conv_bn_eval(conv, norm))
        network.set_submodule(norm_name, nn.Identity())
    return network
