"""A stranger's ONNX file as one whole graph in FP32: read without trust, its nodes in order, one output, its input's size fixed.

A file may lie: about the size of a tensor, about where its weights are, about what its nodes do. Here nothing of it is computed,
and nothing is opened but the file and what it names in its own folder. What is computed, ``onnx_runtime`` computes in a process
with limits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compile.networks.decision import Decision
from compile.networks.onnx_bounds import attribute_graphs, check_bounds, check_parses, check_tensor
from compile.networks.onnx_ends import keep_output, reads
from compile.networks.onnx_precision import precision_of
from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError, NotConvertibleError

MOST_BYTES = 2**31 - 1
"""Of a file with all its weights: what protobuf, and so ONNX Runtime, takes as one piece."""

MOST_ELEMENTS = 2**28
"""Of what a node makes from a few numbers."""

OLDEST_OPSET = 7

Layout = Literal["nchw", "nhwc"]

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_PICTURES = {TensorProto.FLOAT: np.float32, TensorProto.UINT8: np.uint8}
# Weights that are layers of their own, and which input of the operator they are.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class OnnxFile:
    """A graph that was read.

    Attributes:
        original: as the file has it, but in order, whole, and with its input's size fixed for single pictures.
        single: the same with FP16 and BF16 as FP32; ``original`` itself where there are none.
        input_shape: of ``original``, the batch of 1 first.
        dtype: float32, float16 or uint8, of ``original``'s input.
        opset: the version of ONNX's own operators.
        outputs: names of all outputs of the file; ``original`` has one of them.
        beside: the files beside it that hold weights.
        decision: what was left out at the end.
        precision: that it came in.
    """

    original: onnx.ModelProto
    single: onnx.ModelProto
    input_shape: tuple[int, int, int, int]
    dtype: np.dtype[np.generic]
    opset: int
    outputs: tuple[str, ...]
    beside: tuple[Path, ...] = ()
    decision: Decision | None = None
    precision: Precision = "fp32"

    @property
    def is_half(self) -> bool:
        """Whether the file computes in FP16 or BF16."""
        return self.single is not self.original


def read_onnx(
    path: Path,
    imgsz: tuple[int, int],
    *,
    layout: Layout = "nchw",
    channels: int | None = None,
    output: str | None = None,
) -> OnnxFile:
    """Read a segmentation network with one picture input; a decision at its end is left out.

    Args:
        path: the file; weights in other files must lie in its folder or below it.
        imgsz: (height, width) for an input that leaves them open.
        layout: axis order of the input.
        channels: of an input that leaves them open; None takes 3.
        output: name of the output to keep; None keeps the first.

    Raises:
        CompileError: it cannot be read, lies about its tensors, names files elsewhere, or is no such network.
    """
    model, beside = read_whole(path)
    sort_nodes(model.graph, path)
    name_layers(model.graph)
    outputs = tuple(value.name for value in model.graph.output)
    decision = keep_output(model, output, path)
    shape, dtype = _fix_input(model.graph, path, imgsz, layout, channels)
    single = _in_single(model)
    precision = precision_of(nodes_of(model), tensors_of(model), str(path))
    return OnnxFile(model, single, shape, dtype, opset_of(model), outputs, beside, decision, precision)


def read_whole(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """Read a file and the weights beside it, and check that it does not lie.

    Returns:
        The model with its weights inside, and the files beside it that held some.

    Raises:
        CompileError: it cannot be read, lies about its tensors, or names files elsewhere.
    """
    model = parse_onnx(path)
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise CompileError(f"{path}: expected ONNX opset {OLDEST_OPSET} or newer, got {opset}: export it again")
    tensors = list(tensors_of(model))
    for tensor in tensors:
        check_tensor(tensor, path)
    elsewhere = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    size = sum(_bytes_of(tensor) for tensor in elsewhere)  # many may name the same place of a file
    if size > MOST_BYTES:
        raise CompileError(f"{path}: expected less than 2 GiB of weights, got {size / 2**30:.1f} GiB in other files")
    beside = tuple(sorted({_take_in(tensor, path) for tensor in elsewhere}))
    for tensor in tensors:
        _check_size(tensor, path)
    _check_made_sizes(model, path)
    if model.ByteSize() > MOST_BYTES:
        raise CompileError(f"{path}: expected less than 2 GiB of weights, got {model.ByteSize() / 2**30:.1f} GiB")
    return model, beside


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=1)


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model holds, those of its branches, loops and functions too."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def sort_nodes(graph: onnx.GraphProto, path: Path) -> None:
    """Put nodes behind what they read, in place; ONNX asks for that, and ONNX Runtime does without.

    Raises:
        CompileError: a node waits for itself, or for what nobody makes.
    """
    made = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    readers: list[list[int]] = [[] for _ in graph.node]
    waits = [0] * len(graph.node)
    for number, node in enumerate(graph.node):
        for maker in {made[name] for name in reads(node) if name in made}:
            readers[maker].append(number)
            waits[number] += 1
    ready = [number for number in reversed(range(len(waits))) if not waits[number]]
    order: list[int] = []
    while ready:
        order.append(ready.pop())
        for reader in reversed(readers[order[-1]]):
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    if len(order) < len(graph.node):
        stuck = next(node for number, node in enumerate(graph.node) if waits[number])
        raise CompileError(f"{path}: expected a graph without circles, got one at {stuck.op_type} {stuck.name!r}")
    if order != sorted(order):
        nodes = [graph.node[number] for number in order]
        del graph.node[:]
        graph.node.extend(nodes)


def name_layers(graph: onnx.GraphProto) -> None:
    """Give the nodes of layers with weights a name of their own that people know from the training code, in place.

    That is the weights' name without ``.weight``, else the node's, else the output's. It is done first, for ONNX Runtime keeps names of
    nodes and gives weights that it changed other ones.
    """
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        weight = next((name for name in node.input[:2] if name in weights), "")
        if node.op_type in _LAYERS and weight.endswith(".weight"):
            name = weight.removesuffix(".weight")
        else:
            name = node.name or (node.output[0] if node.output else "") or f"{node.op_type}_{number}"
            if node.op_type in _LAYERS:
                name = name.removesuffix(f"/{node.op_type}").strip("/") or name
        name = ".".join(part for part in name.replace("/", ".").split(".") if part) or f"{node.op_type}_{number}"
        free, count = name, counts.get(name, 1)
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        counts[name] = count
        taken.add(free)
        node.name = free


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Read the graph alone, as it is: weights in other files stay there.

    Raises:
        CompileError: it cannot be read, or is no network.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise CompileError(f"{path}: expected a file below 2 GiB, got {size / 2**30:.1f} GiB")
        check_parses(path)
        model = onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise CompileError(
            f"{path}: expected an ONNX network, got {error.strerror or error}: check the path"
        ) from error
    except CompileError:
        raise
    except Exception as error:  # protobuf's own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(
            f"{path}: expected an ONNX network, got a file that is damaged or none ({reason})"
        ) from error
    if not model.graph.node:
        raise CompileError(f"{path}: expected an ONNX network, got a file without a graph")
    if model.graph.sparse_initializer:
        raise NotConvertibleError(f"{path}: expected dense weights, got sparse ones")
    check_bounds(model, path)
    return model


def _take_in(tensor: TensorProto, path: Path) -> Path:
    """Read a tensor's data from the file beside the network that it names, which is returned."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = place.get("location", ""), path.parent.resolve()
    where = f"{path}: weights {tensor.name!r}"
    if not location or os.path.isabs(location) or "\\" in location or ".." in Path(location).parts or "\0" in location:
        raise CompileError(f"{where}: expected a file beside it, got {location!r}, which is not opened")
    try:
        data: Path = (folder / location).resolve()
        if not data.is_relative_to(folder):
            raise CompileError(
                f"{where}: expected a file in {folder}, got {location!r}, a link to another folder: copy the file to it"
            )
        start, length = int(place.get("offset", "0")), int(place.get("length", "-1"))
        # Not a link any more; and a pipe must not make us wait.
        with open(os.open(data, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise CompileError(f"{where}: expected a file, got {location!r}, which is none")
            length = _bytes_of(tensor) if length < 0 else length
            if start < 0 or start + length > info.st_size:
                raise CompileError(
                    f"{where}: expected {length} bytes from {start} on in {location!r}, got a file of {info.st_size}: copy it again"
                )
            if length != _bytes_of(tensor):
                raise CompileError(f"{where}: expected {_bytes_of(tensor)} bytes for its shape, got {length}")
            file.seek(start)
            tensor.raw_data = file.read(length)
    except (OSError, RuntimeError) as error:  # a link to itself is the second on older Pythons
        reason = getattr(error, "strerror", None) or error
        raise CompileError(
            f"{where}: expected them in {location!r} beside it, got {reason}: copy both files to one folder"
        ) from error
    except ValueError as error:
        raise CompileError(f"{where}: expected numbers for offset and length, got {error}") from error
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT
    return data


def _bytes_of(tensor: TensorProto) -> int:
    """How many bytes a tensor of this shape and type has."""
    try:
        bits = 4 if _is_nibble(tensor) else 8 * _itemsize(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise CompileError(f"weights {tensor.name!r}: expected numbers, got type {tensor.data_type}") from error
    return (int(prod(tensor.dims)) * bits + 7) // 8


def _is_nibble(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)


def _itemsize(tensor: TensorProto) -> int:
    size: int = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return size


def _check_size(tensor: TensorProto, path: Path) -> None:
    """Refuse a tensor whose shape asks for other data than there is: a few bytes may claim to be terabytes."""
    if tensor.data_type == TensorProto.UNDEFINED and not tensor.dims:
        return  # the empty field of an attribute
    count = prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        fits = len(tensor.string_data) == count
    elif tensor.HasField("raw_data"):
        fits = len(tensor.raw_data) == _bytes_of(tensor)
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        numbers = max(len(field) for field in fields)
        fits = numbers in (count, 2 * count) or (_is_nibble(tensor) and numbers == (count + 1) // 2)
    if not fits:
        raise CompileError(
            f"{path}: weights {tensor.name!r}: expected data for a shape of {list(tensor.dims)}, got other: the file is damaged"
        )


def _check_made_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what is made from a few numbers and is larger than any weight: nobody shall compute it to find out."""
    shapes = {tensor.name: tensor for graph in _graphs(model.graph) for tensor in graph.initializer}
    shapes |= {
        node.output[0]: attribute.t
        for node in nodes_of(model)
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    for node in nodes_of(model):
        place = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
        name = node.input[place] if place is not None and len(node.input) > place else ""
        if name in shapes and shapes[name].data_type == TensorProto.INT64:
            shape = [int(side) for side in numpy_helper.to_array(shapes[name]).reshape(-1)]
            if prod(max(1, side) for side in shape) > MOST_ELEMENTS:
                raise CompileError(
                    f"{path}: {node.op_type} {node.name!r}: expected at most {MOST_ELEMENTS} elements, got a shape of {shape}"
                )


def _fix_input(
    graph: onnx.GraphProto, path: Path, imgsz: tuple[int, int], layout: Layout, channels: int | None
) -> tuple[tuple[int, int, int, int], np.dtype[np.generic]]:
    weights = {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node for name in reads(node)}
    pictures = [value for value in graph.input if value.name not in weights]
    unused = [value for value in pictures if value.name not in used]
    if len(pictures) > 1:
        pictures = [value for value in pictures if value.name in used]
    if len(pictures) != 1 or len(pictures[0].type.tensor_type.shape.dim) != 4:
        raise CompileError(
            f"{path}: expected a network with one input of 4 axes, got {len(pictures)}: {', '.join(v.name for v in pictures)}"
        )
    (picture,) = pictures
    kind = picture.type.tensor_type.elem_type
    if kind not in (*_PICTURES, *_HALVES):
        known = {number: name for name, number in TensorProto.DataType.items()}
        name = known.get(kind, f"type {kind}").lower()
        raise CompileError(f"{path}: expected a float32, float16 or uint8 input, got {name}")
    axes = picture.type.tensor_type.shape.dim
    if axes[0].dim_value > 1:
        raise CompileError(
            f"{path}: expected a network for single pictures or any number, got one for {axes[0].dim_value} at a time: "
            "export it with a batch of 1 or a dynamic one"
        )
    wanted = (1, *imgsz, channels or 3) if layout == "nhwc" else (1, channels or 3, *imgsz)
    for axis, size in zip(axes, wanted, strict=True):
        if axis.dim_value <= 0:
            axis.dim_value = size
    shape = (1, int(axes[1].dim_value), int(axes[2].dim_value), int(axes[3].dim_value))
    if max(shape) > 16384 or prod(shape) > 2**28:
        raise CompileError(f"{path}: expected an input of pictures, got one of {'×'.join(map(str, shape))}")
    for value in unused:
        if value is not picture:
            graph.input.remove(value)
    return shape, np.dtype(np.float16 if kind == TensorProto.FLOAT16 else _PICTURES.get(kind, np.float32))


def _in_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with FP16 and BF16 as FP32; itself where it has none."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    changed = False
    for tensor in tensors_of(single):
        if tensor.data_type in _HALVES:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
            changed = True
    for graph in _graphs(single.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _HALVES:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                changed = True
    for node in nodes_of(single):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
                changed = True
    return single if changed else model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                yield from _graphs(inner)


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of its branches, loops and functions too."""
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for attribute in node.attribute:
                for inner in attribute_graphs(attribute):
                    for graph in _graphs(inner):
                        yield from graph.node


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            yield from (sparse.values for sparse in attribute.sparse_tensors)
            for graph in attribute_graphs(attribute):
                yield from _tensors_of_graph(graph)
