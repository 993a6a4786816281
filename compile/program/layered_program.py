"""A network of named layers in PyTorch, whatever its weights came from: with every precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from calibration.int8.ranges import Method
from calibration.int8.recipe import Int8Recipe, Step
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from calibration.metrics.agreement import iou
from compile.networks.contract import Contract
from compile.networks.ends import OuterActivation, first_layers, layers_before, logits_of, with_head
from compile.networks.layered import LayeredNetwork
from compile.program.cpu_int8 import exact_layers, quantise, rounded_network
from compile.program.fp16 import HalfEmulation, RangeRecorder, Rounding, find_sensitive
from compile.program.network import Network, raw_of, undecided
from compile.program.onnx_export import export_program
from compile.program.outputs import Form
from compile.program.program import FrameProgram, FrameToInput
from compile.proof.verify import Expected, Sample, require_finite
from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame

# Frames that a search for FP16 runs on: four, and for large networks fewer. For INT8: 24, and for large networks fewer.
_SEARCH_GIGA_MACS = 80
_EXAMPLE_GIGA_MACS = 480


@dataclass(frozen=True)
class Layers:
    """A trained network as its layers.

    Attributes:
        module: FP32, in evaluation mode; its ``logits`` take (N, C, h, w) and give (N, classes, h, w) scores.
        class_count: channels of its output; 1 for a binary mask. Of class indices, how many there may be.
        giga_macs: multiply-accumulates for one frame, in thousands of millions.
        ends_in: an activation that belongs to the network, behind its ``logits``; None if there is none.
        form: what its numbers are.
        gives_scores: whether a search can look at them; else the network is FP32 alone.
        takes_batch: whether several pictures at once give what each gives alone.
    """

    module: nn.Module
    class_count: int
    giga_macs: float
    ends_in: OuterActivation | None = None
    form: Form = "scores"
    gives_scores: bool = True
    takes_batch: bool = True


class LayeredProgram(Network):
    """A network of named layers.

    Args:
        family: checkpoint family, "foreign", or "exported".
        architecture: name of the network, for the manifest.
        contract: how frames go into the file's network and masks come out of it.
        layers: the network itself, not changed. Its axes are batch, channel, height and width, whatever the file's are.
    """

    giga_macs: float

    def __init__(self, family: str, architecture: str, contract: Contract, layers: Layers) -> None:
        super().__init__(family, architecture, contract, layers.class_count)
        self.has_layers = layers.gives_scores
        self.giga_macs, self.takes_batch = layers.giga_macs, layers.takes_batch
        self._layers, self._trained = layers, layers.module
        self._inside = with_channels_first(contract)
        self._program = self._around(layers.module).eval()
        self._ranges = RangeRecorder(layers.module)
        self._recipe: Int8Recipe | None = None

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the trained network."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            scores = self._ranges.run(self._program.before(frames))
            masks, not_finite, values = self._program.after.with_values(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            flags = self._undecided(self._program.after.activated(scores))
            flags = self._program.after.fit.flags_on_frame(flags, frames_nhwc.shape[1:3])
            return Expected(masks.numpy(), flags, raw_of(frames_nhwc, scores.float(), values))

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        return export_program(self.module(precision, keep), frame_size_hw, takes_batch=self.takes_batch)

    def module(self, precision: Precision, keep: Collection[str]) -> FrameProgram:
        """The frame program in PyTorch, with a copy of the network."""
        if precision != "fp32" and not self.has_layers:
            raise CompileError(
                f"--precision: expected fp32 for a network that gives {self._layers.form}, got {precision}: take fp32"
            )
        if precision == "int8":
            recipe = self._found()
            network = recipe.apply(self._trained, torch.float16, keep)
            keep = [name for name in keep if name not in recipe.layers]
        else:
            network = copy.deepcopy(self._trained)
        return self._around(network, half=precision != "fp32", keep=keep)

    def watching(self) -> AbstractContextManager[None]:
        """Record the largest values of each layer."""
        return self._ranges.watching()

    def beyond_half(self) -> Mapping[str, float]:
        """Layers whose values FP16 does not hold."""
        return self._ranges.beyond_half()

    def sensitive(
        self, samples: Sequence[Sample], keep: Collection[str], rounding: Rounding = "fp16"
    ) -> tuple[str, ...]:
        """Layers that 16 bits would spoil, found by emulating them on the samples that they move most."""
        emulation = HalfEmulation(self._trained, rounding)
        emulated = self._around(emulation.network).eval()
        # Those that rounding moves most: with most of the mask near the threshold.
        count = min(max(int(_SEARCH_GIGA_MACS / self.giga_macs), 2), 4)
        hardest = sorted(samples, key=_certainty)[:count]
        return find_sensitive(emulation, lambda: self._agreement(emulated, hardest), keep)

    def ends(self) -> tuple[str, ...]:
        """The layers that read the picture alone, and those that give the scores."""
        network = self._trained
        if not isinstance(network, fx.GraphModule):
            return ()
        (output,) = [node for node in network.graph.nodes if node.op == "output"]
        return (*first_layers(network), *layers_before(network, [output]))

    def search_int8(
        self,
        frames: Iterable[Frame],
        method: Method,
        tried: Callable[[Step], None],
        progress: Callable[[float], object] = lambda _: None,
    ) -> Int8Recipe:
        """Find how the network can be INT8: see ``Network.search_int8``."""
        search = Int8Search(
            self._searched(),
            self.contract.imgsz,
            len(self.contract.mean),
        )
        before = FrameToInput(self._inside).eval()
        count = min(max(int(_EXAMPLE_GIGA_MACS / self.giga_macs), 3), 24)
        examples: list[Example] = []
        for frame in frames:
            with torch.inference_mode():
                x = before(torch.from_numpy(np.ascontiguousarray(frame.as_pixels(self.contract.pixels)[None])))
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
        network = rounded_network(self._trained, recipe)
        program = export_program(self._around(network), frame_size_hw, takes_batch=self.takes_batch)
        return quantise(program, network, exact_layers(recipe), frames, method)

    def _found(self) -> Int8Recipe:
        assert self._recipe is not None, "INT8 before a search for it"
        return self._recipe

    def _around(self, network: nn.Module, *, half: bool = False, keep: Collection[str] = ()) -> FrameProgram:
        """The frame program around one of the network's forms."""
        layers = self._layers
        return FrameProgram(network, self._inside, half=half, keep=keep, form=layers.form, ends_in=layers.ends_in)

    def _undecided(self, scores: torch.Tensor) -> NDArray[np.bool_] | None:
        return undecided(scores, self.contract, self._layers.form)

    def _searched(self) -> nn.Module:
        """The network with the logits of what its masks show, which the search for INT8 is written for, as its output."""
        contract, ends_in = self.contract, self._layers.ends_in
        gives_probabilities = contract.activation == "none" and ends_in is None
        is_plain = contract.subject is None and not contract.multilabel
        if is_plain and not (gives_probabilities and self.class_count == 1):
            return self._trained
        scale = 255.0 if self._layers.form == "bytes" else 1.0
        is_multilabel = contract.multilabel or ends_in == "sigmoid"
        return _with_mask_logits(self._trained, contract.subject, is_multilabel, scale if gives_probabilities else None)

    def _agreement(self, program: FrameProgram, samples: Sequence[Sample]) -> float:
        """Mean IoU of a program with the reference."""
        with torch.inference_mode():
            masks = [program(torch.from_numpy(sample.frames_nhwc))[0].numpy()[0] for sample in samples]
        ious = [iou(mask, sample.expected_nhw[0], self.task) for mask, sample in zip(masks, samples, strict=True)]
        return float(np.mean(ious))


def mask_logits(scores: torch.Tensor, subject: int | None, multilabel: bool, scale: float | None) -> torch.Tensor:
    """The logits of what masks show.

    Args:
        scores: (N, C, h, w), of the network.
        subject: the channel that the mask is of; None for all.
        multilabel: whether each channel has a probability of its own.
        scale: scores are probabilities times this; None if they are logits.

    Returns:
        (N, 1, h, w) of the one class, or (N, C + 1, h, w) of several labels, those of none of them first.
    """
    logits = scores if scale is None else logits_of(scores / scale)
    if subject is None:
        # The sigmoid of one number is the softmax of it beside 0.
        return torch.cat((torch.zeros_like(logits[:, :1]), logits), 1) if logits.shape[1] > 1 else logits
    one = logits[:, subject : subject + 1]
    if multilabel or scale is not None:
        return one
    others = torch.cat((logits[:, :subject], logits[:, subject + 1 :]), 1)
    return one - others.logsumexp(1, keepdim=True)


def _with_mask_logits(network: nn.Module, *how: Any) -> nn.Module:
    """A network whose output is the logits of what masks show; it shares its layers, by the same names."""
    if isinstance(network, LayeredNetwork):
        return with_head(network, mask_logits, *how)
    kind: Any = type(network)

    class WithMaskLogits(kind):  # type: ignore[misc]
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return mask_logits(super().logits(x), *how)

    shared = copy.copy(network)
    shared.__class__ = WithMaskLogits
    return shared


def with_channels_first(contract: Contract) -> Contract:
    """A contract for the same network with its axes in the order batch, channel, height, width."""
    return replace(contract, layout="nchw", output_layout="nchw", output=None)


def _certainty(sample: Sample) -> float:
    """How far a mask is from its threshold, where there is a subject; smaller is harder to keep."""
    mask = sample.expected_nhw.astype(np.int16)
    subject = max(1, int((mask > 16).sum()))
    return -float((np.abs(mask - 128) < 64).sum()) / subject
