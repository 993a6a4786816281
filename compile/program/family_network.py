"""A network of one of the checkpoint families: U-Net or U²-Net."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from compile.networks.checkpoint import LoadedNetwork
from compile.networks.contract import Contract
from compile.program.layered_program import LayeredProgram, Layers
from compile.program.onnx_export import check_size
from compile.program.outputs import check_classes
from pipeline.errors import CompileError


class FamilyNetwork(LayeredProgram):
    """A network of ours.

    Args:
        loaded: from its checkpoint; not changed.
        contract: how frames go in and masks come out.

    Raises:
        CompileError: the network and the contract do not fit.
    """

    def __init__(self, loaded: LoadedNetwork, contract: Contract) -> None:
        _check(loaded, contract)
        layers = Layers(loaded.model, loaded.n_classes, _giga_macs(loaded, contract))
        super().__init__(loaded.family, loaded.architecture, contract, layers)


def _check(loaded: LoadedNetwork, contract: Contract) -> None:
    if len(contract.mean) != loaded.n_channels:
        raise CompileError(
            f"contract {contract.name}: expected {loaded.n_channels} channels as the network has, got {contract.channels}"
        )
    if contract.activation == "none":
        raise CompileError(
            f"contract {contract.name}: activation: expected sigmoid or softmax for this network, got 'none': it gives logits"
        )
    if contract.layout != "nchw" or contract.output is not None:
        raise CompileError(
            f"contract {contract.name}: layout, output: expected neither for {loaded.architecture}, whose are known, "
            f"got {contract.layout}, {contract.output}: leave them out"
        )
    check_classes(contract, loaded.n_classes)
    check_size(loaded.model, contract.imgsz)


def _giga_macs(loaded: LoadedNetwork, contract: Contract) -> float:
    network = copy.deepcopy(loaded.model).to("meta")  # shapes alone: nothing is computed
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.logits(torch.empty((1, loaded.n_channels, *contract.imgsz), device="meta"))
    return float(counter.get_total_flops()) / 2e9
