"""Tensors by name out of a file of trained weights, without running anything that the file carries."""

from __future__ import annotations

import re
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".safetensors")
"""Kinds of files that hold tensors by name."""

# Where training programs put the state dict beside optimizer, epoch and arguments.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
# Not a weight: the gray values of the training masks, beside the weights in released U-Net checkpoints.
_NOT_WEIGHTS = ("mask_values",)
# DataParallel and torch.compile name the network inside them so.
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights in a ``.pt``, ``.pth`` or ``.safetensors`` file.

    A PyTorch file is read with ``weights_only=True`` and never in any other way.

    Args:
        path: A file with one of ``SUFFIXES``: a state dict, or a dict that has one under ``state_dict``, ``model``,
            ``model_state_dict`` or ``net``.

    Returns:
        Tensors by name, on the CPU, of the file's own shapes and dtypes; ``module.`` and ``_orig_mod.`` are taken off
        the names.

    Raises:
        CheckpointError: The file is not there, is damaged, or holds something else than weights.
    """
    first_bytes = read_first_bytes(path)
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pytorch(path, first_bytes)
    return _strip_prefixes(path, _find_state_dict(path, content))


def read_first_bytes(path: Path) -> bytes:
    """Read the first 16 bytes, or all where there are fewer, of a file that must be there and not be empty.

    Raises:
        CheckpointError: There is no such file, it cannot be read, or it is empty.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: expected a file of weights, got {got}: check the path")
    try:
        with path.open("rb") as file:
            first_bytes = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable file, got {error.strerror}: check its permissions"
        ) from error
    if not first_bytes:
        raise CheckpointError(f"{path}: expected weights, got an empty file: copy or download it again")
    return first_bytes


def few(names: Iterable[str], limit: int = 3) -> str:
    """Write the first names and how many more there are, for an error message."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the reader's own error type, and torch's for dtypes that it lacks
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, got one that is cut short or damaged ({error}): "
            "copy or download it again"
        ) from error


def _read_pytorch(path: Path, first_bytes: bytes) -> object:
    # A zip archive, or before PyTorch 1.6 a row of pickles. Anything else would only confuse the unpickler.
    if first_bytes.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{path}: expected a whole file, got one that is cut short or damaged: copy or download it again"
            ) from error
        if any("/code/" in name for name in names):
            raise CheckpointError(
                f"{path}: expected weights, got a TorchScript program, whose code is not run: "
                "save the network's state_dict() instead"
            )
    elif not first_bytes.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, got something else: check what was saved under this name"
        )
    try:
        # The arguments of a training run are often saved beside the weights; a Namespace is a plain container.
        with torch.serialization.safe_globals([Namespace]):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: expected weights only, got a pickle that calls {refused[1]}, which is not loaded since it "
                "could run any code: save the network's state_dict() alone"
            ) from error
        raise CheckpointError(
            f"{path}: expected a whole file written by torch.save, got one that is cut short or damaged "
            f"({type(error).__name__}): copy or download it again"
        ) from error
    return content


def _find_state_dict(path: Path, content: object) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: expected a state dict, got {type(content).__name__}: save the network's state_dict()"
        )
    wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
    candidate: Mapping[Any, Any] = content[wrapped[0]] if wrapped else content
    weights: dict[str, torch.Tensor] = {}
    for key, value in candidate.items():
        if key in _NOT_WEIGHTS:
            continue
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, or such a dict under {', '.join(_WRAPPERS)}, "
                f"got {type(value).__name__} under {key!r}: save the network's state_dict()"
            )
        weights[str(key)] = value
    if not weights:
        raise CheckpointError(f"{path}: expected tensors by name, got none: save the network's state_dict()")
    return weights


def _strip_prefixes(path: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stripped: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        name = key
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if name in stripped:
            raise CheckpointError(
                f"{path}: expected each weight once, got {name} with and without a prefix: save one network alone"
            )
        stripped[name] = tensor
    return stripped
