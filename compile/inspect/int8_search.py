"""What the search for INT8 found, as a bundle's manifest has it; a manifest that somebody changed is told, not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.bundles.bundle import Manifest

# JSON has numbers of any size, and others that are none.
_MOST_NOISE = 1e6


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """A layer, and what the search found of it.

    Attributes:
        name: as the trained network calls it.
        precision: that it has now: "int8" or "fp16".
        share_of_work: of the layers' multiply-accumulates, 0 to 1.
        share_of_damage: of what INT8 does to the masks when all that can be in INT8 is, 0 to 1; None if it was never in INT8.
        exact_channels: of its input, those that stay out of INT8.
    """

    name: str
    precision: str
    share_of_work: float
    share_of_damage: float | None
    exact_channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Int8Step:
    """What the search tried.

    Attributes:
        what: in words.
        share_of_work: of the layers' multiply-accumulates in INT8, 0 to 1.
        noise: root mean square of what the logits are off where the decision is close.
        iou: mean agreement of the masks on the hardest frames, 0 to 1.
        chosen: the bundle is what this step tried.
    """

    what: str
    share_of_work: float
    noise: float
    iou: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Int8Search:
    """What the search found.

    Attributes:
        share_of_work: of the layers' multiply-accumulates in INT8, 0 to 1; None in a bundle that does not tell.
        layers: all of them, most damage first; none in a bundle that does not tell.
        steps: in their order; none likewise.
        problem: why layers or steps are not there; None if both are.
    """

    share_of_work: float | None
    layers: tuple[Int8Layer, ...]
    steps: tuple[Int8Step, ...]
    problem: str | None


def read_search(manifest: Manifest) -> Int8Search | None:
    """What a bundle tells of the search for INT8; None if there was none for TensorRT."""
    if not manifest.was_searched:
        return None
    found = manifest.calibration
    share = read_share(found.get("share_of_work"))
    missing = [key for key in ("layers", "steps") if key not in found]
    if missing:
        problem = f"the bundle does not tell {' and '.join(missing)} of its search: compile it again with this version"
        return Int8Search(share, (), (), problem)
    try:
        layers = _layers(found["layers"], found.get("exact_channels", {}))
        return Int8Search(share, layers, _steps(found["steps"], found), None)
    except KeyError as error:
        problem = f"the manifest's list of layers or steps is damaged (expected {error}): compile the bundle again"
        return Int8Search(share, (), (), problem)
    except (TypeError, ValueError) as error:
        problem = f"the manifest's list of layers or steps is damaged ({error}): compile the bundle again"
        return Int8Search(share, (), (), problem)


def read_share(value: Any) -> float | None:
    """A number from 0 to 1 as JSON has it; None if it is anything else."""
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


def _layers(entries: Any, exact: Any) -> tuple[Int8Layer, ...]:
    channels = {name: _channels(listed) for name, listed in _mapping(exact).items()}
    layers = [
        Int8Layer(
            name=_text(entry["name"]),
            precision=_text(entry["precision"]),
            share_of_work=_share(entry["share_of_work"]),
            share_of_damage=None if entry["share_of_damage"] is None else _share(entry["share_of_damage"]),
            exact_channels=channels.get(entry["name"], ()),
        )
        for entry in _objects(entries)
    ]
    return tuple(sorted(layers, key=_order))


def _steps(entries: Any, found: Mapping[str, Any]) -> tuple[Int8Step, ...]:
    steps = [
        (_text(entry["what"]), _share(entry["share_of_work"]), _noise(entry["noise"]), _share(entry["iou"]))
        for entry in _objects(entries)
    ]
    # A step is taken only if it is worth its layers, so that the last one need not be the chosen one. Of equals, least noise wins.
    result = found.get("share_of_work"), found.get("iou_in_search")
    fits = [index for index, (_, share, _, iou) in enumerate(steps) if (share, iou) == result]
    chosen = min(fits, key=lambda index: steps[index][2], default=None)
    return tuple(Int8Step(*step, chosen=index == chosen) for index, step in enumerate(steps))


def _order(layer: Int8Layer) -> tuple[bool, float, float]:
    return layer.share_of_damage is None, -(layer.share_of_damage or 0.0), -layer.share_of_work


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return [_mapping(entry) for entry in value]


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _channels(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(channel) is int for channel in value):
        raise TypeError("expected numbers of channels")
    return tuple(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _share(value: Any) -> float:
    share = read_share(value)
    if share is None:
        raise ValueError("expected a share from 0 to 1")
    return share


def _noise(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_NOISE:
        raise ValueError(f"expected noise from 0 to {_MOST_NOISE:g}")
    return float(value)
