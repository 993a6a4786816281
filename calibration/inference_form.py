"""A network as it infers: its logits as what it returns, and batch normalizations folded into the convolutions before them."""

from __future__ import annotations

from torch import Tensor, nn


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
    """Names of a network's convolutions without bias -> names of the batch normalizations that follow them."""
    pairs: dict[str, str] = {}
    before = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            pairs[before] = name
        elif isinstance(module, nn.Conv2d):
            before = name
    return pairs


def fold_norms(network: nn.Module) -> nn.Module:
    """Take batch normalizations into the convolutions before them; changes and returns ``network``, in evaluation mode."""
    network.eval()
    for conv_name, norm_name in convolutions_before_norms(network).items():
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            network.set_submodule(conv_name, nn.utils.fuse_conv_bn_eval(conv, norm))
            network.set_submodule(norm_name, nn.Identity())
    return network
