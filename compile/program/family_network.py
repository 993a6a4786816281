"""A network of one of the checkpoint families: U-Net or U²-Net, with every precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from calibration.int8.ranges import Method
from calibration.int8.recipe import Int8Recipe, Step
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from calibration.metrics.agreement import iou
from compile.networks.checkpoint import LoadedNetwork
from compile.networks.contract import Contract
from compile.program.cpu_int8 import exact_layers, quantise, rounded_network
from compile.program.fp16 import HalfEmulation, RangeRecorder, find_sensitive
from compile.program.network import Network, check_classes, undecided
from compile.program.onnx_export import check_size, export_program
from compile.program.program import FrameProgram, FrameToInput
from compile.proof.verify import Expected, Sample, require_finite
from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame

# Frames that a search for FP16 runs on: four, and for large networks fewer. For INT8: 24, and for large networks fewer.
_SEARCH_GIGA_MACS = 80
_EXAMPLE_GIGA_MACS = 480


class FamilyNetwork(Network):
    """A network of ours.

    Args:
        loaded: from its checkpoint; not changed.
        contract: how frames go in and masks come out.
        smooth: enlarge class scores, not class indices.

    Raises:
        CompileError: the network and the contract do not fit.
    """

    has_layers = True
    giga_macs: float

    def __init__(self, loaded: LoadedNetwork, contract: Contract, *, smooth: bool = False) -> None:
        super().__init__(loaded.family, loaded.architecture, contract, loaded.n_classes)
        _check(loaded, contract)
        self.giga_macs = _giga_macs(loaded, contract)
        self._trained, self._smooth = loaded.model, smooth
        self._program = FrameProgram(loaded.model, contract, smooth=smooth).eval()
        self._ranges = RangeRecorder(loaded.model)
        self._recipe: Int8Recipe | None = None

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the trained network."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            scores = self._trained.logits(self._program.before(frames))
            masks, not_finite = self._program.after(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            return Expected(masks.numpy(), undecided(scores))

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        return export_program(self.module(precision, keep), frame_size_hw)

    def module(self, precision: Precision, keep: Collection[str]) -> FrameProgram:
        """The frame program in PyTorch, with a copy of the network."""
        if precision == "int8":
            recipe = self._found()
            network = recipe.apply(self._trained, torch.float16, keep)
            keep = [name for name in keep if name not in recipe.layers]
        else:
            network = copy.deepcopy(self._trained)
        return FrameProgram(network, self.contract, half=precision != "fp32", keep=keep, smooth=self._smooth)

    def watching(self) -> AbstractContextManager[None]:
        """Record the largest values of each layer."""
        return self._ranges.watching()

    def beyond_half(self) -> Mapping[str, float]:
        """Layers whose values FP16 does not hold."""
        return self._ranges.beyond_half()

    def sensitive(self, samples: Sequence[Sample], keep: Collection[str]) -> tuple[str, ...]:
        """Layers that FP16 would spoil, found by emulating it on the samples that it moves most."""
        emulation = HalfEmulation(self._trained)
        emulated = FrameProgram(emulation.network, self.contract, smooth=self._smooth).eval()
        # Those that rounding moves most: with most of the mask near the threshold.
        count = min(max(int(_SEARCH_GIGA_MACS / self.giga_macs), 2), 4)
        hardest = sorted(samples, key=_certainty)[:count]
        return find_sensitive(emulation, lambda: self._agreement(emulated, hardest), keep)

    def search_int8(
        self,
        frames: Iterable[Frame],
        method: Method,
        tried: Callable[[Step], None],
        progress: Callable[[float], object] = lambda _: None,
    ) -> Int8Recipe:
        """Find how the network can be INT8: see ``Network.search_int8``."""
        search = Int8Search(self._trained, self.contract.imgsz, len(self.contract.mean))
        before = FrameToInput(self.contract).eval()
        count = min(max(int(_EXAMPLE_GIGA_MACS / self.giga_macs), 3), 24)
        examples: list[Example] = []
        for frame in frames:
            with torch.inference_mode():
                x = before(torch.from_numpy(np.ascontiguousarray(frame.image[None])))
            found: list[Example] = []
            search.observe(lambda x=x, found=found: found.append(Example(x, search.network.logits(x))))  # type: ignore[misc, operator]
            examples = sorted([*examples, *found], key=lambda example: -example.doubt)[:count]
        self._recipe = search.find(examples, method, tried=tried, progress=progress)
        return self._recipe

    def use_int8(self, recipe: Int8Recipe) -> None:
        """Take what an earlier search has found."""
        self._recipe = recipe

    def export_for_cpu(
        self, frame_size_hw: tuple[int, int] | None, frames: Iterable[Frame], method: Method
    ) -> tuple[onnx.ModelProto, float]:
        """The program as CPUs take INT8: see ``Network.export_for_cpu``."""
        recipe = self._found()
        program = FrameProgram(rounded_network(self._trained, recipe), self.contract, smooth=self._smooth)
        return quantise(export_program(program, frame_size_hw), exact_layers(recipe), frames, method)

    def _found(self) -> Int8Recipe:
        assert self._recipe is not None, "INT8 before a search for it"
        return self._recipe

    def _agreement(self, program: FrameProgram, samples: Sequence[Sample]) -> float:
        """Mean IoU of a program with the reference."""
        with torch.inference_mode():
            masks = [program(torch.from_numpy(sample.frames_nhwc))[0].numpy()[0] for sample in samples]
        ious = [iou(mask, sample.expected_nhw[0], self.task) for mask, sample in zip(masks, samples, strict=True)]
        return float(np.mean(ious))


def _check(loaded: LoadedNetwork, contract: Contract) -> None:
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
    check_size(loaded.model, contract.imgsz)


def _certainty(sample: Sample) -> float:
    """How far a mask is from its threshold, where there is a subject; smaller is harder to keep."""
    mask = sample.expected_nhw.astype(np.int16)
    subject = max(1, int((mask > 16).sum()))
    return -float((np.abs(mask - 128) < 64).sum()) / subject


def _giga_macs(loaded: LoadedNetwork, contract: Contract) -> float:
    network = copy.deepcopy(loaded.model).to("meta")  # shapes alone: nothing is computed
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.logits(torch.empty((1, loaded.n_channels, *contract.imgsz), device="meta"))
    return float(counter.get_total_flops()) / 2e9
