"""Trained weights from a file into the network that they belong to, whoever trained it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from calibration.inference_form import convolutions_before_norms
from compile.networks.families import FAMILIES, Family, FamilyName, family_names, find_family
from compile.networks.onnx_weights import read_u2net_onnx
from compile.networks.u2net import U2Net
from compile.networks.unet import UNet
from compile.networks.ways_in import unknown_kind, way_of_checkpoint
from compile.networks.weight_sets import choose_set, find_sets
from compile.networks.weights_file import SUFFIXES, few, read_weights
from pipeline.errors import CheckpointError, NotOurNetworkError

__all__ = ["LoadedNetwork", "load_network"]


@dataclass(frozen=True)
class LoadedNetwork:
    """A trained network, and what it is.

    Attributes:
        model: In evaluation mode, float32, on the CPU, the file's weights loaded.
        family: Whose checkpoint it is; this decides how frames are prepared and masks are read.
        architecture: Name in ``compile.networks.MODELS``: ``unet``, ``u2net_full``, ``u2net_lite``, or ``u2net`` at other widths.
        n_channels: Channels of the input.
        n_classes: Channels of the output.
    """

    model: UNet | U2Net
    family: FamilyName
    architecture: str
    n_channels: int
    n_classes: int


def load_network(path: str | Path, *, classes: int | None = None, key: str | None = None) -> LoadedNetwork:
    """Load a U-Net or U²-Net with its trained weights; everything about it is told from the file.

    Args:
        path: A file of ``torch.save`` (read with ``weights_only=True``), ``.safetensors``, or ``.onnx`` with a U²-Net whose
            batch normalization is folded.
        classes: How many classes the caller expects; None takes what the file has.
        key: The dotted path to the weights in the file, or its beginning; None: as ``compile.networks.weight_sets`` says.

    Returns:
        The network, all weights float32; biases of convolutions in front of a normalization are folded into its running
        mean.

    Raises:
        NotOurNetworkError: The file is whole, but its network is neither U-Net nor U²-Net.
        CheckpointError: The file cannot be read or is not safe to read; or names or shapes do not fit the network; or a
            weight is NaN or infinite; or ``classes`` is not what the file has.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, ".onnx"):
        raise unknown_kind(path)
    family_name: FamilyName
    if suffix == ".onnx":
        weights, family_name = read_u2net_onnx(path)
        # These weights have our names already, whichever family's contract the network was trained for.
        family = next(family for family in FAMILIES if family.name == "u2net")
    else:
        file = read_weights(path)
        sets = find_sets(file, family_names(), _missing_of_families)
        if not sets:
            raise NotOurNetworkError(
                f"{path}: expected {' or '.join(family.description for family in FAMILIES)}, "
                f"got a file with {few(file.tensors)}: {way_of_checkpoint(path)}"
            )
        weights = dict(choose_set(file, sets, key).tensors)
        found = find_family(weights.keys())
        assert found is not None  # of such sets the file has one
        family, family_name = found, found.name
    check_values(path, weights)
    ours = _rename(path, weights, family)
    try:
        fit = family.fit(ours)
    except ValueError as error:
        raise CheckpointError(f"{path}: expected widths that fit together: {error}") from error
    if classes is not None and classes != fit.n_classes:
        raise CheckpointError(
            f"{path}: expected {classes} classes, got {fit.n_classes} in {family.file_key(fit.classes_key)}: "
            f"ask for {fit.n_classes}, or give other weights"
        )
    _check_shapes(path, ours, fit.network.state_dict(), family)
    fit.network.load_state_dict(ours, assign=True)
    fit.network.eval()
    return LoadedNetwork(fit.network, family_name, fit.architecture, fit.n_channels, fit.n_classes)


def _missing_of_families(names: Collection[str]) -> int | None:
    family = find_family(names)
    return None if family is None else sum(key not in names for key in family.needed(names))


def check_values(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are no plain finite numbers.

    Raises:
        CheckpointError: some are.
    """
    for key, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise CheckpointError(
                f"{path}: {key}: expected plain numbers, got {tensor.dtype} on {tensor.device}: save float weights"
            )
    bad = [key for key, tensor in weights.items() if not torch.isfinite(tensor.float()).all()]
    if bad:
        raise CheckpointError(
            f"{path}: expected finite weights, got NaN or infinity in {few(bad)}: give an earlier checkpoint"
        )


def _rename(path: Path, weights: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """Give the weights our names and float32, and fold the biases in front of normalisations."""
    skeleton = family.skeleton(weights.keys())
    expected = skeleton.state_dict()
    biases = {
        family.file_key(f"{conv}.bias"): family.file_key(f"{norm}.running_mean")
        for conv, norm in convolutions_before_norms(skeleton).items()
    }
    file_keys = {key: family.file_key(key) for key in expected}
    missing = [key for key in file_keys.values() if key not in weights and not key.endswith(".num_batches_tracked")]
    left = [key for key in weights if key not in biases and key not in set(file_keys.values())]
    if missing or left:
        got = [f"{len(missing)} missing ({few(missing)})"] if missing else []
        got += [f"{len(left)} left over ({few(left)})"] if left else []
        raise CheckpointError(
            f"{path}: expected the weights of {family.description}, got {' and '.join(got)}: "
            "give the whole network's state_dict()"
        )
    means = {biases[key]: weights[key] for key in biases if key in weights}
    ours: dict[str, torch.Tensor] = {}
    for key, file_key in file_keys.items():
        if key.endswith(".num_batches_tracked"):
            # Only a running statistic without momentum reads it; many files do without.
            ours[key] = weights.get(file_key, torch.tensor(0)).detach().to(torch.int64)
            continue
        tensor = weights[file_key].detach().to(torch.float32)
        if tensor.ndim != expected[key].ndim:
            raise CheckpointError(
                f"{path}: {file_key}: expected {expected[key].ndim} dimensions, got shape {tuple(tensor.shape)}: "
                f"give weights of {family.description}"
            )
        if file_key in means:
            bias = means[file_key].detach().to(torch.float32)
            if bias.shape != tensor.shape:
                raise CheckpointError(
                    f"{path}: {file_key}: expected the shape of the bias before it, {tuple(bias.shape)}, "
                    f"got {tuple(tensor.shape)}: give weights of {family.description}"
                )
            tensor = tensor - bias
        ours[key] = tensor
    return ours


def _check_shapes(
    path: Path, ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], family: Family
) -> None:
    wrong = [
        f"{family.file_key(key)}: expected {tuple(expected[key].shape)}, got {tuple(tensor.shape)}"
        for key, tensor in ours.items()
        if tensor.shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} weights of other shapes: {few(wrong)}: give weights of {family.description}"
        )
