"""The networks that this project compiles, by name; a network's file (and torch) is loaded when it is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "build_model"]

MODELS = {
    "unet": "compile.networks.unet:UNet",
    "u2net": "compile.networks.u2net:U2Net",
    "u2net_full": "compile.networks.u2net:u2net_full",
    "u2net_lite": "compile.networks.u2net:u2net_lite",
}
"""Name of a network -> ``module:class``, or a function that builds it."""


def build_model(name: str, **options: Any) -> nn.Module:
    """Build a network with fresh random weights, in training mode.

    Args:
        name: A key of ``MODELS``.
        options: Passed on to the network, such as ``n_classes`` for U-Net and ``out_channels`` for U²-Net.

    Returns:
        The network, float32, on torch's default device.

    Raises:
        ModelError: There is no network of this name.
    """
    if name not in MODELS:
        raise ModelError(f"network: expected one of {', '.join(MODELS)}, got {name!r}: choose one of these")
    module, _, attribute = MODELS[name].partition(":")
    network: nn.Module = getattr(import_module(module), attribute)(**options)
    return network
