"""Tensors by name out of a file of trained weights, without running anything that the file carries."""

from __future__ import annotations

import pickletools
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch

from compile.networks.ways_in import way_of_checkpoint, way_of_pickled_network, way_of_script, way_of_training_state
from pipeline.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
"""Kinds of files that hold tensors by name."""

# What training programs save beside the weights, and what holds plain values alone.
_PLAIN: list[Any] = [Namespace, SimpleNamespace, PurePosixPath, (PurePosixPath, "pathlib.PosixPath")]
# torch.compile, FSDP and activation checkpointing put these into names.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params")


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by the dotted path through the file's dicts, such as "state_dict.model.inc.weight"; on the CPU, of the file's own
            shapes and dtypes.
        holders: by the same names, the dotted path of the dict that holds the tensor; "" for the file's own.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    holders: Mapping[str, str]


def read_weights(path: Path) -> WeightsFile:
    """Read the tensors in a file of weights; whatever else is in it is left.

    A PyTorch file is read with ``weights_only=True`` and never in any other way.

    Args:
        path: A file with one of ``SUFFIXES``: dicts of tensors, however deep.

    Raises:
        CheckpointError: The file is not there, is damaged, holds something else than weights, or is not safe to read.
    """
    first_bytes = read_first_bytes(path)
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pytorch(path, first_bytes)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, got {type(content).__name__}: {way_of_checkpoint(path)}")
    tensors: dict[str, torch.Tensor] = {}
    holders: dict[str, str] = {}
    for holder, key, tensor in _tensors(content, ""):
        name = f"{holder}.{_without_wrappers(key)}" if holder else _without_wrappers(key)
        if name in tensors:
            raise CheckpointError(f"{path}: expected each weight once, got {name} twice: save one network alone")
        tensors[name], holders[name] = tensor, holder
    if not tensors:
        got = f"none ({few(map(str, content))})" if content else "none"
        raise CheckpointError(f"{path}: expected tensors by name, got {got}: {way_of_checkpoint(path)}")
    return WeightsFile(path, tensors, holders)


def _tensors(content: object, path: str) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Where each tensor is: the path of its dict or list, and its key there."""
    if isinstance(content, Mapping):
        items: Iterable[tuple[Any, Any]] = content.items()
    else:
        items = enumerate(content) if isinstance(content, (list, tuple)) else ()
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield path, str(key), value
        else:
            yield from _tensors(value, f"{path}.{key}" if path else str(key))


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


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
                f"{path}: expected weights, got a TorchScript program, whose code is not run here: {way_of_script(path)}"
            )
        if any(name.endswith("/models/model.json") for name in names):
            raise CheckpointError(
                f"{path}: expected weights, got a network of torch.export.save: name it {path.stem}.pt2"
            )
    elif not first_bytes.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, got something else: check what was saved under this name"
        )
    try:
        with torch.serialization.safe_globals(_PLAIN):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if refused:
            whole, key = _glance(path)
            way = way_of_training_state(path, key) if whole is None else way_of_pickled_network(path)
            raise CheckpointError(
                f"{path}: expected weights only, got a pickle that calls {whole or refused[1]}, which is not loaded since it "
                f"could run any code: {way}"
            ) from error
        raise CheckpointError(
            f"{path}: expected a whole file written by torch.save, got one that is cut short or damaged "
            f"({type(error).__name__}): copy or download it again"
        ) from error
    return content


def _glance(path: Path) -> tuple[str | None, str]:
    """What a pickle would make, read without making it: its class, None for a dict or if that is not known; and its weights' key."""
    whole, first, texts = None, True, set()
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickled = archive.read(name)
        for opcode, argument, _ in pickletools.genops(pickled):
            if first and opcode.name == "GLOBAL" and not str(argument).startswith("collections "):
                whole = str(argument).replace(" ", ".")
            first = first and opcode.name in ("PROTO", "FRAME")
            texts.add(argument)
    except (OSError, ValueError, zipfile.BadZipFile):  # older than zip archives, or damaged
        pass
    return whole, next((key for key in _USUAL_KEYS if key in texts), _USUAL_KEYS[0])
