"""Where two programs of one network part: the layer that computes something else from the same inputs.

Behind a layer that is wrong all others differ too, and behind hundreds of layers in FP16 or INT8 rounding alone may add up to as much.
So errors are not followed through the program: each of its layers is given what the reference computes in front of it, and its output
is compared with the reference's. What is left is its own error: a rounding, about as large for all of them, or a fault.

What is between layers is the same in both where it is called the same, or made in the same way out of what is the same: names that an
exporter counts, and conversions that one precision needs, tell nothing.
"""

from __future__ import annotations

import os
import statistics
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # python -m puts the current folder first, which may hold packages that are called like ours.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, shape_inference

from compile.inspect.program import read_program
from pipeline.bundles.bundle import LOOK, LOOK_VALUES, MASKS, STATE
from pipeline.command.command_line import OptionParser, run_command
from pipeline.errors import CompileError

# Of how many layers what is in front of them and behind them is in memory at once.
_AT_ONCE = 24
# A layer's own error, relative to its output, that rounding does not reach in any precision; and how many times as large as that of
# most others it is at least.
_LEAST_FAULT = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.1}
_TIMES_USUAL = 6.0
# What makes another type of a value, and not another value.
_CONVERSIONS = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
# A name that says nothing but how many values came before it.
_COUNTED = re.compile(r"(?:val_)?\d+")
# Outputs that are smaller on average are nothing but rounding.
_LEAST_RMS = 1e-4

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LayerError:
    """A layer's own error.

    Attributes:
        name: of the module that it was in the trained network, if it has weights; else the node's.
        operation: such as "Conv".
        error: root mean square of the difference, over that of what the reference computes.
        place: how many layers are in front of it, in the order in which they run.
    """

    name: str
    operation: str
    error: float
    place: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What was found.

    Attributes:
        equal: the masks of both programs are the same, bit for bit, for all frames.
        frame: of those that were given, the one whose masks differ most; its layers were compared.
        share: of its pixels, those whose mask values differ.
        levels: by how much at most, 0 to 255.
        layers: how many were compared.
        usual: the median of their errors.
        limit: what counts as a fault.
        faults: those beyond it, in the order in which they run.
        largest: the layer with the largest error; None where none was compared.
    """

    equal: bool
    frame: int
    share: float
    levels: int
    layers: int
    usual: float
    limit: float
    faults: tuple[LayerError, ...]
    largest: LayerError | None


def difference(program: onnx.ModelProto, reference: onnx.ModelProto, frames: Sequence[NDArray[Any]]) -> Difference:
    """Compare two programs of one network.

    Args:
        program: the one that is doubted.
        reference: the one that is not.
        frames: one or more, as the programs take them, each (1, …).

    Raises:
        CompileError: they are not two programs of one network, or cannot be run.
    """
    sessions = _session(program), _session(reference)
    apart = []
    for frame in frames:
        masks, expected = (_run(session, [MASKS], _inputs(session, frame))[MASKS] for session in sessions)
        if masks.shape != expected.shape:
            raise CompileError(f"expected masks of one size of both programs, got {masks.shape} and {expected.shape}")
        levels = np.abs(masks.astype(np.int16) - expected)
        apart.append((float(levels.mean()), float(np.mean(levels > 0)), int(levels.max())))
    worst = max(range(len(frames)), key=lambda number: apart[number][0])
    errors = sorted(_layer_errors(program, reference, frames[worst]), key=lambda error: error.place)
    precision = _precision(program)
    usual = statistics.median([error.error for error in errors]) if errors else 0.0
    limit = max(_LEAST_FAULT[precision], _TIMES_USUAL * usual)
    return Difference(
        equal=not any(share for _, share, _ in apart),
        frame=worst,
        share=apart[worst][1],
        levels=apart[worst][2],
        layers=len(errors),
        usual=usual,
        limit=limit,
        faults=tuple(error for error in errors if not error.error <= limit),
        largest=max(errors, key=lambda error: error.error, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """The nodes of the program between values that the reference has too: from ``inputs`` to ``output``."""

    output: str
    inputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]


def _layer_errors(program: onnx.ModelProto, reference: onnx.ModelProto, frame: NDArray[Any]) -> Iterator[LayerError]:
    types = _types(program)
    names = {layer.node: layer.name for layer in read_program(program.SerializeToString()).layers}
    places = {name: place for place, node in enumerate(program.graph.node) for name in node.output}
    weights = {tensor.name: tensor for tensor in program.graph.initializer}
    fed = _inputs(_session(program), frame)
    same = _same_values(program, reference)
    if not same:
        raise CompileError("expected two programs of one network, got two that have no layer in common")
    segments = _segments(program, same, types)
    while some := list(islice(segments, _AT_ONCE)):
        wanted = {name for segment in some for name in (segment.output, *segment.inputs)} - fed.keys()
        found = _values(reference, sorted({same[name] for name in wanted}), _inputs(_session(reference), frame))
        values = {**fed, **{name: found[same[name]] for name in wanted}}
        for segment in some:
            error = _relative(_compute(program, segment, weights, types, values), values[segment.output])
            if error is not None:
                node = segment.nodes[-1]
                yield LayerError(names.get(node.name) or node.name, node.op_type, error, places[segment.output])


def _same_values(program: onnx.ModelProto, reference: onnx.ModelProto) -> dict[str, str]:
    """What the values between the program's layers are called in the reference, of those that both have."""
    operations = _operations(program), _operations(reference)
    called_the_same = {
        name
        for name, operation in operations[0].items()
        if operations[1].get(name) == operation and not _COUNTED.fullmatch(name)
    }
    names = {key: name for name, key in reversed(_keys(reference, called_the_same).items())}
    return {name: names[key] for name, key in _keys(program, called_the_same).items() if key in names}


def _operations(model: onnx.ModelProto) -> dict[str, str]:
    """Which operation makes each value, but for those that a conversion makes."""
    return {name: node.op_type for node in model.graph.node if node.op_type not in _CONVERSIONS for name in node.output}


def _keys(model: onnx.ModelProto, called_the_same: Collection[str]) -> dict[str, int]:
    """A number for each value between layers; the same one in two programs where it is made in the same way."""
    keys = {tensor.name: hash(("weight", tuple(tensor.dims))) for tensor in model.graph.initializer}
    keys |= {value.name: hash(("input", value.name)) for value in model.graph.input if value.name not in keys}
    made: dict[str, int] = {}
    counts: Counter[int] = Counter()
    for node in model.graph.node:
        if node.op_type in _CONVERSIONS:
            keys[node.output[0]] = keys.get(node.input[0], 0)
            continue
        way = hash((node.op_type, *(keys.get(name, 0) for name in node.input)))
        for number, name in enumerate(node.output):
            key = hash((way, number))
            counts[key] += 1  # branches that begin alike are told apart by their order
            keys[name] = made[name] = hash(name) if name in called_the_same else hash((key, counts[key]))
    return made


def _segments(program: onnx.ModelProto, same: Mapping[str, str], types: Mapping[str, int]) -> Iterator[_Segment]:
    makers = {name: node for node in program.graph.node for name in node.output if name}
    weights = {tensor.name for tensor in program.graph.initializer}
    given = {value.name for value in program.graph.input} - weights
    order = {id(node): place for place, node in enumerate(program.graph.node)}
    for output, node in makers.items():
        if output not in same or types.get(output) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        nodes, inputs, left = {id(node): node}, set(), list(node.input)
        while left:
            name = left.pop()
            if not name or name in weights:
                continue
            if name in given or name in same:
                inputs.add(name)
            elif id(makers[name]) not in nodes:
                nodes[id(makers[name])] = makers[name]
                left.extend(makers[name].input)
        has_graphs = any(entry.type == onnx.AttributeProto.GRAPH for one in nodes.values() for entry in one.attribute)
        if inputs and not has_graphs:
            ordered = sorted(nodes.values(), key=lambda one: order[id(one)])
            yield _Segment(output, tuple(sorted(inputs)), tuple(ordered))


def _compute(
    program: onnx.ModelProto,
    segment: _Segment,
    weights: Mapping[str, TensorProto],
    types: Mapping[str, int],
    values: Values,
) -> NDArray[Any] | None:
    """What a part of the program makes of values of the reference; None where it does not take them."""
    used = {name for node in segment.nodes for name in node.input}
    fed = {
        name: np.asarray(values[name]).astype(helper.tensor_dtype_to_np_dtype(types[name])) for name in segment.inputs
    }
    graph = helper.make_graph(
        segment.nodes,
        "segment",
        [helper.make_tensor_value_info(name, types[name], values[name].shape) for name in segment.inputs],
        [helper.make_tensor_value_info(segment.output, types[segment.output], None)],
        [weights[name] for name in used & weights.keys()],
    )
    model = helper.make_model(
        graph, opset_imports=program.opset_import, functions=program.functions, ir_version=program.ir_version
    )
    try:
        return _run(_session(model), [segment.output], fed)[segment.output]
    except CompileError:
        return None


def _values(model: onnx.ModelProto, names: Sequence[str], fed: Values) -> Values:
    """What a program computes on its way."""
    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return _run(_session(watched), names, fed)


def _relative(got: NDArray[Any] | None, expected: NDArray[Any]) -> float | None:
    """The error of an output; None where there is none, or the reference's is not finite, or of another shape."""
    expected = expected.astype(np.float64)
    if got is None or got.shape != expected.shape or not expected.size or not np.isfinite(expected).all():
        return None
    size = max(float(np.sqrt(np.mean(expected**2))), _LEAST_RMS)
    error = float(np.sqrt(np.mean((got.astype(np.float64) - expected) ** 2))) / size
    return error if np.isfinite(error) else float(np.finfo(np.float64).max)


def _precision(program: onnx.ModelProto) -> str:
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in program.graph.node):
        return "int8"
    has_halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in program.graph.initializer)
    return "fp16" if has_halves else "fp32"


def _types(program: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(program).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}


def _inputs(session: onnxruntime.InferenceSession, frame: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A frame, and zeros for what else a program takes: a look, and a state before the first frame."""
    first, *others = session.get_inputs()
    fed = {first.name: frame}
    for value in others:
        if value.name == LOOK:
            fed[value.name] = np.zeros(len(LOOK_VALUES), np.float32)
        elif value.name.startswith(STATE):
            fed[value.name] = np.zeros(value.shape, np.float16 if "float16" in value.type else np.float32)
        else:
            raise CompileError(f"expected a frame program, got one that takes {value.name} too")
    return fed


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Layers as they stand: what is in between is asked for. The layouts of CPUs do not take parts of programs, either.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no other class in common
        raise CompileError(f"ONNX Runtime cannot load the program ({_line(error)})") from error


def _run(session: onnxruntime.InferenceSession, names: Sequence[str], fed: Values) -> dict[str, NDArray[Any]]:
    as_needed = onnxruntime.RunOptions()
    as_needed.only_execute_path_to_fetches = True
    try:
        return dict(zip(names, session.run(list(names), dict(fed), as_needed), strict=True))
    except Exception as error:  # as above
        raise CompileError(f"ONNX Runtime cannot run the program ({_line(error)})") from error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, which ``python -m pipeline.replay`` does, and return the exit status."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = OptionParser(
        prog="python -m compile.inspect.difference", description="Compare two programs of one network."
    )
    parser.add_argument("program", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("frames", type=Path, help="a folder of frames as the programs take them, .npy")
    options: argparse.Namespace = parser.parse_args(arguments)
    frames = [np.load(path, allow_pickle=False) for path in sorted(options.frames.glob("*.npy"))]
    found = difference(onnx.load(options.program), onnx.load(options.reference), frames)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
