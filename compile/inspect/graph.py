"""What the names in an ONNX graph mean: its weights without their data, who makes a value, and of what type and shape it is."""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto, helper

Shape = tuple[int | str | None, ...]
"""Length by axis: a number, the name of an axis that may change, or None where nobody knows."""

# What TensorRT, ONNX and this project call the same thing.
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
# Operations that change a weight's type or order on its way, and not what it is.
_PASSING = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear")
_UNKNOWN = re.compile(r"(unk__\d+)?")
# Shape inference reads small tensors, which are sizes and axes; larger ones are weights, and copying them takes time.
_SMALL_BYTES = 4096
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the program brings with it, without its data.

    Attributes:
        name: in its graph.
        dtype: as ``TensorProto.DataType`` numbers it.
        shape: length by axis.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Any) -> Weight:
        """What is known of an ONNX tensor; a length below zero, which none can have, is taken for 0."""
        return cls(name, tensor.data_type, tuple(max(0, length) for length in tensor.dims))

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What they take in a file."""
        if self.dtype in (TensorProto.INT4, TensorProto.UINT4):
            return (self.size + 1) // 2
        try:
            return int(self.size * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize)
        except KeyError:
            return 0


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names in a graph mean.

    Attributes:
        weights: the tensors that the program brings with it.
        makers: the nodes that make values.
        types: of values, as ONNX writes them.
    """

    weights: MutableMapping[str, Weight] = field(default_factory=ChainMap)
    makers: MutableMapping[str, Any] = field(default_factory=ChainMap)
    types: MutableMapping[str, Any] = field(default_factory=ChainMap)

    def inside(self) -> Scope:
        """For a graph inside, which sees the names around it."""
        return Scope(ChainMap({}, self.weights), ChainMap({}, self.makers), ChainMap({}, self.types))

    def enter(self, graph: Any) -> None:
        """Take in the names of a graph."""
        self.weights.update((tensor.name, Weight.of(tensor.name, tensor)) for tensor in graph.initializer)
        self.types.update((value.name, value.type) for value in (*graph.input, *graph.value_info, *graph.output))
        for node in graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant":
                values = (attribute.t for attribute in node.attribute if attribute.name == "value")
                self.weights.update((name, Weight.of(name, tensor)) for name in node.output for tensor in values)

    def dtype(self, name: str) -> int:
        """Element type of a value, 0 if it is unknown."""
        if name in self.weights:
            return self.weights[name].dtype
        return int(self.types[name].tensor_type.elem_type) if name in self.types else 0

    def shape(self, name: str) -> Shape | None:
        """Shape of a value, None if it is unknown."""
        if name in self.weights:
            return self.weights[name].shape
        known = name in self.types and self.types[name].tensor_type.HasField("shape")
        return shape_of(self.types[name]) if known else None

    def weight(self, name: str) -> Weight | None:
        """The weight that a value is, whatever was done to its type and order on the way."""
        for _ in range(16):
            if name in self.weights:
                return self.weights[name]
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _PASSING or not maker.input:
                return None
            name = maker.input[0]
        return None

    def quantized(self, name: str) -> int:
        """Element type that a value was dequantized from, 0 if it was not."""
        for _ in range(16):
            maker = self.makers.get(name)
            if maker is None or not maker.input:
                return 0
            if maker.op_type == "DequantizeLinear":
                # A weight may be quantized in the graph, too: then its type is that of what is between the two.
                return self.dtype(maker.input[0])
            if maker.op_type not in _PASSING:
                return 0
            name = maker.input[0]
        return 0


def drop_data(graph: Any) -> int:
    """Take the data out of all large tensors of a graph; gives how many of its tensors have theirs in other files."""
    external = 0
    for tensor in _tensors(graph):
        external += tensor.data_location == TensorProto.EXTERNAL
        if Weight.of("", tensor).size_bytes > _SMALL_BYTES:
            for name in _DATA_FIELDS:
                tensor.ClearField(name)
    return external


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs inside a node: a loop's body, the branches of a condition."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def shape_of(type_: Any) -> Shape:
    """The shape in an ONNX type."""
    return tuple(_length(axis) for axis in type_.tensor_type.shape.dim)


def precision_name(dtype: int) -> str:
    """What an element type of ONNX is called here, such as "fp16"; "unknown" if it is none."""
    try:
        name = TensorProto.DataType.Name(dtype).lower()
    except ValueError:
        return "unknown"
    return "unknown" if name == "undefined" else _PRECISIONS.get(name, name)


def is_number(dtype: int) -> bool:
    """Whether weights can be of this type: sizes and axes are of others."""
    return precision_name(dtype) not in ("int64", "int32", "bool", "string", "unknown")


def _length(axis: Any) -> int | str | None:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    # ONNX's own shape inference gives names to what it does not know.
    return None if _UNKNOWN.fullmatch(axis.dim_param) else str(axis.dim_param)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
        for inner in inner_graphs(node):
            yield from _tensors(inner)
