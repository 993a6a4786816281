"""A network that a user's own code makes: ``--network package.module:function``. That code is run, and no other is."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compile.networks.checkpoint import check_values
from compile.networks.weight_sets import WeightSet, choose_set, find_sets
from compile.networks.weights_file import SUFFIXES, WeightsFile, few, read_weights
from pipeline.errors import CheckpointError, CompileError


def made_network(name: str, weights: Path | None = None, key: str | None = None) -> nn.Module:
    """Make a network by its name in Python, and load its weights.

    Args:
        name: "package.module:function", called without arguments; or a network or its class in that place. The current folder is on
            the path, as for ``python -m``.
        weights: a checkpoint, whose names must be those of the network behind any prefix; None: the function has loaded them.
        key: the dotted path to the weights in the checkpoint, or its beginning.

    Returns:
        In evaluation mode, float32, on the CPU.

    Raises:
        CompileError: it cannot be imported, fails, or gives something else.
        CheckpointError: the weights cannot be read, or are not the network's.
    """
    network = _call(name)
    if weights is not None:
        _load(network, name, weights, key)
    return network.to("cpu", torch.float32).eval().requires_grad_(False)


def _call(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    what = f"the module {module_name}"
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            what = f"{part} in {what}"
            found = getattr(found, part)
        what = attribute
        network = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:  # of code that nobody here knows
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise CompileError(
            f"--network {name}: {what}: expected a function that gives a network, got {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(network, nn.Module):
        raise CompileError(f"--network {name}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def _load(network: nn.Module, name: str, weights: Path, key: str | None) -> None:
    if weights.suffix.lower() not in SUFFIXES:
        raise CheckpointError(
            f"--network: expected --weights with a checkpoint ({', '.join(SUFFIXES)}) beside it, got {weights}: "
            "leave one of the two out"
        )
    file = read_weights(weights)
    sets = _sets(file, network)
    while not sets and len(children := list(network.children())) == 1 and not network._parameters:
        network = children[0]  # a file of what a wrapper holds
        sets = _sets(file, network)
    expected = network.state_dict()
    if not sets:
        raise CheckpointError(
            f"{weights}: expected the weights of {name} ({few(expected)}), got {few(file.tensors)}: "
            "give the checkpoint of this network"
        )
    tensors = choose_set(file, sets, key).tensors
    check_values(weights, tensors)
    missing, left = _needed(network) - tensors.keys(), [part for part in tensors if part not in expected]
    wrong = [
        f"{part}: expected {tuple(expected[part].shape)}, got {tuple(tensor.shape)}"
        for part, tensor in tensors.items()
        if part in expected and expected[part].shape != tensor.shape
    ]
    got = [f"{len(missing)} missing ({few(sorted(missing))})"] if missing else []
    got += [f"{len(left)} left over ({few(left)})"] if left else []
    got += [f"{len(wrong)} of other shapes ({few(wrong)})"] if wrong else []
    if got:
        raise CheckpointError(
            f"{weights}: expected the weights of {name}, got {' and '.join(got)}: make the network as it was trained"
        )
    network.load_state_dict(dict(tensors), strict=False)  # strict but for counters of batches


def _sets(file: WeightsFile, network: nn.Module) -> list[WeightSet]:
    needed = _needed(network)

    def missing_of(names: Collection[str]) -> int | None:
        count = sum(name not in names for name in needed)
        return count if 2 * count <= len(needed) else None

    return find_sets(file, needed, missing_of)


def _needed(network: nn.Module) -> set[str]:
    """Names of weights that a file must have; counters of batches are often left out."""
    return {name for name in network.state_dict() if not name.endswith(".num_batches_tracked")}
