"""What a search for INT8 has found, kept by what it depends on, so that the same search is not made twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.int8.equalise import Factors
from calibration.int8.recipe import Int8Recipe, LayerRecipe, Step
from calibration.int8.sensitivity import Damage

# Another number for another search: what an older one has found is not taken.
_SEARCH = 4
_META = "meta"


class RecipeCache:
    """One recipe in a file.

    Args:
        folder: of the cache; made when something is saved.
        depends_on: everything that the recipe is made of, as JSON: hashes of weights and frames, contract, method.
    """

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        self._depends_on = json.loads(json.dumps({**depends_on, "search": _SEARCH, "torch": torch.__version__}))
        key = hashlib.sha256(json.dumps(self._depends_on, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{key}.npz"

    def load(self) -> Int8Recipe | None:
        """The recipe; None if there is none, or none of these frames, weights, contract and method, or the file is damaged."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            meta = json.loads(bytes(arrays.pop(_META)))
            if meta["depends_on"] != self._depends_on or meta["sha256"] != _digest(arrays):
                return None
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            return _read(meta, tensors)
        except Exception:  # noqa: BLE001  whatever a damaged file raises: it is only a cache
            return None

    def save(self, recipe: Int8Recipe) -> None:
        """Keep a recipe; where that cannot be, the next run searches again."""
        meta, tensors = _write(recipe)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        meta |= {"depends_on": self._depends_on, "sha256": _digest(arrays)}
        scratch = self.path.with_name(f".{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(scratch, "wb") as file:
                np.savez(file, **{**arrays, _META: np.frombuffer(json.dumps(meta).encode(), np.uint8)})  # type: ignore[arg-type]
            os.replace(scratch, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()


def _write(recipe: Int8Recipe) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for name, factors in recipe.factors.items():
        tensors |= {f"outputs/{name}": factors.outputs, f"inputs/{name}": factors.inputs}
    for name, layer in recipe.layers.items():
        tensors |= {f"levels/{name}": layer.levels, f"scales/{name}": layer.scales}
    meta = {
        "factors": list(recipe.factors),
        "layers": {
            name: [layer.input_range, list(layer.exact), layer.exact_share, layer.noise]
            for name, layer in recipe.layers.items()
        },
        "left": dict(recipe.left),
        "work": dict(recipe.work),
        "power": recipe.power,
        "damage": dict(recipe.damage),
        "steps": [[step.what, step.share, step.result.noise, step.result.iou] for step in recipe.steps],
        "result": [recipe.result.noise, recipe.result.iou],
    }
    return meta, tensors


def _read(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Int8Recipe:
    return Int8Recipe(
        {name: Factors(tensors[f"outputs/{name}"], tensors[f"inputs/{name}"]) for name in meta["factors"]},
        {
            name: LayerRecipe(
                input_range, tuple(exact), exact_share, tensors[f"levels/{name}"], tensors[f"scales/{name}"], noise
            )
            for name, (input_range, exact, exact_share, noise) in meta["layers"].items()
        },
        meta["left"],
        meta["work"],
        meta["power"],
        meta["damage"],
        tuple(Step(what, share, Damage(noise, iou)) for what, share, noise, iou in meta["steps"]),
        Damage(*meta["result"]),
    )


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
