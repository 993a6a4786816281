"""What a network's file says of itself before it is run: its input and outputs, names, metadata, and files beside it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from compile.networks.onnx_file import opset_of, parse_onnx, tensors_of
from pipeline.errors import CompileError

MOST_JSON_BYTES = 4 << 20
"""Of a description beside a network."""

Side = int | None


@dataclass(frozen=True)
class Traits:
    """What a file says.

    Attributes:
        path: of the network.
        input_shape: four sides, None where they are open.
        input_dtype: of what goes in.
        outputs: name to declared sides, None where they are open; empty sides where nothing is declared.
        names: of weights, nodes, inputs and outputs, with dots between their parts.
        metadata: what the exporter wrote beside the graph.
        first_channels: how many channels the first convolution reads; None if it has none.
        config: ``config.json`` beside it, as transformers writes it; empty without.
        preprocessor: ``preprocessor_config.json`` beside it; empty without.
    """

    path: Path
    input_shape: tuple[Side, Side, Side, Side]
    input_dtype: np.dtype[Any]
    outputs: Mapping[str, tuple[Side, ...]]
    names: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    first_channels: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


def read_traits(path: Path) -> Traits:
    """Read what a file says; nothing of it is run.

    Raises:
        CompileError: it cannot be read, or is no network with one picture input.
    """
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _of_onnx(path)
    if suffix == ".pt2":
        return _of_program(path)
    raise CompileError(
        f"{path}: expected a network as .onnx or .pt2, got {suffix or 'no suffix'}: export it with torch.onnx.export"
    )


def _of_onnx(path: Path) -> Traits:
    model = parse_onnx(path)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    read = {name for node in graph.node for name in node.input}
    inputs = [value for value in graph.input if value.name not in weights and value.name in read]
    shapes = [_sides(value) for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        got = ", ".join(f"{value.name} {list(_sides(value))}" for value in inputs) or "none"
        raise CompileError(f"{path}: expected a network with one picture input of 4 axes, got {got}")
    kind = inputs[0].type.tensor_type.elem_type
    names = [f"producer:{model.producer_name}", f"graph:{graph.name}", f"opset:{opset_of(model)}"]
    names += [tensor.name for tensor in tensors_of(model)] + [node.name for node in graph.node]
    names += [f"input:{inputs[0].name}", *(f"output:{value.name}" for value in graph.output)]
    channels = next(
        (
            int(weights[node.input[1]].dims[1])
            for node in graph.node
            if node.op_type == "Conv" and node.input[1] in weights and _group(node) == 1
        ),
        None,
    )
    config, preprocessor = _beside(path)
    return Traits(
        path,
        (shapes[0][0], shapes[0][1], shapes[0][2], shapes[0][3]),
        np.dtype(np.uint8 if kind == TensorProto.UINT8 else np.float32),
        {value.name: _sides(value) for value in graph.output},
        tuple(_dotted(name) for name in names if name),
        {entry.key: entry.value for entry in model.metadata_props},
        channels,
        config,
        preprocessor,
    )


def _of_program(path: Path) -> Traits:
    try:
        with zipfile.ZipFile(path) as file:
            entry = next(entry for entry in file.infolist() if entry.filename.endswith("/models/model.json"))
            if entry.compress_type != zipfile.ZIP_STORED:  # a few bytes may become any number
                raise ValueError("compressed")
            program = json.loads(file.read(entry))["graph_module"]
        graph, specs = program["graph"], program["signature"]["input_specs"]
        weights = [spec["parameter"]["parameter_name"] for spec in specs if "parameter" in spec]
        pictures = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in specs if "user_input" in spec]
        (sides,) = [[side.get("as_int") for side in graph["tensor_values"][name]["sizes"]] for name in pictures]
        first, channels, height, width = sides
    except OSError as error:
        raise CompileError(f"{path}: expected a file of torch.export.save, got {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        StopIteration,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CompileError(
            f"{path}: expected what torch.export.save writes of a network with one input (N, C, H, W), got another file: "
            "save the program again"
        ) from error
    config, preprocessor = _beside(path)
    shape = (first, channels, height, width)
    return Traits(
        path, shape, np.dtype(np.float32), {}, tuple(weights), {}, channels, config=config, preprocessor=preprocessor
    )


def _sides(value: onnx.ValueInfoProto) -> tuple[Side, ...]:
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in value.type.tensor_type.shape.dim)


def _group(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _dotted(name: str) -> str:
    return ".".join(part for part in name.replace("/", ".").split(".") if part)


def _beside(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What transformers wrote beside the network, or above a folder "onnx"."""
    folders = [path.parent, *([path.resolve().parent.parent] if path.resolve().parent.name == "onnx" else [])]
    config = _read_json(folders, "config.json")
    # Many programs have a config.json; these two keys tell transformers'.
    if not {"model_type", "architectures", "id2label"} & config.keys():
        config = {}
    preprocessor = _read_json(folders, "preprocessor_config.json")
    return config, preprocessor.get("image_processor", preprocessor)


def _read_json(folders: Sequence[Path], name: str) -> dict[str, Any]:
    for folder in folders:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= MOST_JSON_BYTES else b""
            value = json.loads(content)
        except (OSError, ValueError, RecursionError) as error:
            raise CompileError(
                f"{path}: expected JSON as transformers writes it beside a network, got another file: mend or remove it"
            ) from error
        if isinstance(value, dict):
            return value
    return {}
