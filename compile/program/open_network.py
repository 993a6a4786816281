"""Weights of any kind and their contract, to a network that is ready to compile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from compile.networks.checkpoint import load_network
from compile.networks.contract import CONTRACTS, Contract, Upsampling, built_in_contract, read_contract
from compile.networks.exported_program import exported_network, layered_module
from compile.networks.factory import made_network
from compile.networks.layered import digest
from compile.program.graph_network import ExportedLayers, OnnxLayers, family_network
from compile.program.network import Network
from compile.program.onnx_network import OnnxNetwork
from compile.program.recurrent_network import RecurrentNetwork
from pipeline.errors import CompileError, NotConvertibleError, NotOurNetworkError
from pipeline.terminal import logger_of

log = logger_of(__name__)

ForeignContract = Contract | Callable[[], Contract]


def open_network(
    weights: Path,
    contract: str,
    foreign_contract: ForeignContract | None = None,
    *,
    imgsz: tuple[int, int] | None = None,
    classes: int | None = None,
    upsample: Upsampling | None = None,
    key: str | None = None,
) -> Network:
    """Read weights and their contract.

    Args:
        weights: a checkpoint of U-Net or U²-Net, or any segmentation network as ONNX or as
            ``torch.export.save`` writes it (``.pt2``).
        contract: "stream", "official", or a YAML file.
        foreign_contract: if the network turns out to be a foreign one: taken in its place; or what finds one where no file is named.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse weights with another number of classes.
        upsample: what of several classes is enlarged, in place of what the contract says.
        key: the dotted path to the weights in a checkpoint that has several, or its beginning.

    Raises:
        CompileError: the weights and the contract do not fit.
        ModelError: the weights cannot be read.
    """
    suffix = weights.suffix.lower()
    if key is not None and suffix in (".pt2", ".onnx"):
        raise CompileError(f"--weights-key: expected a checkpoint beside it, got {weights}: leave --weights-key out")
    if suffix == ".pt2":
        found = _enlarged(_foreign_contract(weights, contract, foreign_contract), upsample)
        wanted = _for_exported(weights, found, imgsz)
        module = exported_network(weights, wanted.output)
        return ExportedLayers(module, str(weights), wanted, architecture=weights.stem, classes=classes)
    try:
        loaded = load_network(weights, classes=classes, key=key)
    except NotOurNetworkError as error:
        if suffix != ".onnx":
            raise
        found = _enlarged(_foreign_contract(error, contract, foreign_contract), upsample)
        return _open_onnx(weights, found, imgsz=imgsz, classes=classes)
    found = _enlarged(_without_state(contract_of(loaded.family, contract, loaded.n_channels), weights), upsample)
    return family_network(loaded, replace(found, imgsz=imgsz or found.imgsz))


def open_made_network(
    name: str,
    weights: Path | None,
    contract: str,
    *,
    imgsz: tuple[int, int] | None = None,
    classes: int | None = None,
    upsample: Upsampling | None = None,
    key: str | None = None,
) -> Network:
    """Make a network by a user's own function.

    Args:
        name: "package.module:function"; see ``compile.networks.factory``.
        weights: its checkpoint; None if the function loads its own.
        contract: a YAML file.
        imgsz: as for ``open_network``.
        classes: as for ``open_network``.
        upsample: as for ``open_network``.
        key: as for ``open_network``.

    Raises:
        CompileError: the function fails, or its network does not fit the contract.
        ModelError: the weights cannot be read, or are another network's.
    """
    what = f"--network {name}"
    wanted = _for_exported(what, _enlarged(_foreign_contract(what, contract, None), upsample), imgsz)
    network = made_network(name, weights, key)
    module = layered_module(network, (len(wanted.mean), *wanted.imgsz), what, wanted.output)
    opened = ExportedLayers(module, what, wanted, architecture=type(network).__name__, classes=classes)
    opened.sha256 = digest(module)
    return opened


def _for_exported(what: object, contract: Contract, imgsz: tuple[int, int] | None) -> Contract:
    """The contract at its size, for a network of ``torch.export``."""
    if contract.layout != "nchw":
        raise CompileError(
            f"contract {contract.name}: layout: expected none for {what}, which takes (N, C, H, W), got {contract.layout}: leave it out"
        )
    return replace(_without_state(contract, what), imgsz=imgsz or contract.imgsz)


def _enlarged(contract: Contract, upsample: Upsampling | None) -> Contract:
    return replace(contract, upsample=upsample or contract.upsample)


def _foreign_contract(what: object, contract: str, given: ForeignContract | None) -> Contract:
    if given is None and contract in CONTRACTS["unet"]:
        raise CompileError(
            f"{what}; to compile it as it is, say how frames go in: --contract contract.yaml (see docs/contracts.md)"
        )
    if callable(given) and contract in CONTRACTS["unet"]:
        return given()
    return given if isinstance(given, Contract) else read_contract(Path(contract))


def _without_state(contract: Contract, weights: object) -> Contract:
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
