"""A network of any other family, given as ONNX, wrapped in the same frame program."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, version_converter

from compile.networks.contract import Contract, Layout
from compile.networks.onnx_file import sort_nodes
from compile.networks.onnx_precision import with_float_biases
from compile.program.batch import for_one_frame
from compile.program.onnx_export import OPSET, checked, example_frames, export_module, frame_axes, opset_of
from compile.program.program import FrameToInput, ScoresToMask
from pipeline.bundles.bundle import FRAMES, MASKS, NEXT_STATE, NOT_FINITE, STATE
from pipeline.errors import CompileError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# How far probabilities may leave 0 to 1 by rounding.
_SLACK = 0.01


def foreign_network(original: onnx.ModelProto, path: Path, state: Collection[str] = ()) -> onnx.ModelProto:
    """A segmentation network with one picture input, at the opset of the frame program.

    Args:
        original: as the file has it, with its weights inside; its nodes are put in order.
        path: its name in messages.
        state: names of inputs for what it keeps between frames; they come behind the picture.

    Raises:
        CompileError: it does not look like such a network.
    """
    model = original
    try:
        sort_nodes(model.graph, path)
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model)
        current = opset_of(model)
        if current < OPSET:
            model = version_converter.convert_version(model, OPSET)
        elif current > 20:
            raise CompileError(
                f"{path}: expected ONNX opset 20 or older, got {current}: export it with opset_version=18"
            )
        # Outputs often say less than their nodes do.
        model = onnx.shape_inference.infer_shapes(model)
        with_float_biases(model.graph)
    except CompileError:
        raise
    except Exception as error:  # protobuf, checker and converter share no exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(
            f"{path}: expected an ONNX network, got a file that is none or is damaged ({reason})"
        ) from error
    inputs = [value for value in _inputs(model) if value.name not in state]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise CompileError(f"{path}: expected a network with one input of 4 axes, got {len(inputs)} inputs")
    if inputs[0].type.tensor_type.elem_type not in _FLOATS:
        raise CompileError(f"{path}: expected a float32 or float16 input, got {_type_name(inputs[0])}")
    batch = inputs[0].type.tensor_type.shape.dim[0].dim_value
    if batch > 1:
        raise CompileError(
            f"{path}: expected a network for single pictures or any number, got one for {batch} at a time: "
            "export it with a batch of 1 or a dynamic one"
        )
    return model


def fixed_imgsz(model: onnx.ModelProto, contract: Contract) -> Contract:
    """The contract with the size that the network was exported at, when it takes only one.

    Raises:
        CompileError: the contract's channels are not the network's.
    """
    sides = [axis.dim_value for axis in _inputs(model)[0].type.tensor_type.shape.dim]
    channels, height, width = (sides[3], *sides[1:3]) if contract.layout == "nhwc" else (sides[1], *sides[2:])
    if channels and channels != len(contract.mean):
        raise CompileError(
            f"contract {contract.name}: expected {channels} channels as the network has, got {contract.channels}: "
            "set channels: grey for 1, rgb or bgr for 3, and layout: nhwc if channels come last"
        )
    return replace(contract, imgsz=(height or contract.imgsz[0], width or contract.imgsz[1]))


def fitted_contract(
    network: onnx.ModelProto, contract: Contract, weights: Path, imgsz: tuple[int, int] | None
) -> Contract:
    """The contract at the size that is wanted and that the network takes.

    Args:
        network: as it was read.
        contract: as it was given.
        weights: the file, for a message.
        imgsz: (height, width) in place of the contract's; None: the contract's.

    Raises:
        CompileError: the network takes another size alone, or the contract's channels are not its own.
    """
    fitted = fixed_imgsz(network, contract)
    if imgsz is None or imgsz == fitted.imgsz:
        return fitted
    fixed = fixed_imgsz(network, replace(contract, imgsz=imgsz))
    if fixed.imgsz != imgsz:
        raise CompileError(
            f"--imgsz: expected {fixed.imgsz[0]}×{fixed.imgsz[1]}, the one size that {weights} takes, got {imgsz[0]}×{imgsz[1]}"
        )
    return fixed


def wrap(
    network: onnx.ModelProto,
    contract: Contract,
    frame_size_hw: tuple[int, int] | None,
    *,
    smooth: bool = False,
    takes_batch: bool = True,
    state: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Put the two halves of the frame program around a foreign network.

    Returns:
        As ``compile.program.onnx_export.export_program``.

    Raises:
        CompileError: the contract does not fit the network.
    """
    output = scores_output(network, contract)
    axes = frame_axes(frame_size_hw)
    before = export_module(FrameToInput(contract), (example_frames(frame_size_hw),), (axes,), (FRAMES,), ("input",))
    classes = _classes(output, contract)
    height, width = contract.imgsz
    channels_last = (contract.output_layout or contract.layout) == "nhwc"
    shape = (2, height, width, classes) if channels_last else (2, classes, height, width)
    # Their size is free: some networks give fewer scores than their input has pixels.
    sides = {axis + (not channels_last): torch.export.Dim(f"side_{axis}", min=1) for axis in (1, 2)}
    after = export_module(
        ScoresToMask(contract, smooth=smooth),
        (torch.zeros(shape), example_frames(frame_size_hw)),
        ({0: axes[0], **sides}, axes),
        ("scores", FRAMES),
        (MASKS, NOT_FINITE),
    )
    joined = _join(before, network, after, output.name, state or {})
    return checked(joined if takes_batch else for_one_frame(joined), "the network")


def scores_output(network: onnx.ModelProto, contract: Contract) -> onnx.ValueInfoProto:
    """The output that holds the scores: the contract's, else the first.

    Raises:
        CompileError: there is none of that name.
    """
    outputs: list[onnx.ValueInfoProto] = list(network.graph.output)
    if contract.output is None:
        return outputs[0]
    for output in outputs:
        if output.name == contract.output:
            return output
    raise CompileError(
        f"contract {contract.name}: output: expected one of {', '.join(o.name for o in outputs)}, got {contract.output!r}"
    )


def find_output_layout(shape: Sequence[int], contract: Contract, name: str) -> Layout:
    """The axis order of the scores, by where the input's height and width are found again.

    Args:
        shape: of the scores for one picture of the contract's size.
        contract: its layout decides where both orders fit.
        name: the output's, for a message.

    Raises:
        CompileError: neither order fits.
    """
    height, width = contract.imgsz
    if len(shape) != 4:
        raise CompileError(
            f"output {name!r}: expected scores with 4 axes, got {len(shape)}: name another output in the contract"
        )
    sides: dict[Layout, Sequence[int]] = {"nchw": shape[2:], "nhwc": shape[1:3]}
    # Scores may be smaller than the input, by a factor that need not divide it.
    fits = [
        layout for layout, (rows, columns) in sides.items() if abs(rows * width - columns * height) < max(height, width)
    ]
    if not fits:
        raise CompileError(
            f"output {name!r}: expected height and width as the input's {height}×{width}, or in their ratio, on two axes in a row, "
            f"got {'×'.join(map(str, shape))}: name another output in the contract"
        )
    return contract.layout if contract.layout in fits else fits[0]


class ValueRange:
    """What values a network of another family gives, and whether the contract's activation allows them.

    Args:
        contract: the network's.
        class_count: channels of its output.
    """

    def __init__(self, contract: Contract, class_count: int) -> None:
        self._contract, self._one = contract, class_count == 1
        self._low, self._high = math.inf, -math.inf

    def add(self, scores: NDArray[np.floating[Any]]) -> None:
        """Look at the scores of a frame; what is no number is left to others."""
        finite = scores[np.isfinite(scores)]
        if finite.size:
            self._low, self._high = min(self._low, float(finite.min())), max(self._high, float(finite.max()))

    def check(self) -> str | None:
        """What is to be told of the values; None if nothing is.

        Raises:
            CompileError: probabilities are said, and others come.
        """
        contract, within = self._contract, f"from {self._low:.3g} to {self._high:.3g}"
        if not self._one or self._low > self._high:
            return None
        if contract.activation == "none" and not (self._low >= -_SLACK and self._high <= 1 + _SLACK):
            raise CompileError(
                f"contract {contract.name}: activation: expected values from 0 to 1 for none, got values {within}: "
                "set activation: sigmoid, or divide them in the network"
            )
        if contract.activation == "sigmoid" and self._low >= 0 and self._high <= 1:
            return (
                f"contract {contract.name}: the network's values are {within} on all frames, as probabilities are, and sigmoid makes "
                "subject of all of them: set activation: none"
            )
        return None


def count_classes(network: onnx.ModelProto, contract: Contract) -> int:
    """How many channels the scores have."""
    return _classes(scores_output(network, contract), contract)


def _classes(output: onnx.ValueInfoProto, contract: Contract) -> int:
    axes = output.type.tensor_type.shape.dim
    channels_last = (contract.output_layout or contract.layout) == "nhwc"
    if len(axes) != 4 or output.type.tensor_type.elem_type not in _FLOATS:
        order = "batch, height, width, class" if channels_last else "batch, class, height, width"
        raise CompileError(
            f"output {output.name!r}: expected float scores with 4 axes ({order}), got {_type_name(output)} with {len(axes)}: "
            "name another output in the contract"
        )
    count = int(axes[3 if channels_last else 1].dim_value)
    if not count and contract.classes is None:
        raise CompileError(
            f"output {output.name!r}: expected a number of classes, got none in the file: name the classes in the contract"
        )
    return count or len(contract.classes or ())


def _join(
    before: onnx.ModelProto,
    network: onnx.ModelProto,
    after: onnx.ModelProto,
    scores_name: str,
    state: Mapping[str, str],
) -> onnx.ModelProto:
    """One graph of three; names get a prefix each, so that none meets another's."""
    newest = max(opset_of(model) for model in (before, network, after))
    graphs = []
    for prefix, model in (("before/", before), ("network/", network), ("after/", after)):
        same = model if opset_of(model) == newest else version_converter.convert_version(model, newest)
        graphs.append(onnx.compose.add_prefix(same, prefix).graph)
    first, middle, last = graphs
    states = {f"network/{name}": f"{STATE}{name}" for name in state}
    states |= {f"network/{result}": f"{NEXT_STATE}{name}" for name, result in state.items()}
    kept_in, kept_out = ([v for v in values if v.name in states] for values in (middle.input, middle.output))
    known = {item.name for item in middle.initializer} | states.keys()
    (input_,) = [value for value in middle.input if value.name not in known]
    casts = [
        helper.make_node(
            "Cast", ["before/input"], [input_.name], name="before/cast", to=input_.type.tensor_type.elem_type
        ),
        helper.make_node("Cast", [f"network/{scores_name}"], ["after/scores"], name="after/cast", to=TensorProto.FLOAT),
    ]
    nodes = [*first.node, casts[0], *middle.node, casts[1], *last.node]
    graph = helper.make_graph(
        nodes,
        "frame_program",
        [copy.deepcopy(value) for value in (first.input[0], *kept_in)],
        [copy.deepcopy(value) for value in (*last.output, *kept_out)],
        initializer=[*first.initializer, *middle.initializer, *last.initializer],
    )
    opsets = {opset.domain: opset.version for opset in network.opset_import if opset.domain != "ai.onnx"} | {"": newest}
    joined = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=before.ir_version,
        producer_name="edgemask",
    )
    # Both halves read the input itself: TensorRT refuses to hand uint8 on, be it through an Identity.
    frames = {f"{half}/{FRAMES}": FRAMES for half in ("before", "after")}
    _rename(joined.graph, {**frames, **{f"after/{name}": name for name in (MASKS, NOT_FINITE)}, **states})
    return joined


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                values[position] = names.get(name, name)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _type_name(value: onnx.ValueInfoProto) -> str:
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()
