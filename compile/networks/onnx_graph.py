"""Any segmentation network as ONNX in the one form of networks, proven against ONNX Runtime."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from calibration.sets.photographs import PhotographSource
from compile.networks.contract import OutputLayout
from compile.networks.ends import Activation, channels_first, final_activation
from compile.networks.layered import GraphBuilder, Layer, LayeredNetwork, Value
from compile.networks.onnx_file import Layout, OnnxFile, opset_of
from compile.networks.onnx_operators import OPERATORS, Step, attributes_of, permute, tensor_of
from compile.networks.onnx_runtime import SECONDS, compute, memory_limit
from pipeline.errors import NotConvertibleError

for _table in ("onnx_layers", "onnx_resize"):  # they add themselves to the operators
    importlib.import_module(f"compile.networks.{_table}")

MOST_DIFFERENCE = 1e-3
"""Between the network in its one form and ONNX Runtime, as a share of the range of the output's values."""

# Of a file that computes in FP16 itself: what its own rounding may do in many layers, one after the other.
_MOST_HALF_DIFFERENCE = 0.03
# Of the places of a picture, those whose class may be another: where two scores are equal but for rounding.
_MOST_OTHER_CLASSES = 1e-3
_SAME_IN_BATCH = 1e-4
_SAME_LEVEL = 0.01
# FP32, of three pictures at once, with as much for the steps themselves.
_BYTES_OF_LIVE = 24
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class GraphNetwork:
    """A network in the one form, and what is known of it.

    Attributes:
        module: (N, C, h, w) float32 pictures to what the file's output is, as (N, C, h, w).
        input_shape: (1, C, h, w).
        output_shape: for one picture.
        output: name of the file's output.
        layers: those with weights, in the order in which they run.
        activation: the last step, if it is one.
        takes_batch: whether several pictures at once give what each gives alone.
        difference: the largest from ONNX Runtime, as a share of the range of the output's values; of classes, the share that differs.
    """

    module: LayeredNetwork
    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, ...]
    output: str
    layers: tuple[Layer, ...]
    activation: Activation | None
    takes_batch: bool
    difference: float

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers, for one picture."""
        return sum(layer.macs for layer in self.layers)


AnyOutputLayout = OutputLayout | Callable[[Sequence[NDArray[Any]]], OutputLayout]
"""The axis order of an output, or what tells it from the outputs for some pictures, one by one."""


def graph_of(
    file: OnnxFile,
    path: Path,
    layout: Layout,
    output_layout: AnyOutputLayout | None = None,
    *,
    inputs: Sequence[NDArray[np.float32]] | None = None,
    seconds: float = SECONDS,
) -> GraphNetwork:
    """Bring a segmentation network as ONNX into the one form, and prove that it is still the same.

    Args:
        file: as ``read_onnx`` gives it.
        path: its name in messages.
        layout: axis order of its input.
        output_layout: of its output; None for that of the input.
        inputs: (1, C, h, w) pictures as the network takes them, to prove it on; None takes noise and photographs of the
            package, scaled as most networks take them.
        seconds: that ONNX Runtime may take for them.

    Raises:
        NotConvertibleError: an operator, or a variant of one, is missing, or what came out differs.
        CompileError: it cannot be run, or ``output_layout`` refuses its outputs.
    """
    shape = file.input_shape if layout == "nchw" else tuple(file.input_shape[axis] for axis in (0, 3, 1, 2))
    pictures = list(_pictures(shape, file.dtype) if inputs is None else inputs)
    if file.dtype == np.uint8:
        pictures = [np.rint(x).clip(0, 255) for x in pictures]
    given = [x if layout == "nchw" else np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in pictures]
    computed = compute(file.original, file.single, given, str(path), seconds=seconds)
    if file.precision == "int8":  # its scales would be lost
        raise NotConvertibleError(f"{path}: expected a network that is not quantized yet, got INT8")
    last_layout = output_layout(computed.outputs) if callable(output_layout) else output_layout or layout
    made = convert(computed.folded, shape, layout, last_layout, str(path), whole=file.dtype == np.uint8)
    results = [_run(made.module, x, path) for x in pictures]
    expected = [_channels_first(y, last_layout) for y in computed.outputs]
    if file.is_half:
        _compare(path, results, expected, _MOST_HALF_DIFFERENCE)
        expected = [_channels_first(y, last_layout) for y in computed.single]
    difference = _compare(path, results, expected, MOST_DIFFERENCE)
    return GraphNetwork(
        made.module,
        (1, int(shape[1]), int(shape[2]), int(shape[3])),
        made.output_shape,
        file.original.graph.output[0].name,
        made.layers,
        final_activation(made.module),
        takes_batch(made.module, pictures, results),
        difference,
    )


@dataclass(frozen=True)
class Converted:
    """A graph in the one form, not yet proven.

    Attributes:
        module: as in ``GraphNetwork``.
        output_shape: for one picture.
        layers: as in ``GraphNetwork``.
    """

    module: LayeredNetwork
    output_shape: tuple[int, ...]
    layers: tuple[Layer, ...]


def convert(
    model: onnx.ModelProto,
    input_shape: Sequence[int],
    layout: Layout,
    output_layout: OutputLayout,
    what: str,
    *,
    whole: bool = False,
) -> Converted:
    """Walk through the nodes of a graph; what each gives is kept by its name while somebody reads it.

    Args:
        model: of one input and one output, its nodes in order.
        input_shape: (1, C, h, w).
        layout: axis order of the file's input.
        output_layout: of its output.
        what: the file's name in messages.
        whole: whether it takes whole numbers, to which pictures are rounded.

    Raises:
        NotConvertibleError: an operator, or a variant of one, is missing.
    """
    graph, builder, opset = model.graph, GraphBuilder(), opset_of(model)
    values = {tensor.name: Value(tensor_of(numpy_helper.to_array(tensor))) for tensor in graph.initializer}
    x = builder.picture(input_shape)
    if whole:
        x = builder.call(torch.round, x)
    for entry in graph.input:
        if entry.name not in values:
            values[entry.name] = permute(builder, x, [0, 2, 3, 1]) if layout == "nhwc" else x
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    left = readers.copy()
    live, most = sum(prod(value.shape) for value in values.values()), memory_limit() // _BYTES_OF_LIVE
    for node in graph.node:
        made = _step(builder, node, opset, values, readers, what)
        values.update(zip(node.output, made, strict=False))
        live += sum(prod(value.shape) for value in made)
        if live > most:  # three pictures at once, and a step's own memory
            raise NotConvertibleError(
                f"{what}: {node.op_type} {node.name!r}: expected values of at most {most} elements at a time, got {live}"
            )
        for name in node.input:  # what nobody reads any more needs no memory
            left[name] -= 1
            if not left[name] and (gone := values.pop(name, None)) is not None:
                live -= prod(gone.shape)
    last = values[graph.output[0].name]
    if last.is_constant:
        raise NotConvertibleError(f"{what}: expected an output that depends on the picture, got a constant")
    if len(last.shape) == len(output_layout):
        last = permute(builder, last, [output_layout.index(axis) for axis in "nchw" if axis in output_layout])
        for position, axis in enumerate("nchw"):
            if axis not in output_layout:
                last = builder.call(torch.unsqueeze, last, position)
    module = builder.finish(last)
    used = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    layers = tuple(layer for layer in builder.layers if layer.name in used)
    return Converted(module, last.shape, layers)


def _step(
    builder: GraphBuilder,
    node: onnx.NodeProto,
    opset: int,
    values: Mapping[str, Value],
    readers: Mapping[str, int],
    what: str,
) -> list[Value]:
    """What one node gives."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        raise NotConvertibleError(f"{what}: {node.name!r}: expected operators that are known, got {name}")
    try:
        step = Step(
            node.op_type,
            node.name.removesuffix("/MatMulAddFusion"),  # ONNX Runtime's, of two nodes that it made one
            opset,
            attributes_of(node),
            tuple(values[name] if name else None for name in node.input),
            tuple(readers[name] == 1 for name in node.input),
            sum(1 for name in node.output if name and readers[name]),
        )
        made = OPERATORS[node.op_type](builder, step)
    except Exception as error:  # whatever PyTorch's functions say of what a stranger's file asks of them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotConvertibleError(f"{what}: {node.op_type} {node.name!r}: {reason}") from error
    return made if isinstance(made, list) else [made]


def _pictures(shape: Sequence[int], dtype: np.dtype[np.generic]) -> list[NDArray[np.float32]]:
    """Noise, and photographs of the package, as most networks take them."""
    _, channels, height, width = shape
    random = np.random.default_rng(0)
    is_bytes = dtype == np.uint8
    noise = random.integers(0, 256, shape).astype(np.float32) if is_bytes else random.standard_normal(shape, np.float32)
    pictures = [noise]
    with PhotographSource("verification") as source:
        for frame in islice(source, 2):
            image = torch.from_numpy(np.ascontiguousarray(frame.image[..., ::-1])).permute(2, 0, 1)[None].float()
            x = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
            if is_bytes:
                x = x.round()
            else:
                x = (x / 255 - torch.tensor(_MEAN).view(1, 3, 1, 1)) / torch.tensor(_STD).view(1, 3, 1, 1)
            pictures.append(
                np.ascontiguousarray(np.resize(x.numpy(), shape) if channels > 3 else x[:, :channels].numpy())
            )
    return pictures


def _run(module: LayeredNetwork, x: NDArray[np.float32], path: Path) -> Tensor:
    try:
        with torch.inference_mode():
            y: Tensor = module(torch.from_numpy(x))
    except Exception as error:
        raise NotConvertibleError(
            f"{path}: what came of it does not run: {str(error).strip().splitlines()[0]}"
        ) from error
    return y


def _channels_first(array: NDArray[Any], layout: OutputLayout) -> NDArray[Any]:
    return array if array.ndim != len(layout) else channels_first(torch.from_numpy(array), layout).numpy()


def _compare(path: Path, got: Sequence[Tensor], expected: Sequence[NDArray[Any]], most: float) -> float:
    """The largest difference, as a share of the range of the values."""
    largest = 0.0
    for ours, reference in zip(got, expected, strict=True):
        theirs = torch.from_numpy(np.ascontiguousarray(reference))
        if ours.shape != theirs.shape:
            raise NotConvertibleError(
                f"{path}: expected the shape that ONNX Runtime gives, {tuple(theirs.shape)}, got {tuple(ours.shape)}"
            )
        if not theirs.is_floating_point():
            share, limit = float((ours != theirs).double().mean()), _MOST_OTHER_CLASSES
        else:
            share, limit = _difference(ours.double(), theirs.double()), most
        if not share <= limit:
            raise NotConvertibleError(
                f"{path}: expected what ONNX Runtime gives, within {limit:g} of the range of its values, "
                f"got a difference of {share:.3g}"
            )
        largest = max(largest, share)
    return largest


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the range of ``theirs``; infinite if only one of both is a number somewhere."""
    finite = torch.isfinite(theirs)
    if not torch.equal(finite, torch.isfinite(ours)):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    ours, theirs = ours[finite], theirs[finite]
    span = float(theirs.max() - theirs.min()) or float(theirs.abs().max()) or 1.0
    return float((ours - theirs).abs().max()) / span


def takes_batch(module: LayeredNetwork, pictures: Sequence[NDArray[np.float32]], alone: Sequence[Tensor]) -> bool:
    """Whether three pictures at once give what each gives alone."""
    three = [index % len(pictures) for index in range(3)]
    try:
        with torch.inference_mode():
            together: Tensor = module(torch.from_numpy(np.concatenate([pictures[index] for index in three])))
        return is_same(together.numpy(), torch.cat([alone[index] for index in three]).numpy())
    except (RuntimeError, IndexError, ValueError):  # its shapes hold for one picture alone
        return False


def is_same(together: NDArray[Any], singles: NDArray[Any], *, coarse: bool = False) -> bool:
    """Whether what pictures gave together is what they gave alone, but for rounding: of FP32, or ``coarse`` of FP16 or INT8."""
    if together.shape != singles.shape:
        return False
    if singles.dtype.kind != "f":
        return float(np.mean(together != singles)) <= _MOST_OTHER_CLASSES
    span = float(singles.max() - singles.min()) or 1.0
    apart = np.abs(together.astype(np.float32) - singles) / span
    if coarse:  # a value at the border of two levels takes the one or the other
        return float(np.mean(apart > _SAME_LEVEL)) <= _MOST_OTHER_CLASSES
    return float(apart.max()) <= _SAME_IN_BATCH
