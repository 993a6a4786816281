"""A plan's layers as TensorRT's engine inspector tells them: one reader for the JSON of TensorRT 10, 11 and RTX.

TensorRT joins layers, so that one of its own stands for several of the program; which, its names and its metadata say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import CompileError

# TensorRT's words for types, in any version, and those of this project.
_PRECISIONS = {
    "float": "fp32",
    "float32": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "float16": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    **{name: name for name in ("fp8", "fp4", "int4", "int8", "uint8", "int32", "int64", "bool")},
}
# In these a layer computes sizes, or chooses; not what the network was trained for.
_SIZES = ("int32", "int64", "bool")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """What goes into a layer, or comes out.

    Attributes:
        name: TensorRT's.
        precision: None if TensorRT does not tell.
        format: how it lies in memory, in TensorRT's words; None likewise.
        shape: length by axis, -1 where it depends on the frames; None likewise.
    """

    name: str
    precision: str | None
    format: str | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """A layer of a plan.

    Attributes:
        name: TensorRT's, as the profiler uses it, too.
        type: such as "CaskConvolution"; None if the plan was built without such details.
        nodes: the nodes of the program that it stands for, as far as TensorRT tells.
        precision: of its weights, else of its first input, else of its output; None if TensorRT does not tell.
        inputs: what it reads.
        outputs: what it writes.
        tactic: the kernel that was chosen; None if TensorRT does not tell.
        mean_ms: for a frame; None if it was not timed.
        time_share: of the time of all layers, from 0 to 1; None if it was not timed.
    """

    name: str
    type: str | None = None
    nodes: tuple[str, ...] = ()
    precision: str | None = None
    inputs: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    tactic: str | None = None
    mean_ms: float | None = None
    time_share: float | None = None


def read_layers(text: str, nodes: Collection[str]) -> tuple[EngineLayer, ...]:
    """Read what the engine inspector gives.

    Args:
        text: its JSON.
        nodes: the names of the program's nodes.

    Raises:
        CompileError: it is not as any known version writes it.
    """
    try:
        found = json.loads(text, strict=False)  # TensorRT writes control characters as they are
    except (ValueError, RecursionError) as error:
        raise CompileError(f"TensorRT's inspector: expected JSON, got other text ({error})") from error
    layers = found.get("Layers") if isinstance(found, dict) else None
    if not isinstance(layers, list):
        raise CompileError("TensorRT's inspector: expected a list of layers, got none")
    return tuple(_layer(entry, nodes) for entry in layers)


def with_times(
    layers: Sequence[EngineLayer], times_ms: Mapping[str, Sequence[float]], runs: int
) -> tuple[EngineLayer, ...]:
    """Put times to layers.

    Args:
        layers: as they were read.
        times_ms: by layer, over all runs; what belongs to no layer becomes a layer of its own.
        runs: how many there were.
    """
    means = {name: sum(values) / runs for name, values in times_ms.items()}
    total = sum(means.values())
    known, timed = {layer.name for layer in layers}, []
    for layer in (*layers, *(EngineLayer(name) for name in means if name not in known)):
        mean_ms = means.pop(layer.name, None)  # once, should two have one name
        share = mean_ms / total if mean_ms is not None and total > 0 else None
        timed.append(replace(layer, mean_ms=mean_ms, time_share=share))
    return tuple(timed)


def _layer(entry: Any, nodes: Collection[str]) -> EngineLayer:
    if not isinstance(entry, dict):  # a plan with names alone
        return EngineLayer(str(entry), nodes=_nodes("", str(entry), nodes))
    name = str(entry.get("Name", ""))
    inputs, outputs = (_tensors(entry.get(side)) for side in ("Inputs", "Outputs"))
    weights = entry.get("Weights")
    told = [_precision(str(weights.get("Type", "")))] if isinstance(weights, dict) else []
    told += [tensor.precision for tensor in (*inputs, *outputs)]
    known = [precision for precision in told if precision is not None]
    tactic = entry.get("TacticName") or entry.get("TacticValue")
    return EngineLayer(
        name=name,
        type=str(entry["LayerType"]) if "LayerType" in entry else None,
        nodes=_nodes(str(entry.get("Metadata", "")), name, nodes),
        precision=next((precision for precision in known if precision not in _SIZES), next(iter(known), None)),
        inputs=inputs,
        outputs=outputs,
        tactic=None if tactic is None else str(tactic),
    )


def _nodes(metadata: str, name: str, nodes: Collection[str]) -> tuple[str, ...]:
    named = _NODE.findall(metadata)
    if not named and not name.startswith("Reformatting"):  # which says what it reformats for
        named = [part.strip() for part in re.split(r" \+ |[(),]", name)]
        named = [part for part in named if part in nodes]
    return tuple(dict.fromkeys(named))


def _tensors(entries: Any) -> tuple[EngineTensor, ...]:
    return tuple(_tensor(entry) for entry in entries) if isinstance(entries, Iterable) else ()


def _tensor(entry: Any) -> EngineTensor:
    if not isinstance(entry, dict):
        return EngineTensor(str(entry), None, None, None)
    # TensorRT 10 has one text for both, TensorRT 11 two.
    both = entry.get("Format/Datatype", entry.get("Format/DataType"))
    format_ = entry.get("Format", both)
    dtype = entry.get("DataType", entry.get("Datatype", both))
    shape = entry.get("Dimensions")
    return EngineTensor(
        name=str(entry.get("Name", "")),
        precision=_precision(str(dtype)) or _precision(str(format_)),
        format=None if format_ is None else str(format_),
        shape=tuple(shape) if isinstance(shape, list) and all(type(length) is int for length in shape) else None,
    )


def _precision(text: str) -> str | None:
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((_PRECISIONS[word] for word in words if word in _PRECISIONS), None)
