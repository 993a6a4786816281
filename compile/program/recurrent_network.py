"""A recurrent segmentation network as ONNX, such as Robust Video Matting: what it keeps between frames goes through its program.

    frames, state/NAME, …  ->  the network  ->  masks, not_finite, next/NAME, …

Whoever runs the program gives what came out of it for one frame with the next one, and zeros with the first. The network is as it is,
in FP32; it is judged on short sequences, for what it does to one frame says nothing of what it remembers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compile.networks.contract import Contract
from compile.networks.ends import channels_first
from compile.networks.onnx_ends import final_activation_of
from compile.networks.onnx_file import nodes_of, read_whole, tensors_of
from compile.networks.onnx_graph import is_same
from compile.networks.onnx_precision import precision_of
from compile.networks.onnx_runtime import LimitedSession
from compile.program.foreign import check_graph, fitted_contract, foreign_network, photographs, wrap
from compile.program.network import Network, check_count, raw_of, undecided
from compile.program.outputs import find_output, fit_output
from compile.program.program import FrameToInput, ScoresToMask
from compile.program.score_range import ScoreRange
from compile.proof.verify import SEQUENCE, Expected, require_finite
from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError

_States = list[NDArray[Any]]


class RecurrentNetwork(Network):
    """A network from an ONNX file that keeps something between frames; ONNX Runtime is its reference.

    Args:
        weights: the file.
        contract: how frames go in and masks come out, and what is kept.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse another number of classes.

    Raises:
        CompileError: the file cannot be read or run, or does not fit the contract.
    """

    takes_batch = False
    sequence = SEQUENCE

    def __init__(
        self,
        weights: Path,
        contract: Contract,
        *,
        imgsz: tuple[int, int] | None = None,
        classes: int | None = None,
    ) -> None:
        self._weights = weights
        original, self.data_files = read_whole(weights)
        check_graph(original, weights)
        _take_constants(original.graph, contract, weights)
        self._network = foreign_network(original, weights, contract.state)
        self.precision = precision_of(nodes_of(self._network), tensors_of(self._network), str(weights))
        fitted = fitted_contract(self._network, contract, weights, imgsz)
        self._session = LimitedSession(original.SerializeToString(), str(weights))
        picture, self._dtype = _picture(original.graph, contract)
        self._picture, self._output = picture, _scores(self._network.graph, contract, weights)
        _put_first(self._network.graph, self._output)
        self._kept, self._outputs = list(fitted.state), [self._output, *fitted.state.values()]
        fitted = replace(fitted, output=self._output)
        self._zeros: _States = []
        self._before = FrameToInput(fitted).eval()
        scores = self._find_states(original.graph, fitted)
        self._form = output = find_output([scores], fitted, self._output)
        fitted = fit_output(fitted, output, None, final_activation_of(self._network, self._output))
        check_count(weights, fitted, output.class_count, classes)
        super().__init__("foreign", weights.stem, fitted, output.class_count)
        self._fix_shapes(scores.shape)
        self._after = ScoresToMask(fitted, form=output.form).eval()
        self._range = ScoreRange(fitted, output.class_count, output.form)

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the network in ONNX Runtime, on frames of one sequence in their order."""
        states, all_scores = self._zeros, []
        with torch.inference_mode():
            for frame in frames_nhwc:
                scores, states = self._run(self._before(torch.from_numpy(frame[None])).numpy(), states)
                all_scores.append(scores)
            together = torch.from_numpy(np.concatenate(all_scores)).float()
            by_class = channels_first(together, self._after.layout)
            self._range.add(by_class)
            masks, not_finite, values = self._after.with_values(together, torch.from_numpy(frames_nhwc))
            require_finite(not_finite.numpy(), "the network")
            flags = undecided(by_class, self.contract, self._form.form)
            flags = self._after.fit.flags_on_frame(flags, frames_nhwc.shape[1:3])
            return Expected(masks.numpy(), flags, raw_of(frames_nhwc, by_class, values))

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        if precision != self.precision:
            raise CompileError(
                f"--precision: expected {self.precision} for a network that keeps state between frames, got {precision}: "
                f"take {self.precision}"
            )
        form, state = self._form.form, self.contract.state
        channels = 1 if form == "indices" else self._form.class_count
        return wrap(
            self._network, self.contract, frame_size_hw, channels=channels, form=form, takes_batch=False, state=state
        )

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._range.check()

    def _find_states(self, graph: onnx.GraphProto, contract: Contract) -> NDArray[Any]:
        """Find the shapes of what is kept, from which zeros of that shape follow; gives the scores of one picture."""
        declared = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.input}
        order = (0, 2, 3, 1) if contract.layout == "nhwc" else (0, 1, 2, 3)
        first, second, _ = (np.ascontiguousarray(x.transpose(order)) for x in photographs(contract))
        # What the file leaves open is 1: an initial state of zeros broadcasts.
        start = [np.zeros([side or 1 for side in declared[name]], np.float32) for name in contract.state]
        scores, states = self._run(first, start)
        self._zeros = [np.zeros(state.shape, np.float32) for state in states]
        again, states = self._run(first, self._zeros)
        after, later = self._run(second, states)
        same = is_same(again, scores, coarse=True) and after.shape == scores.shape
        if not same or any(one.shape != two.shape for one, two in zip(states, later, strict=True)):
            raise CompileError(
                f"{self._weights}: state: expected outputs of one size that can begin as zeros of that size, got others: "
                "check the pairs"
            )
        return scores

    def _fix_shapes(self, scores: Sequence[int]) -> None:
        """Write the shapes that were found into the network, and the picture's."""
        shapes = {name: zeros.shape for name, zeros in zip(self.contract.state, self._zeros, strict=True)}
        results = {name: shapes[entry] for entry, name in self.contract.state.items()} | {self._output: scores}
        for values, known in ((self._network.graph.input, shapes), (self._network.graph.output, results)):
            for value in values:
                if value.name in known:
                    kind = value.type.tensor_type.elem_type
                    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, known[value.name]))

    def _run(self, x: NDArray[np.float32], states: _States) -> tuple[NDArray[Any], _States]:
        inputs = {self._picture: x.astype(self._dtype), **dict(zip(self._kept, states, strict=True))}
        scores, *states = self._session.run(self._outputs, inputs)
        return scores, states


def _take_constants(graph: onnx.GraphProto, contract: Contract, weights: Path) -> None:
    """Make weights of the inputs that have one value, and put the picture first and the states after it in the contract's order."""
    held = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in held}
    outputs = {value.name for value in graph.output}
    wanted = [*contract.constants, *contract.state]
    missing = [name for name in wanted if name not in inputs] + [n for n in contract.state.values() if n not in outputs]
    pictures = [name for name in inputs if name not in wanted]
    if missing or len(pictures) != 1:
        got = f"none called {missing[0]}" if missing else ", ".join(pictures) or "none"
        raise CompileError(
            f"{weights}: expected one input beside those of the contract's state and constants, and outputs of the names in state, "
            f"got {got}: its inputs are {', '.join(inputs)}, its outputs {', '.join(sorted(outputs))}"
        )
    for name, number in contract.constants.items():
        kind = inputs[name].type.tensor_type
        shape = [axis.dim_value or 1 for axis in kind.shape.dim]
        if np.prod(shape) != 1 or kind.elem_type not in _NUMBERS:
            raise CompileError(f"{weights}: constants: {name}: expected an input of one number, got one of {shape}")
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        graph.initializer.append(numpy_helper.from_array(np.full(shape, number, dtype), name))
    for name in contract.state:
        if inputs[name].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise CompileError(f"{weights}: state: {name}: expected a float32 input, got another type")
    kept = [inputs[pictures[0]], *(inputs[name] for name in contract.state)]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.input[:]
    graph.input.extend(copies)
    del graph.value_info[:]


_NUMBERS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)


def _picture(graph: onnx.GraphProto, contract: Contract) -> tuple[str, type[np.generic]]:
    value = graph.input[0]
    return value.name, np.float16 if value.type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32


def _scores(graph: onnx.GraphProto, contract: Contract, weights: Path) -> str:
    """The name of the output that masks are made of."""
    names = [value.name for value in graph.output if value.name not in contract.state.values()]
    if not names or contract.output not in (None, *names):
        raise CompileError(f"{weights}: output: expected one of {', '.join(names)}, got {contract.output!r}")
    return contract.output or names[0]


def _put_first(graph: onnx.GraphProto, name: str) -> None:
    """Let the scores be the first output."""
    outputs = sorted(
        (onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.output), key=lambda v: v.name != name
    )
    del graph.output[:]
    graph.output.extend(outputs)
