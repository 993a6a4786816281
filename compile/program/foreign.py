"""A network of any other family, given as ONNX, wrapped in the same frame program."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, version_converter

from calibration.sets.photographs import PhotographSource
from compile.networks.contract import Contract
from compile.networks.onnx_ends import attribute_graphs
from compile.networks.onnx_file import sort_nodes
from compile.networks.onnx_precision import with_float_biases
from compile.program.batch import for_one_frame
from compile.program.onnx_export import OPSET, checked, example_frames, export_module, frame_axes, opset_of
from compile.program.outputs import Form
from compile.program.program import FrameToInput, ScoresToMask
from pipeline.bundles.bundle import FRAMES, MASKS, NEXT_STATE, NOT_FINITE, STATE
from pipeline.errors import CompileError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# On how many photographs of the package a network is tried.
_PHOTOGRAPHS = 3


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
        # The checker asks for a shape of the output, which is cleared where it is chosen.
        model = onnx.shape_inference.infer_shapes(model)
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


def photographs(contract: Contract) -> list[NDArray[np.float32]]:
    """Photographs of the package as a contract has them go in, (1, C, h, w)."""
    before = FrameToInput(replace(contract, layout="nchw")).eval()
    with PhotographSource("verification") as source, torch.inference_mode():
        frames = [np.ascontiguousarray(frame.image[None]) for frame in islice(source, _PHOTOGRAPHS)]
        return [before(torch.from_numpy(frame)).numpy() for frame in frames]


def fixed_imgsz(model: onnx.ModelProto, contract: Contract) -> Contract:
    """The contract with the size that the network was exported at, when it takes only one.

    Raises:
        CompileError: the contract's channels are not the network's.
    """
    sides = [axis.dim_value for axis in _inputs(model)[0].type.tensor_type.shape.dim]
    channels, height, width = (sides[3], *sides[1:3]) if contract.layout == "nhwc" else (sides[1], *sides[2:])
    # Where the other order has its channels, a side of so few pixels is none.
    place = 0 if contract.layout == "nhwc" else 1
    if (height, width)[place] == len(contract.mean) != contract.imgsz[place]:
        raise CompileError(
            f"contract {contract.name}: layout: expected {'nchw' if contract.layout == 'nhwc' else 'nhwc'} for an input of "
            f"{'×'.join(str(side or '?') for side in sides)}, got {contract.layout}: set layout, and output_layout if it differs"
        )
    if channels and channels != len(contract.mean):
        raise CompileError(
            f"contract {contract.name}: expected {channels} channels as the network has, got {contract.channels}: "
            "set channels: grey for 1, rgb or bgr for 3, a number for channels as files have them; layout: nhwc if channels come last"
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
    channels: int = 1,
    form: Form = "scores",
    takes_batch: bool = True,
    state: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Put the two halves of the frame program around a foreign network.

    Args:
        network: its first output is taken.
        contract: the network's.
        frame_size_hw: fixed (height, width) of the frames; None for any.
        channels: of its output.
        form: what the output's numbers are.
        takes_batch: whether it takes several pictures at once; else the program takes one.
        state: names of inputs for what it keeps between frames -> those of the outputs that they get.

    Returns:
        As ``compile.program.onnx_export.export_program``.

    Raises:
        CompileError: they cannot be joined.
    """
    axes = frame_axes(frame_size_hw)
    before = export_module(
        FrameToInput(contract), (example_frames(frame_size_hw, pixels=contract.pixels),), (axes,), (FRAMES,), ("input",)
    )
    height, width = contract.imgsz
    layout = contract.output_layout or contract.layout
    # What gives one picture without an axis for it takes one at a time.
    count = 2 if "n" in layout else 1
    sizes = {"n": count, "c": channels, "h": height, "w": width}
    # Their size is free: some networks give fewer scores than their input has pixels.
    free = {axis: torch.export.Dim(f"side_{axis}", min=1) for axis in "hw"} | {"n": axes[0]}
    after = export_module(
        ScoresToMask(contract, form=form),
        (torch.zeros([sizes[axis] for axis in layout]), example_frames(frame_size_hw, count, contract.pixels)),
        (
            {place: free[axis] for place, axis in enumerate(layout) if axis in free},
            axes if count > 1 else {axis: size for axis, size in axes.items() if axis},
        ),
        ("scores", FRAMES),
        (MASKS, NOT_FINITE),
    )
    joined = _join(before, network, after, network.graph.output[0].name, state or {})
    return checked(joined if takes_batch else for_one_frame(joined), "the network")


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
        graphs.append(_with_prefix(same.graph, prefix))
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


def _with_prefix(graph: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """A copy in which every name begins so, in branches too, which read values of the graph around them."""
    made = onnx.GraphProto()
    made.CopyFrom(graph)
    for value in (*made.input, *made.output, *made.initializer, *made.value_info):
        value.name = prefix + value.name
    for node in made.node:
        node.name = prefix + node.name if node.name else ""
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = prefix + name if name else name
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                inner.CopyFrom(_with_prefix(inner, prefix))
    return made


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
