"""Which of the tensors in a file are the network's: a file holds them under any prefix, and often more than once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from compile.networks.weights_file import WeightsFile, few
from pipeline.errors import CheckpointError
from pipeline.terminal import logger_of

log = logger_of(__name__)

TOP = "."
"""The key of what a file holds under no prefix."""

_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "averaging", "polyak"}
# Lightning's WeightAveraging puts the averaged weights where the trained ones are without it, and those here.
_LIGHTNING_TRAINED = "current_model_state"
# Beside weights, not one of them: the gray values of training masks in released U-Net checkpoints, and AveragedModel's counter.
_NOT_WEIGHTS = ("mask_values", "n_averaged")


@dataclass(frozen=True)
class WeightSet:
    """Weights of one network in a file.

    Attributes:
        key: the dotted path to them; ``TOP`` where there is none.
        tensors: by the names that the network has for them; what is left over in their dict too.
        missing_count: how many of the network's own are not there.
        is_averaged: a moving average of what was trained.
    """

    key: str
    tensors: Mapping[str, torch.Tensor]
    missing_count: int
    is_averaged: bool


def find_sets(
    file: WeightsFile, wanted: Collection[str], missing_of: Callable[[Collection[str]], int | None]
) -> list[WeightSet]:
    """Every place in a file where a network's names are.

    Args:
        file: as it was read.
        wanted: names that such a network can have.
        missing_of: some names -> how many of the network's are not among them; None if they are no such network's.
    """
    found: dict[str, set[str]] = {}
    for name in file.tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                found.setdefault(".".join([*parts[:start], ""]) if start else "", set()).add(file.holders[name])
    under = {
        prefix: {
            name.removeprefix(prefix): name
            for name, holder in file.holders.items()
            if name.startswith(prefix) and holder in holders and name.removeprefix(prefix) not in _NOT_WEIGHTS
        }
        for prefix, holders in found.items()
    }
    missing = {prefix: missing_of(names.keys()) for prefix, names in under.items()}
    sets = []
    for prefix, count in missing.items():
        if count is not None:
            # Another set below this one is no part of it.
            inner = [
                other
                for other in missing
                if other != prefix and other.startswith(prefix) and missing[other] is not None
            ]
            own = {short: name for short, name in under[prefix].items() if not name.startswith(tuple(inner))}
            tensors = {short: file.tensors[name] for short, name in own.items()}
            sets.append(WeightSet(prefix.removesuffix(".") or TOP, tensors, count, _is_averaged(prefix, file)))
    return sets


def choose_set(file: WeightsFile, sets: Sequence[WeightSet], key: str | None) -> WeightSet:
    """The set to take, told where there is a choice.

    Of averaged and trained weights, the averaged are taken, as those are what is evaluated in training; the trained ones where
    only they are whole. Networks that are not averages of one another are the user's to choose from.

    Args:
        file: where they are.
        sets: at least one.
        key: the dotted path that a user has chosen, or its beginning.

    Raises:
        CheckpointError: there is none of that key, or more than one network.
    """
    if key is not None:
        chosen = [one for one in sets if one.key == key or one.key.startswith(f"{key}.")]
        if not chosen:
            raise CheckpointError(
                f"--weights-key: expected one of {', '.join(one.key for one in sets)}, which {file.path} has, got {key!r}"
            )
        sets = chosen
    fewest = min(one.missing_count for one in sets)
    whole = _different([one for one in sets if one.missing_count == fewest])
    trained, averaged = ([one for one in whole if one.is_averaged == kind] for kind in (False, True))
    if len(trained) > 1 or len(averaged) > 1:
        raise CheckpointError(
            f"{file.path}: expected one network, got {len(whole)}, under {', '.join(one.key for one in whole)}: "
            f"choose one with --weights-key, such as --weights-key {whole[0].key}"
        )
    (taken, *_), others = averaged or trained, [one for one in sets if one.missing_count > fewest]
    kind = "averaged" if taken.is_averaged else "trained"
    if trained and averaged:
        log.info(
            "%s: the averaged weights are taken, under %s; for those that were trained: --weights-key %s",
            *(file.path.name, taken.key, trained[0].key),
        )
    elif others:
        left = ", ".join(f"{one.key} ({one.missing_count - fewest} fewer)" for one in others)
        log.info(
            "%s: the %s weights under %s are taken, which are whole; others have fewer: %s; --weights-key KEY takes those",
            *(file.path.name, kind, taken.key, left),
        )
    elif key is None and (beside := _beside(file, taken)):
        log.info(
            "%s: the weights under %s are taken, which fit; beside them are others, under %s",
            *(file.path.name, taken.key, few(beside)),
        )
    return taken


def _is_averaged(prefix: str, file: WeightsFile) -> bool:
    words = set(re.split(r"[._\-/]+", prefix.lower()))
    in_lightning = prefix.startswith("state_dict.") and any(
        n.startswith(f"{_LIGHTNING_TRAINED}.") for n in file.tensors
    )
    return bool(words & _AVERAGED) or in_lightning


def _different(sets: Sequence[WeightSet]) -> list[WeightSet]:
    """Those sets that hold other numbers than the ones before them."""
    kept: list[WeightSet] = []
    for one in sets:
        if not any(_equal(one.tensors, other.tensors) for other in kept):
            kept.append(one)
    return kept


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _beside(file: WeightsFile, taken: WeightSet) -> list[str]:
    """Dicts of weights that are not the ones taken: those of optimizers are none."""
    ids = {id(tensor) for tensor in taken.tensors.values()}
    own = {file.holders[name] for name, tensor in file.tensors.items() if id(tensor) in ids}
    beside = {
        file.holders[name]
        for name, tensor in file.tensors.items()
        if tensor.ndim >= 3 and file.holders[name] not in own and "optim" not in name.lower()
    }
    return sorted(beside)
