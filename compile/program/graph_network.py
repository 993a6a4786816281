"""Networks of the checkpoint families, and those that nobody here wrote, as layers: with every precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from compile.networks.checkpoint import LoadedNetwork
from compile.networks.contract import Contract, OutputLayout
from compile.networks.ends import (
    Activation,
    channels_first,
    final_activation,
    outer_activation,
    with_channels_first,
    without_activation,
    without_decision,
)
from compile.networks.exported_program import check_sizes, layered_module
from compile.networks.layered import LayeredNetwork
from compile.networks.onnx_file import read_onnx
from compile.networks.onnx_graph import graph_of, is_same, takes_batch
from compile.networks.onnx_runtime import LimitedSession
from compile.program.foreign import fitted_contract, photographs
from compile.program.layered_program import LayeredProgram, Layers
from compile.program.network import check_count, joined, raw_of
from compile.program.onnx_export import lower_pooling
from compile.program.outputs import Output, check_classes, find_output, fit_output
from compile.program.program import ScoresToMask
from compile.program.score_range import ScoreRange
from compile.proof.verify import Expected, require_finite
from pipeline.errors import CompileError


class OnnxLayers(LayeredProgram):
    """A network from an ONNX file, brought into layers; ONNX Runtime, on the file as it is, is its reference.

    Args:
        weights: the file.
        contract: how frames go in and masks come out.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse another number of classes.

    Raises:
        NotConvertibleError: it cannot be brought into layers.
        CompileError: the file cannot be read or run, or does not fit the contract.
    """

    def __init__(
        self,
        weights: Path,
        contract: Contract,
        *,
        imgsz: tuple[int, int] | None = None,
        classes: int | None = None,
    ) -> None:
        wanted = replace(contract, imgsz=imgsz or contract.imgsz)
        file = read_onnx(weights, wanted.imgsz, layout=wanted.layout, channels=len(wanted.mean), output=wanted.output)
        fitted = fitted_contract(file.original, wanted, weights, imgsz)
        name, found = wanted.output or file.outputs[0], list[Output]()

        def layout_of(outputs: Sequence[NDArray[Any]]) -> OutputLayout:
            found.append(find_output(outputs, fitted, name, file.decision))
            return found[-1].layout

        pictures = photographs(fitted)
        graph = graph_of(file, weights, fitted.layout, layout_of, inputs=pictures)
        (output,) = found
        self._session = LimitedSession(file.original.SerializeToString(), str(weights))
        ends_in = None if graph.activation is None else graph.activation.kind
        fitted = fit_output(fitted, output, file.decision, ends_in)
        check_count(weights, fitted, output.class_count, classes)
        self._input, self._dtype = self._session.get_inputs()[0].name, file.dtype
        self.data_files, self.precision = file.beside, file.precision
        layers = _layers(graph.module, graph.activation, output, graph.macs / 1e9, takes_batch=graph.takes_batch)
        super().__init__("foreign", weights.stem, fitted, layers)
        self._after = ScoresToMask(fitted, form=output.form).eval()
        self._range = ScoreRange(fitted, output.class_count, output.form)

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the file's network in ONNX Runtime."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            x = self._program.before(frames)
            if self._ranges.is_watching:  # of layers, which ONNX Runtime does not show
                self._ranges.run(x)
            parts = []
            for index, one in enumerate(x.numpy()):
                output = torch.from_numpy(self._run(one[None]))
                scores = channels_first(output, self._after.layout)
                self._range.add(scores)
                masks, not_finite, values = self._after.with_values(output, frames[index : index + 1])
                require_finite(not_finite.numpy(), "the network")
                flags = self._after.fit.flags_on_frame(self._undecided(scores), frames_nhwc.shape[1:3])
                # An activation that the file ends in stands behind the scores of the program.
                raw = raw_of(frames_nhwc[index : index + 1], scores if self._layers.ends_in is None else None, values)
                parts.append(Expected(masks.numpy(), flags, raw))
            return joined(parts)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._range.check()

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.contract.layout == "nhwc":
            x = x.transpose(0, 2, 3, 1)
        if self._dtype == np.uint8:
            x = np.rint(x).clip(0, 255)
        (scores,) = self._session.run(None, {self._input: np.ascontiguousarray(x.astype(self._dtype))})
        return np.asarray(scores, np.float32)


class ExportedLayers(LayeredProgram):
    """A network that ``torch.export`` followed, brought into layers; in PyTorch it is its own reference.

    Args:
        module: its layers.
        what: the file that it was read from, or what made it.
        contract: how frames go in and masks come out, at the size inside the network.
        architecture: name of the network, for the manifest.
        classes: refuse another number of classes.

    Raises:
        CompileError: the network cannot be run, or does not fit the contract.
    """

    def __init__(
        self,
        module: LayeredNetwork,
        what: str,
        contract: Contract,
        *,
        architecture: str,
        classes: int | None = None,
    ) -> None:
        fitted = contract
        module, decision = without_decision(module)
        pictures = photographs(fitted)
        try:
            check_sizes(module, torch.from_numpy(pictures[0]))
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                module(torch.from_numpy(pictures[0]))
            with torch.inference_mode():
                alone = [module(torch.from_numpy(x)) for x in pictures]
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            sides = "×".join(map(str, contract.imgsz))
            raise CompileError(
                f"{what}: expected a network for pictures of {sides} with {contract.channels} channels, got one that does not take "
                f"them ({reason}): set imgsz and channels as it was exported"
            ) from error
        output = find_output([one.numpy() for one in alone], fitted, "the first", decision)
        module, alone = (
            with_channels_first(module, output.layout),
            [channels_first(one, output.layout) for one in alone],
        )
        activation = final_activation(module)
        fitted = fit_output(fitted, output, decision, None if activation is None else activation.kind)
        check_count(what, fitted, output.class_count, classes)
        giga_macs, many = counter.get_total_flops() / 2e9, takes_batch(module, pictures, alone)
        layers = _layers(module, activation, output, giga_macs, takes_batch=many)
        super().__init__("foreign", architecture, fitted, layers)
        self._range = ScoreRange(fitted, output.class_count, output.form)
        self._check_cut(what, pictures, alone)

    def _check_cut(self, what: str, pictures: Sequence[NDArray[np.float32]], alone: Sequence[torch.Tensor]) -> None:
        """Refuse layers that, with the activation that was cut off behind them, no longer give what the network gave."""
        network: Any = self._layers.module
        for x, whole in zip(pictures, alone, strict=True):
            with torch.inference_mode():
                again = self._program.after.activated(network.logits(torch.from_numpy(x)))
            if not is_same(np.nan_to_num(again.numpy()), np.nan_to_num(whole.numpy())):
                raise CompileError(
                    f"{what}: expected scores with its last activation as the network gives them, got others"
                )

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the network in PyTorch."""
        with torch.inference_mode():
            scores = self._ranges.run(self._program.before(torch.from_numpy(frames_nhwc)))
            self._range.add(self._program.after.activated(scores))
        return super().reference(frames_nhwc)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._range.check()


def family_network(loaded: LoadedNetwork, contract: Contract) -> LayeredProgram:
    """A network of one of the checkpoint families, U-Net or U²-Net, brought into layers.

    Args:
        loaded: from its checkpoint; its pooling rounds down from now on.
        contract: how frames go in and masks come out.

    Raises:
        CompileError: the network and the contract do not fit.
    """
    if len(contract.mean) != loaded.n_channels:
        raise CompileError(
            f"contract {contract.name}: expected {loaded.n_channels} channels as the network has, got {contract.channels}"
        )
    if contract.activation == "none":
        raise CompileError(
            f"contract {contract.name}: activation: expected sigmoid or softmax for this network, got 'none': it gives logits"
        )
    if contract.layout != "nchw" or contract.output is not None:
        raise CompileError(
            f"contract {contract.name}: layout, output: expected neither for {loaded.architecture}, whose are known, "
            f"got {contract.layout}, {contract.output}: leave them out"
        )
    check_classes(contract, loaded.n_classes)
    lower_pooling(loaded.model, contract.imgsz)
    shape = loaded.n_channels, *contract.imgsz
    module = layered_module(loaded.model, shape, loaded.architecture, run=loaded.model.logits)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        copy.deepcopy(module).to("meta")(torch.empty((1, *shape), device="meta"))  # shapes alone: nothing is computed
    layers = Layers(module, loaded.n_classes, counter.get_total_flops() / 2e9)
    return LayeredProgram(loaded.family, loaded.architecture, contract, layers)


def _layers(
    module: LayeredNetwork, activation: Activation | None, output: Output, giga_macs: float, *, takes_batch: bool
) -> Layers:
    """Without the last activation, if it can be behind the network."""
    ends_in = outer_activation(module, activation)
    if activation is not None and ends_in is not None:
        module = without_activation(module, activation)
    return Layers(module, output.class_count, giga_macs, ends_in, output.form, output.gives_scores, takes_batch)
