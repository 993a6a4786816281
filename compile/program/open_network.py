"""Weights of any kind and their contract, to a network that is ready to compile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from compile.networks.checkpoint import load_network
from compile.networks.contract import CONTRACTS, Contract, built_in_contract, read_contract
from compile.program.family_network import FamilyNetwork
from compile.program.graph_network import ExportedLayers, OnnxLayers
from compile.program.network import Network
from compile.program.onnx_network import OnnxNetwork
from compile.program.recurrent_network import RecurrentNetwork
from pipeline.errors import CompileError, NotConvertibleError, NotOurNetworkError
from pipeline.terminal import logger_of

log = logger_of(__name__)


def open_network(
    weights: Path,
    contract: str,
    foreign_contract: Contract | None = None,
    *,
    imgsz: tuple[int, int] | None = None,
    classes: int | None = None,
    smooth: bool = False,
) -> Network:
    """Read weights and their contract.

    Args:
        weights: a checkpoint of U-Net or U²-Net, or any segmentation network as ONNX or as
            ``torch.export.save`` writes it (``.pt2``).
        contract: "stream", "official", or a YAML file; a foreign network needs a file.
        foreign_contract: taken in its place if the network turns out to be a foreign one.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse weights with another number of classes.
        smooth: enlarge class scores, not class indices.

    Raises:
        CompileError: the weights and the contract do not fit.
        ModelError: the weights cannot be read.
    """
    if weights.suffix.lower() == ".pt2":
        found = _without_state(_foreign_contract(weights, contract, foreign_contract), weights)
        return ExportedLayers(weights, found, imgsz=imgsz, classes=classes, smooth=smooth)
    try:
        loaded = load_network(weights, classes=classes)
    except NotOurNetworkError as error:
        if weights.suffix.lower() != ".onnx":
            raise
        found = _foreign_contract(error, contract, foreign_contract)
        return _open_onnx(weights, found, imgsz=imgsz, classes=classes, smooth=smooth)
    found = _without_state(contract_of(loaded.family, contract, loaded.n_channels), weights)
    return FamilyNetwork(loaded, replace(found, imgsz=imgsz or found.imgsz), smooth=smooth)


def _foreign_contract(what: object, contract: str, given: Contract | None) -> Contract:
    if given is None and contract in CONTRACTS["unet"]:
        raise CompileError(
            f"{what}; to compile it as it is, say how frames go in: --contract contract.yaml (see docs/contracts.md)"
        )
    return given or read_contract(Path(contract))


def _without_state(contract: Contract, weights: Path) -> Contract:
    if contract.state or contract.constants:
        raise CompileError(
            f"contract {contract.name}: state, constants: expected neither for {weights}, which has one input, got some: leave them "
            "out, or give a recurrent network as ONNX"
        )
    return contract


def _open_onnx(weights: Path, contract: Contract, **options: Any) -> Network:
    """As layers if it can be; else as it is, in its own precision. What keeps something between frames is as it is."""
    if contract.state or contract.constants:
        return RecurrentNetwork(weights, contract, **options)
    try:
        return OnnxLayers(weights, contract, **options)
    except NotConvertibleError as error:
        network = OnnxNetwork(weights, contract, **options)
        if network.precision != "int8":
            log.info("%s alone, for the network cannot be brought into layers: %s", network.precision.upper(), error)
        return network


def contract_of(family: str, contract: str, n_channels: int) -> Contract:
    """The contract of a checkpoint family by name, or from a YAML file that changes its "stream".

    Raises:
        CompileError: no such name or file, or a file with a mistake in it.
    """
    if contract in CONTRACTS[family] or not os.path.exists(contract):
        return built_in_contract(family, contract, n_channels)
    return read_contract(Path(contract), built_in_contract(family, "stream", n_channels))
