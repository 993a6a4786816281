"""Where two programs of one network part: the layer that computes something else from the same inputs.

Behind a layer that is wrong all others differ too, and behind hundreds of layers in FP16 or INT8 rounding alone may add up to as much.
So errors are not followed through the program: each of its layers is given what the reference computes in front of it, and its output
is compared with the reference's. What is left is its own error: a rounding, about as large for all of them, or a fault.

What is between layers is the same in both where it is called the same, or made in the same way out of what is the same: names that an
exporter counts, and conversions that one precision needs, tell nothing.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # python -m puts the current folder first, which may hold packages that are called like ours.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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

# A layer's own error, relative to its output, that rounding does not reach in any precision; and how many times as large as that of
# most others it is at least.
_LEAST_FAULT = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.1}
_TIMES_USUAL = 6.0
# Layers that compute most, and that factors of channels are moved between.
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
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
        output: what its output is called.
    """

    name: str
    operation: str
    error: float
    place: int
    output: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What was found.

    Attributes:
        equal: the masks of both programs are the same, bit for bit, for all frames.
        frame: of those that were given, the one whose masks differ most; its layers were compared.
        share: of its pixels, those whose mask values differ.
        levels: by how much at most, 0 to 255.
        layers: how many were compared.
        usual: the lower quartile of the errors of those with weights.
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
    same = _same_values(program, reference)
    if not same:
        raise CompileError("expected two programs of one network, got two that have no layer in common")
    walk = partial(_layer_errors, program, reference, frame=frames[worst])
    errors = sorted((error for error, _ in walk(same)), key=lambda error: error.place)
    precision = _precision(program)
    own = [error.error for error in errors if error.operation in _WITH_WEIGHTS]
    usual = (
        float(np.quantile(own, 0.25)) if own else 0.0
    )  # where factors were moved, half of the layers and more are apart
    limit = max(_LEAST_FAULT[precision], _TIMES_USUAL * usual)
    faults = [error for error in errors if error.error > limit]
    if faults and precision == "int8":
        faults = _not_made_up_for(faults, same, program, walk, limit)
    return Difference(
        equal=not any(share for _, share, _ in apart),
        frame=worst,
        share=apart[worst][1],
        levels=apart[worst][2],
        layers=len(errors),
        usual=usual,
        limit=limit,
        faults=tuple(faults),
        largest=max(errors, key=lambda error: error.error, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """The nodes of the program between values that the reference has too: from ``inputs`` to ``output``."""

    output: str
    inputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]


_Walk = Callable[[Mapping[str, str]], Iterator[tuple[LayerError, _Segment]]]
"""Gives the errors of parts of a program, cut at these values, which are called so in the reference."""


def _not_made_up_for(
    faults: Sequence[LayerError], same: Mapping[str, str], program: onnx.ModelProto, walk: _Walk, limit: float
) -> list[LayerError]:
    """Those that the layers behind them do not make up for.

    For INT8, factors of channels are moved from a layer into the next one. Each then computes something else than the trained one, and
    both together the same. So from one layer with weights that is right to the next one, what is between them runs as one.
    """
    doubted = {fault.output for fault in faults}
    last = _last_with_weights(program)
    weighted = {name for node in program.graph.node if node.op_type in _WITH_WEIGHTS for name in node.output}
    found = list(walk({name: same[name] for name in same.keys() & weighted if name in last or name not in doubted}))
    bad = {name for error, segment in found if error.error > limit for node in segment.nodes for name in node.output}
    through = {name for _, segment in found for node in segment.nodes for name in node.output}
    return [fault for fault in faults if fault.output in bad or fault.output not in through]


def _last_with_weights(program: onnx.ModelProto) -> set[str]:
    """The outputs of layers behind which no layer has weights."""
    leads_on: set[str] = set()  # to a layer with weights
    last = set()
    for node in reversed(program.graph.node):
        has_weights = node.op_type in _WITH_WEIGHTS
        if has_weights and leads_on.isdisjoint(node.output):
            last.update(node.output)
        if has_weights or not leads_on.isdisjoint(node.output):
            leads_on.update(_reads(node))
    return last


def _layer_errors(
    program: onnx.ModelProto, reference: onnx.ModelProto, same: Mapping[str, str], *, frame: NDArray[Any]
) -> Iterator[tuple[LayerError, _Segment]]:
    names = {layer.node: layer.name for layer in read_program(program.SerializeToString()).layers}
    places = {name: place for place, node in enumerate(program.graph.node) for name in node.output}
    ours, theirs = _Parts(program, same), _Parts(reference, set(same.values()))
    doubted = {same[segment.output]: segment for segment in ours.segments() if ours.is_float(segment.output)}
    segments = list(theirs.segments())
    left = Counter(name for segment in segments for name in segment.inputs)
    left += Counter(same.get(name, name) for segment in doubted.values() for name in segment.inputs)
    values = _inputs(_session(reference), frame)
    given = _inputs(_session(program), frame)
    for segment in segments:
        values[segment.output] = expected = theirs.compute(segment, values)
        used = [segment.output, *segment.inputs]
        left[segment.output] += 1
        doubt = doubted.get(segment.output)
        if doubt is not None:
            found = {name: given[name] if name in given else values[same[name]] for name in doubt.inputs}
            used += [same.get(name, name) for name in doubt.inputs]
            error = _error(ours, doubt, found, expected)
            if error is not None:
                node = doubt.nodes[-1]
                name = names.get(node.name) or node.name
                yield LayerError(name, node.op_type, error, places[doubt.output], doubt.output), doubt
        for name in used:  # what nobody needs any more is not kept
            left[name] -= 1
            if left[name] == 0:
                values.pop(name, None)


def _error(ours: _Parts, doubt: _Segment, found: Values, expected: NDArray[Any]) -> float | None:
    """A layer's own error; None where it does not take what the reference has in front of it, or gives another shape."""
    try:
        got = ours.compute(doubt, found)
    except CompileError:
        return None
    return _relative(got, expected)


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


class _Parts:
    """A program in parts, each of which runs alone.

    Args:
        model: the program.
        between: the values at which it is cut.
    """

    def __init__(self, model: onnx.ModelProto, between: Collection[str]) -> None:
        self._model, self._between = model, between
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        graph = shape_inference.infer_shapes(model).graph
        self._types = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def is_float(self, name: str) -> bool:
        """Whether a value is one of numbers that rounding changes."""
        return self._types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)

    def segments(self) -> Iterator[_Segment]:
        """Its parts, in the order in which they run."""
        nodes = self._model.graph.node
        makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
        given = {value.name for value in self._model.graph.input} - self._weights.keys()
        for output, last in makers.items():
            if output not in self._between:
                continue
            places, inputs, left = {last}, set(), _reads(nodes[last])
            while left:
                name = left.pop()
                if name in given or name in self._between:
                    inputs.add(name)
                elif name in makers and makers[name] not in places:
                    places.add(makers[name])
                    left += _reads(nodes[makers[name]])
            yield _Segment(output, tuple(sorted(inputs)), tuple(nodes[place] for place in sorted(places)))

    def compute(self, segment: _Segment, values: Values) -> NDArray[Any]:
        """The output of a part for values of the same names, in whatever precision.

        Raises:
            CompileError: it does not take them.
        """
        fed = {name: values[name].astype(self._type(name, values[name]), copy=False) for name in segment.inputs}
        graph = helper.make_graph(
            segment.nodes,
            "part",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in fed.items()
            ],
            [onnx.ValueInfoProto(name=segment.output)],
            [
                self._weights[name]
                for name in {name for node in segment.nodes for name in _reads(node)} & self._weights.keys()
            ],
        )
        model = self._model
        part = helper.make_model(
            graph, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
        )
        return _run(_session(part, is_part=True), [segment.output], fed)[segment.output]

    def _type(self, name: str, value: NDArray[Any]) -> np.dtype[Any]:
        known = self._types.get(name)
        return helper.tensor_dtype_to_np_dtype(known) if known else value.dtype


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads; what the graphs inside it read, too, in which its own names may be."""
    inner = [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for graph in inner for one in graph.node for name in _reads(one))]


def _relative(got: NDArray[Any], expected: NDArray[Any]) -> float | None:
    """The error of an output; None where the reference's is not finite, or of another shape."""
    expected = expected.astype(np.float64)
    if got.shape != expected.shape or not expected.size or not np.isfinite(expected).all():
        return None
    size = max(float(np.sqrt(np.mean(expected**2))), _LEAST_RMS)
    error = float(np.sqrt(np.mean((got.astype(np.float64) - expected) ** 2))) / size
    return error if np.isfinite(error) else float(np.finfo(np.float64).max)


def _precision(program: onnx.ModelProto) -> str:
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in program.graph.node):
        return "int8"
    has_halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in program.graph.initializer)
    return "fp16" if has_halves else "fp32"


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


def _session(model: onnx.ModelProto, *, is_part: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1 if is_part else 0  # a layer alone is not worth threads of its own
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
    paths: dict[str, Path] = vars(parser.parse_args(arguments))
    frames = [np.load(path, allow_pickle=False) for path in sorted(paths["frames"].glob("*.npy"))]
    found = difference(onnx.load(paths["program"]), onnx.load(paths["reference"]), frames)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
