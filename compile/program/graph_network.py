"""Segmentation networks that nobody here wrote, from ONNX and from ``torch.export``, as layers: with every precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from calibration.sets.photographs import PhotographSource
from compile.networks.contract import Contract
from compile.networks.ends import (
    Activation,
    final_activation,
    first_layers,
    last_layers,
    outer_activation,
    without_activation,
)
from compile.networks.exported_program import check_sizes, exported_network
from compile.networks.layered import LayeredNetwork
from compile.networks.onnx_file import read_onnx
from compile.networks.onnx_graph import graph_of, takes_batch
from compile.networks.onnx_runtime import LimitedSession
from compile.program.foreign import ValueRange, find_output_layout, fitted_contract
from compile.program.layered_program import LayeredProgram, Layers, channels_first
from compile.program.network import check_count, undecided
from compile.program.program import FrameToInput, ScoresToMask
from compile.proof.verify import Expected, require_finite
from pipeline.errors import CompileError

# On how many photographs of the package a network is tried.
_PHOTOGRAPHS = 3


class OnnxLayers(LayeredProgram):
    """A network from an ONNX file, brought into layers; ONNX Runtime, on the file as it is, is its reference.

    Args:
        weights: the file.
        contract: how frames go in and masks come out.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse another number of classes.
        smooth: enlarge class scores, not class indices.

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
        smooth: bool = False,
    ) -> None:
        wanted = replace(contract, imgsz=imgsz or contract.imgsz)
        file = read_onnx(weights, wanted.imgsz, layout=wanted.layout, channels=len(wanted.mean), output=wanted.output)
        fitted = fitted_contract(file.original, wanted, weights, imgsz)
        name, layouts = file.original.graph.output[0].name, []

        def layout_of(shape: Sequence[int]) -> Any:
            layouts.append(find_output_layout(shape, fitted, name))
            return layouts[-1]

        pictures = photographs(fitted)
        graph = graph_of(file, weights, fitted.layout, layout_of, inputs=pictures)
        fitted = replace(fitted, output_layout=layouts[-1])
        self._session = LimitedSession(file.original.SerializeToString(), str(weights))
        entry, result = self._session.get_inputs()[0], self._session.get_outputs()[0]
        if "float" not in result.type:
            raise CompileError(
                f"output {name!r}: expected float scores with 4 axes, got {result.type} with {len(graph.output_shape)}: "
                "name another output in the contract"
            )
        class_count = graph.output_shape[1]
        check_count(weights, fitted, class_count, classes)
        self._input, self._dtype = entry.name, file.dtype
        self.data_files, self.precision = file.beside, file.precision
        layers = _layers(graph.module, graph.activation, class_count, graph.macs / 1e9, takes_batch=graph.takes_batch)
        super().__init__("foreign", weights.stem, fitted, layers, smooth=smooth)
        self._after = ScoresToMask(self._inside, smooth=smooth).eval()
        self._values = ValueRange(fitted, class_count)

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the file's network in ONNX Runtime."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            x = self._program.before(frames)
            if self._ranges.is_watching:  # of layers, which ONNX Runtime does not show
                self._ranges.run(x)
            scores = torch.from_numpy(np.concatenate([self._run(one[None]) for one in x.numpy()]))
            self._values.add(scores.numpy())
            masks, not_finite = self._after(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            return Expected(masks.numpy(), undecided(scores))

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._values.check()

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.contract.layout == "nhwc":
            x = x.transpose(0, 2, 3, 1)
        if self._dtype == np.uint8:
            x = np.rint(x).clip(0, 255)
        (scores,) = self._session.run(None, {self._input: np.ascontiguousarray(x.astype(self._dtype))})
        scores = np.asarray(scores, np.float32)
        return scores.transpose(0, 3, 1, 2) if self.contract.output_layout == "nhwc" else scores


class ExportedLayers(LayeredProgram):
    """A network that ``torch.export.save`` wrote, brought into layers; in PyTorch it is its own reference.

    Args:
        weights: the ``.pt2`` file.
        contract: how frames go in and masks come out.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse another number of classes.
        smooth: enlarge class scores, not class indices.

    Raises:
        CompileError: the file cannot be read or run, or does not fit the contract.
    """

    def __init__(
        self,
        weights: Path,
        contract: Contract,
        *,
        imgsz: tuple[int, int] | None = None,
        classes: int | None = None,
        smooth: bool = False,
    ) -> None:
        fitted = replace(contract, imgsz=imgsz or contract.imgsz)
        if fitted.layout != "nchw" or fitted.output is not None:
            raise CompileError(
                f"contract {fitted.name}: layout, output: expected neither for {weights}, which takes (N, C, H, W) and whose first "
                f"output is taken, got {fitted.layout}, {fitted.output}: leave them out"
            )
        module = exported_network(weights)
        pictures = photographs(fitted)
        try:
            check_sizes(module, torch.from_numpy(pictures[0]))
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                scores = module(torch.from_numpy(pictures[0]))
            with torch.inference_mode():
                alone = [module(torch.from_numpy(x)) for x in pictures]
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            sides = "×".join(map(str, fitted.imgsz))
            raise CompileError(
                f"{weights}: expected a network for pictures of {sides} with {fitted.channels} channels, got one that does not take "
                f"them ({reason}): set imgsz and channels as it was exported"
            ) from error
        fitted = replace(fitted, output_layout=find_output_layout(scores.shape, fitted, "the first"))
        if fitted.output_layout != "nchw" or not scores.is_floating_point():
            raise CompileError(
                f"{weights}: expected float scores (N, classes, H, W), got {scores.dtype} of {'×'.join(map(str, scores.shape))}"
            )
        check_count(weights, fitted, scores.shape[1], classes)
        giga_macs, many = counter.get_total_flops() / 2e9, takes_batch(module, pictures, alone)
        layers = _layers(module, final_activation(module), scores.shape[1], giga_macs, takes_batch=many)
        super().__init__("foreign", weights.stem, fitted, layers, smooth=smooth)
        self._values = ValueRange(fitted, scores.shape[1])

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the network in PyTorch."""
        with torch.inference_mode():
            scores = self._ranges.run(self._program.before(torch.from_numpy(frames_nhwc)))
            self._values.add(self._program.after.activated(scores).numpy())
        return super().reference(frames_nhwc)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._values.check()


def photographs(contract: Contract) -> list[NDArray[np.float32]]:
    """Photographs of the package as a contract has them go in, (1, C, h, w)."""
    before = FrameToInput(channels_first(contract)).eval()
    with PhotographSource("verification") as source, torch.inference_mode():
        frames = [np.ascontiguousarray(frame.image[None]) for frame in islice(source, _PHOTOGRAPHS)]
        return [before(torch.from_numpy(frame)).numpy() for frame in frames]


def _layers(
    module: LayeredNetwork, activation: Activation | None, class_count: int, giga_macs: float, *, takes_batch: bool
) -> Layers:
    """Without the last activation, if it can be behind the network."""
    ends_in = outer_activation(module, activation)
    if activation is not None and ends_in is not None:
        module = without_activation(module, activation)
    first, last = first_layers(module), last_layers(module)
    return Layers(module, class_count, giga_macs, first, last, ends_in, takes_batch)
