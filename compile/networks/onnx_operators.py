"""What each of ONNX's operators is in PyTorch: one small function each, in a table.

An operator that is not in the table is not converted, and one with a variant that PyTorch has no function for says so. What old
versions of ONNX's operators mean is written here: the converters of the onnx package change some of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx, nn

from compile.networks.layered import GraphBuilder, Value, check_elements
from pipeline.errors import NotConvertibleError

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Step:
    """A node of the file, as an operator's function sees it.

    Attributes:
        op_type: the operator.
        name: the node's.
        opset: the version of ONNX's operators.
        attributes: by name, texts decoded.
        inputs: None for those that are left out.
        read_once: for each input, whether nobody else reads it.
        outputs: how many of its outputs are read.
    """

    op_type: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    read_once: tuple[bool, ...]
    outputs: int

    @property
    def x(self) -> Value:
        """The first input."""
        return self.input(0)

    def input(self, index: int) -> Value:
        """An input that must be there."""
        value = self.optional(index)
        if value is None:
            raise NotConvertibleError(f"expected {index + 1} inputs, got {len(self.inputs)}")
        return value

    def optional(self, index: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, index: int, attribute: str) -> list[int] | None:
        """Numbers that are an attribute in old versions of the operator and an input in new ones; None if they are left out."""
        if attribute in self.attributes:
            return [int(number) for number in self.attributes[attribute]]
        value = self.optional(index)
        return None if value is None else [int(number) for number in value.numbers(attribute)]

    def axis(self, default: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return int(self.attributes.get("axis", default)) % max(1, len(self.x.shape))


Operator = Callable[[GraphBuilder, Step], "Value | list[Value]"]
OPERATORS: dict[str, Operator] = {}
"""Name of an ONNX operator -> what makes PyTorch's steps of it."""


def operator_for(*names: str) -> Callable[[Operator], Operator]:
    """Put a function into the table under these names."""

    def put(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return put


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A constant's numbers as PyTorch has them.

    Raises:
        NotConvertibleError: they are no numbers, or too many.
    """
    check_elements(array.shape)
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise NotConvertibleError(f"expected numbers, got {array.dtype}") from error


def reshape(graph: GraphBuilder, x: Value, shape: Sequence[int]) -> Value:
    """A value in another shape; the batch stays free: it is outermost in both, so the first side follows from the others."""
    if x.is_constant or not shape or 0 in shape:
        return graph.call(torch.reshape, x, list(shape))
    return graph.call(torch.reshape, x, [-1, *shape[1:]])


def permute(graph: GraphBuilder, x: Value, order: Sequence[int]) -> Value:
    """A value with its axes in another order; one that undoes the permutation before it is none."""
    order = [axis % len(order) for axis in order]
    if order == list(range(len(order))):
        return x
    before = x.node
    if before is not None and before.target is torch.permute:
        source, first = before.args
        if isinstance(source, fx.Node) and isinstance(first, list) and [first[axis] for axis in order] == sorted(order):
            return Value(torch.permute(x.tensor, order), source)
    return graph.call(torch.permute, x, order)


def pad(graph: GraphBuilder, x: Value, before: Sequence[int], after: Sequence[int], mode: str, value: float) -> Value:
    """Pad every axis; less than 0 cuts off.

    Args:
        graph: to put the steps into.
        x: what to pad.
        before: by axis.
        after: by axis.
        mode: of ``F.pad``.
        value: for "constant".
    """
    pairs = list(zip(before, after, strict=True))
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    flat = [side for pair in reversed(pairs) for side in pair]
    if not flat:
        return x
    if mode == "constant":
        return graph.call(F.pad, x, flat, mode, value)
    # PyTorch's other modes want all axes behind the first two, or one less.
    axes = len(x.shape) - 2
    if len(flat) > 2 * axes:
        raise NotConvertibleError(f"expected {mode} padding of height and width alone, got it on other axes")
    return graph.call(F.pad, x, [*flat, *[0] * (2 * axes - len(flat))], mode)


def like_batch(constant: Tensor, x: Tensor) -> Tensor:
    """(1, …) for each picture of a batch."""
    return constant.expand(x.shape[0], *constant.shape[1:])


def _on_one(function: Callable[..., Any], *arguments: Any) -> Operator:
    return lambda graph, step: graph.call(function, step.x, *arguments)


_ON_ONE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
OPERATORS.update({name: _on_one(function) for name, function in _ON_ONE.items()})


@operator_for("Identity", "Dropout")
def _identity(_: GraphBuilder, step: Step) -> Value:
    if step.outputs > 1:
        raise NotConvertibleError("expected one output, got a mask too")
    return step.x


@operator_for("LeakyRelu")
def _leaky_relu(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(F.leaky_relu, step.x, step.attributes.get("alpha", 0.01))


@operator_for("Elu")
def _elu(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(F.elu, step.x, step.attributes.get("alpha", 1.0))


@operator_for("Celu")
def _celu(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(F.celu, step.x, step.attributes.get("alpha", 1.0))


@operator_for("Selu")
def _selu(graph: GraphBuilder, step: Step) -> Value:
    if not {"alpha", "gamma"}.isdisjoint(step.attributes):
        alpha, gamma = step.attributes.get("alpha", 1.67326324), step.attributes.get("gamma", 1.05070102)
        return graph.call(operator.mul, graph.call(F.elu, step.x, alpha), gamma)
    return graph.call(F.selu, step.x)


@operator_for("Gelu")
def _gelu(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(F.gelu, step.x, approximate=step.attributes.get("approximate", "none"))


@operator_for("Swish")
def _swish(graph: GraphBuilder, step: Step) -> Value:
    alpha = step.attributes.get("alpha", 1.0)
    if alpha == 1.0:
        return graph.call(F.silu, step.x)
    gate = graph.call(torch.sigmoid, graph.call(operator.mul, step.x, alpha))
    return graph.call(operator.mul, step.x, gate)


@operator_for("HardSigmoid")
def _hard_sigmoid(graph: GraphBuilder, step: Step) -> Value:
    line = graph.call(operator.mul, step.x, step.attributes.get("alpha", 0.2))
    line = graph.call(operator.add, line, step.attributes.get("beta", 0.5))
    return graph.call(torch.clamp, line, 0.0, 1.0)


@operator_for("ThresholdedRelu")
def _thresholded_relu(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(F.threshold, step.x, step.attributes.get("alpha", 1.0), 0.0)


@operator_for("PRelu")
def _prelu(graph: GraphBuilder, step: Step) -> Value:
    slope = step.input(1)
    channels = step.x.shape[1] if len(step.x.shape) > 1 else 1
    if (
        slope.is_constant
        and slope.shape[-len(step.x.shape) + 1 :][:1] in ((channels,), (1,))
        and prod(slope.shape)
        in (
            1,
            channels,
        )
    ):
        return graph.call(F.prelu, step.x, graph.call(torch.reshape, slope, [-1]))
    negative = graph.call(operator.mul, step.x, slope)
    return graph.call(torch.where, graph.call(operator.lt, step.x, 0), negative, step.x)


@operator_for("Clip")
def _clip(graph: GraphBuilder, step: Step) -> Value:
    limits: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = step.optional(index)
        limits.append(step.attributes.get(name) if value is None else value.numbers(name)[0])
    if limits == [None, None]:
        return step.x
    return graph.call(torch.clamp, step.x, *limits)


@operator_for("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def _binary(graph: GraphBuilder, step: Step) -> Value:
    a, b = step.input(0), step.input(1)
    if step.op_type == "Add" and _into_bias(graph, step, a, b):
        return a if b.is_constant else b
    if step.op_type == "Div" and not a.tensor.is_floating_point():
        return graph.call(torch.div, a, b, rounding_mode="trunc")
    if step.op_type == "Pow" and a.tensor.dtype != b.tensor.dtype and not b.is_constant:
        b = graph.call(torch.Tensor.to, b, a.tensor.dtype)
    function = {
        "Add": operator.add,
        "Sub": operator.sub,
        "Mul": operator.mul,
        "Div": operator.truediv,
        "Pow": operator.pow,
        "Equal": operator.eq,
        "Greater": operator.gt,
        "GreaterOrEqual": operator.ge,
        "Less": operator.lt,
        "LessOrEqual": operator.le,
    }[step.op_type]
    if a.is_constant and b.is_constant:
        made = graph.call(function, a, b)
        return Value(made.tensor.to(a.tensor.dtype)) if step.op_type == "Pow" else made
    return graph.call(function, _number(a, b), _number(b, a))


def _into_bias(graph: GraphBuilder, step: Step, a: Value, b: Value) -> bool:
    """Take what is added to a linear layer without bias into the layer."""
    x, added, position = (a, b, 0) if b.is_constant else (b, a, 1)
    module = graph.module_of(x) if step.read_once[position] else None
    if not isinstance(module, nn.Linear) or not added.is_constant or "bias" in module.state_dict():
        return False
    if added.shape != (module.out_features,):
        return False
    module.bias = nn.Parameter(added.tensor.clone())
    return True


def _number(value: Value, other: Value) -> Any:
    """A constant of one element as a plain number, which takes the type of what it meets; else the value itself."""
    if value.is_constant and prod(value.shape) == 1 and len(value.shape) <= len(other.shape):
        return value.tensor.item()
    return value


@operator_for("Mod")
def _mod(graph: GraphBuilder, step: Step) -> Value:
    function = torch.fmod if step.attributes.get("fmod") else torch.remainder
    return graph.call(function, step.input(0), step.input(1))


@operator_for("And", "Or", "Xor")
def _logical(graph: GraphBuilder, step: Step) -> Value:
    function = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}[step.op_type]
    return graph.call(function, step.input(0), step.input(1))


@operator_for("Min", "Max", "Sum", "Mean")
def _many(graph: GraphBuilder, step: Step) -> Value:
    function: Any = {"Min": torch.minimum, "Max": torch.maximum}.get(step.op_type, operator.add)
    total = step.x
    for index in range(1, len(step.inputs)):
        total = graph.call(function, total, step.input(index))
    return graph.call(operator.truediv, total, len(step.inputs)) if step.op_type == "Mean" else total


@operator_for("Where")
def _where(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(torch.where, step.input(0), step.input(1), step.input(2))


@operator_for("IsNaN")
def _is_nan(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(torch.isnan, step.x)


@operator_for("Cast", "CastLike")
def _cast(graph: GraphBuilder, step: Step) -> Value:
    if step.op_type == "CastLike":
        dtype = step.input(1).tensor.dtype
    else:
        found = DTYPES.get(step.attributes["to"])
        if found is None:
            raise NotConvertibleError(f"expected a cast to numbers, got one to type {step.attributes['to']}")
        dtype = found
    # A cast that changes nothing would tie the network to FP32.
    return step.x if step.x.tensor.dtype == dtype else graph.call(torch.Tensor.to, step.x, dtype)


@operator_for("Constant")
def _constant(_: GraphBuilder, step: Step) -> Value:
    for name, given in step.attributes.items():
        if name == "value":
            return Value(tensor_of(numpy_helper.to_array(given)))
        if name in ("value_float", "value_floats"):
            return Value(torch.tensor(given, dtype=torch.float32))
        if name in ("value_int", "value_ints"):
            return Value(torch.tensor(given, dtype=torch.int64))
    raise NotConvertibleError("expected a constant of numbers, got another")


@operator_for("ConstantOfShape")
def _constant_of_shape(_: GraphBuilder, step: Step) -> Value:
    shape = [int(side) for side in step.x.numbers("a shape")]
    check_elements(shape)
    value = step.attributes.get("value")
    filler = torch.zeros(1) if value is None else tensor_of(numpy_helper.to_array(value))
    return Value(torch.full(shape, filler.reshape(-1)[0].item(), dtype=filler.dtype))


@operator_for("Shape")
def _shape(_: GraphBuilder, step: Step) -> Value:
    start, end = step.attributes.get("start", 0), step.attributes.get("end")
    return Value(torch.tensor(step.x.shape[start:end], dtype=torch.int64))


@operator_for("Size")
def _size(_: GraphBuilder, step: Step) -> Value:
    return Value(torch.tensor(prod(step.x.shape)))


@operator_for("Range")
def _range(_: GraphBuilder, step: Step) -> Value:
    start, end, by = (step.input(index).numbers("a range")[0] for index in range(3))
    check_elements([max(0, int((end - start) / by) + 1)])
    return Value(torch.arange(start, end, by, dtype=step.x.tensor.dtype))


@operator_for("NonZero")
def _non_zero(_: GraphBuilder, step: Step) -> Value:
    step.x.numbers("an input")
    return Value(torch.nonzero(step.x.tensor).T.contiguous())


@operator_for("Reshape")
def _reshape(graph: GraphBuilder, step: Step) -> Value:
    shape = [int(side) for side in step.input(1).numbers("a shape")]
    if not step.attributes.get("allowzero", 0):
        shape = [side or step.x.shape[axis] for axis, side in enumerate(shape)]
    if -1 in shape:
        rest = prod(side for side in shape if side != -1)
        shape[shape.index(-1)] = prod(step.x.shape) // max(1, rest)
    if prod(shape) != prod(step.x.shape) or min(shape, default=1) < 0:
        raise NotConvertibleError(f"expected a shape of {prod(step.x.shape)} elements, got {shape}")
    return reshape(graph, step.x, shape)


@operator_for("Flatten")
def _flatten(graph: GraphBuilder, step: Step) -> Value:
    axis = step.attributes.get("axis", 1)
    axis = axis + len(step.x.shape) if axis < 0 else axis
    return reshape(graph, step.x, [prod(step.x.shape[:axis]), prod(step.x.shape[axis:])])


@operator_for("Squeeze")
def _squeeze(graph: GraphBuilder, step: Step) -> Value:
    axes = step.ints(1, "axes")
    rank = len(step.x.shape)
    if axes is None:
        axes = [axis for axis, side in enumerate(step.x.shape) if side == 1]
    gone = {axis % rank for axis in axes}
    if 0 not in gone:
        for axis in sorted(gone, reverse=True):
            step = _with_x(step, graph.call(torch.squeeze, step.x, axis))
        return step.x
    return reshape(graph, step.x, [side for axis, side in enumerate(step.x.shape) if axis not in gone])


@operator_for("Unsqueeze")
def _unsqueeze(graph: GraphBuilder, step: Step) -> Value:
    axes = step.ints(1, "axes") or []
    rank = len(step.x.shape) + len(axes)
    new = sorted(axis % rank for axis in axes)
    if 0 not in new:
        x = step.x
        for axis in new:
            x = graph.call(torch.unsqueeze, x, axis)
        return x
    sides = iter(step.x.shape)
    return reshape(graph, step.x, [1 if axis in new else next(sides) for axis in range(rank)])


def _with_x(step: Step, x: Value) -> Step:
    return Step(
        step.op_type, step.name, step.opset, step.attributes, (x, *step.inputs[1:]), step.read_once, step.outputs
    )


@operator_for("Transpose")
def _transpose(graph: GraphBuilder, step: Step) -> Value:
    return permute(graph, step.x, step.attributes.get("perm") or list(reversed(range(len(step.x.shape)))))


@operator_for("Expand")
def _expand(graph: GraphBuilder, step: Step) -> Value:
    wanted = [int(side) for side in step.input(1).numbers("a shape")]
    shape = np.broadcast_shapes(step.x.shape, tuple(wanted))
    if tuple(shape) == step.x.shape:
        return step.x
    check_elements(shape)
    same = len(shape) == len(step.x.shape) and shape[0] == step.x.shape[0] and not step.x.is_constant
    return graph.call(torch.Tensor.expand, step.x, [-1 if same else shape[0], *shape[1:]])


@operator_for("Tile")
def _tile(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(torch.tile, step.x, [int(times) for times in step.input(1).numbers("repeats")])


@operator_for("Concat")
def _concat(graph: GraphBuilder, step: Step) -> Value:
    axis = int(step.attributes["axis"]) % max(1, len(step.x.shape))
    parts = [value for value in step.inputs if value is not None]
    picture = next((value for value in parts if not value.is_constant), None)
    if picture is not None and axis != 0:
        parts = [graph.call(like_batch, value, picture) if _is_one(value) else value for value in parts]
    return parts[0] if len(parts) == 1 else graph.call(torch.cat, parts, axis)


def _is_one(value: Value) -> bool:
    return value.is_constant and bool(value.shape) and value.shape[0] == 1


@operator_for("Split")
def _split(graph: GraphBuilder, step: Step) -> list[Value]:
    axis, sizes = step.axis(0), step.ints(1, "split")
    if sizes is None:
        count = int(step.attributes.get("num_outputs", step.outputs))
        each = -(-step.x.shape[axis] // count)
        sizes = [min(each, step.x.shape[axis] - each * number) for number in range(count)]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [graph.call(torch.narrow, step.x, axis, start, size) for start, size in zip(starts, sizes, strict=True)]


@operator_for("Slice")
def _slice(graph: GraphBuilder, step: Step) -> Value:
    starts, ends = step.ints(1, "starts") or [], step.ints(2, "ends") or []
    axes = step.ints(3, "axes") or list(range(len(starts)))
    steps = step.ints(4, "steps") or [1] * len(starts)
    x = step.x
    index = [slice(None)] * len(x.shape)
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        axis %= len(index)
        side = x.shape[axis]
        chosen = range(side)[slice(start, end if by > 0 or end >= -side else None, by)]
        if by > 0:
            if (chosen.start, chosen.stop, by) != (0, side, 1):
                index[axis] = slice(chosen.start, chosen.stop, by)
        else:
            x = graph.call(torch.index_select, x, axis, Value(torch.tensor(list(chosen), dtype=torch.int64)))
    return x if index == [slice(None)] * len(index) else graph.call(operator.getitem, x, tuple(index))


@operator_for("Gather")
def _gather(graph: GraphBuilder, step: Step) -> Value:
    axis, index = step.axis(0), step.input(1)
    side = step.x.shape[axis]
    if not index.is_constant:
        if axis != 0 or not step.x.is_constant:
            raise NotConvertibleError("expected indices that do not depend on the picture, got others")
        return graph.call(F.embedding, graph.call(torch.Tensor.to, index, torch.int64), step.x)
    numbers = torch.where(index.tensor < 0, index.tensor + side, index.tensor).to(torch.int64)
    if numbers.ndim == 0:
        return graph.call(torch.select, step.x, axis, int(numbers))
    x = graph.call(torch.index_select, step.x, axis, Value(numbers.reshape(-1)))
    if numbers.ndim == 1:
        return x
    shape = [*step.x.shape[:axis], *numbers.shape, *step.x.shape[axis + 1 :]]
    return graph.call(torch.reshape, x, shape) if axis == 0 else reshape(graph, x, shape)


@operator_for("GatherElements")
def _gather_elements(graph: GraphBuilder, step: Step) -> Value:
    return graph.call(torch.gather, step.x, step.axis(0), step.input(1))


@operator_for("Pad")
def _pad(graph: GraphBuilder, step: Step) -> Value:
    sides = step.ints(1, "pads") or []
    axes_given = step.optional(3)
    rank = len(step.x.shape)
    axes = list(range(rank)) if axes_given is None else [int(axis) % rank for axis in axes_given.numbers("axes")]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = sides[place], sides[len(axes) + place]
    value = step.optional(2)
    number = step.attributes.get("value", 0.0) if value is None else value.numbers("a value")[0]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return pad(graph, step.x, before, after, modes[step.attributes.get("mode", "constant")], number)


@operator_for("DepthToSpace")
def _depth_to_space(graph: GraphBuilder, step: Step) -> Value:
    size = step.attributes["blocksize"]
    if step.attributes.get("mode", "DCR") == "CRD":
        return graph.call(F.pixel_shuffle, step.x, size)
    _, channels, height, width = step.x.shape
    x = reshape(graph, step.x, [1, size, size, channels // size**2, height, width])
    return reshape(graph, permute(graph, x, [0, 3, 4, 1, 5, 2]), [1, channels // size**2, height * size, width * size])


@operator_for("SpaceToDepth")
def _space_to_depth(graph: GraphBuilder, step: Step) -> Value:
    size = step.attributes["blocksize"]
    _, channels, height, width = step.x.shape
    x = reshape(graph, step.x, [1, channels, height // size, size, width // size, size])
    return reshape(graph, permute(graph, x, [0, 3, 5, 1, 2, 4]), [1, channels * size**2, height // size, width // size])


@operator_for("Softmax", "LogSoftmax")
def _softmax(graph: GraphBuilder, step: Step) -> Value:
    function = torch.softmax if step.op_type == "Softmax" else torch.log_softmax
    axis = step.axis(-1 if step.opset >= 13 else 1)
    behind = step.x.shape[axis + 1 :]
    if step.opset >= 13 or prod(behind) == 1:
        return graph.call(function, step.x, axis)
    # Before opset 13 all axes from this one on are one.
    flat = reshape(graph, step.x, [*step.x.shape[:axis], prod(step.x.shape[axis:])])
    return reshape(graph, graph.call(function, flat, axis), step.x.shape)


@operator_for("ArgMax", "ArgMin")
def _arg_max(graph: GraphBuilder, step: Step) -> Value:
    if step.attributes.get("select_last_index", 0):
        raise NotConvertibleError("expected the first of equal values, got select_last_index")
    function = torch.argmax if step.op_type == "ArgMax" else torch.argmin
    return graph.call(function, step.x, step.axis(0), bool(step.attributes.get("keepdims", 1)))


@operator_for(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"
)
def _reduce(graph: GraphBuilder, step: Step) -> Value:
    axes = step.ints(1, "axes")
    if not axes:
        if step.attributes.get("noop_with_empty_axes", 0):
            return step.x
        axes = list(range(len(step.x.shape)))
    keep = bool(step.attributes.get("keepdims", 1))
    if step.op_type == "ReduceSumSquare":
        return graph.call(torch.sum, graph.call(torch.square, step.x), axes, keepdim=keep)
    if step.op_type in ("ReduceL1", "ReduceL2"):
        order = 1 if step.op_type == "ReduceL1" else 2
        return graph.call(torch.linalg.vector_norm, step.x, order, axes, keepdim=keep)
    functions: dict[str, Any] = {
        "ReduceMean": torch.mean,
        "ReduceSum": torch.sum,
        "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
        "ReduceLogSumExp": torch.logsumexp,
    }
    return graph.call(functions[step.op_type], step.x, axes, keepdim=keep)


@operator_for("CumSum")
def _cum_sum(graph: GraphBuilder, step: Step) -> Value:
    if step.attributes.get("exclusive", 0) or step.attributes.get("reverse", 0):
        raise NotConvertibleError("expected a plain running sum, got an exclusive or a reversed one")
    return graph.call(torch.cumsum, step.x, int(step.input(1).numbers("an axis")[0]))


@operator_for("Trilu")
def _trilu(graph: GraphBuilder, step: Step) -> Value:
    diagonal = step.optional(1)
    function = torch.triu if step.attributes.get("upper", 1) else torch.tril
    return graph.call(function, step.x, 0 if diagonal is None else int(diagonal.numbers("a diagonal")[0]))


@operator_for("Einsum")
def _einsum(graph: GraphBuilder, step: Step) -> Value:
    values = [step.input(index) for index in range(len(step.inputs))]
    return graph.call(torch.einsum, step.attributes["equation"], *values)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, texts decoded."""
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
