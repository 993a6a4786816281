"""What is to be compiled: a network of ours from its weights, or a foreign one, with its contract and a reference."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calibration.int8.ranges import Method
from calibration.int8.recipe import Int8Recipe, Step
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from calibration.metrics.agreement import iou
from compile.networks.checkpoint import LoadedNetwork, load_network
from compile.networks.contract import CONTRACTS, Contract, built_in_contract, read_contract
from compile.program.cpu_int8 import exact_layers, quantise, rounded_network
from compile.program.foreign import (
    ValueRange,
    count_classes,
    find_output_layout,
    fixed_imgsz,
    read_foreign,
    scores_output,
    wrap,
)
from compile.program.fp16 import HalfEmulation, RangeRecorder, find_sensitive
from compile.program.onnx_export import check_size, export_program
from compile.program.program import FrameProgram, FrameToInput, ScoresToMask
from compile.proof.verify import UNDECIDED_MARGIN, Expected, Reference, Sample, open_session, require_finite
from pipeline.bundles.bundle import Task
from pipeline.errors import CompileError, NotOurNetworkError
from pipeline.frames.frame import Frame

# Frames that a search for FP16 runs on: four, and for large networks fewer. For INT8: 24, and for large networks fewer.
_SEARCH_GIGA_MACS = 80
_EXAMPLE_GIGA_MACS = 480


@dataclass(frozen=True)
class Candidate:
    """A network ready to compile.

    Attributes:
        family: checkpoint family, or "foreign".
        architecture: name of the network, for the manifest.
        contract: how frames go in and masks come out.
        class_count: channels of its output; 1 for a binary mask.
        reference: the frame program around the trained network in FP32, not exported.
        export: the frame program as ONNX, by precision "fp32", "fp16" or, after ``int8``, "int8", fixed (height, width) of the
            frames or None, and the names of layers that stay FP32.
        module: the same as a PyTorch module, by precision and layers; None for a foreign network.
        giga_macs: multiply-accumulates for one frame, in thousands of millions; None for a foreign network.
        ranges: records the largest values in a network of ours while ``reference`` runs; None for a foreign network.
        int8: searches how the network can be INT8, from calibration frames; None for a foreign one.
        sensitive: the few layers that must stay FP32 for the masks of some samples to stay, beside those that stay anyway;
            None for a foreign network.
        cpu_int8: after a search of ``int8``, the program as CPUs take INT8 and the share of the convolutions' weights in it, by fixed
            (height, width) or None, calibration frames and method; None for a foreign network.
        doubt: after ``reference`` has seen frames, what is to be told of the values that the network gave, or None; raises
            ``CompileError`` where the contract contradicts them.
    """

    family: str
    architecture: str
    contract: Contract
    class_count: int
    reference: Reference
    export: Callable[[str, tuple[int, int] | None, Collection[str]], onnx.ModelProto]
    module: Callable[[str, Collection[str]], FrameProgram] | None = None
    giga_macs: float | None = None
    ranges: RangeRecorder | None = None
    sensitive: Callable[[Sequence[Sample], Collection[str]], tuple[str, ...]] | None = None
    int8: Int8Frames | None = None
    cpu_int8: Callable[[tuple[int, int] | None, Iterable[Frame], Method], tuple[onnx.ModelProto, float]] | None = None
    doubt: Callable[[], str | None] = lambda: None


class Int8Frames:
    """The search for INT8, on frames.

    Args:
        network: the trained one; not changed.
        contract: how frames go into it.
        giga_macs: multiply-accumulates for one frame, in thousands of millions.

    Attributes:
        recipe: how the network is INT8; None before the search.
    """

    def __init__(self, network: nn.Module, contract: Contract, giga_macs: float) -> None:
        self.recipe: Int8Recipe | None = None
        self._network, self._contract = network, contract
        self._count = min(max(int(_EXAMPLE_GIGA_MACS / giga_macs), 3), 24)

    def search(
        self,
        frames: Iterable[Frame],
        method: Method,
        tried: Callable[[Step], None],
        progress: Callable[[float], object] = lambda _: None,
    ) -> Int8Recipe:
        """Look at the frames once, and search on those where the masks are hardest to keep.

        Args:
            frames: to calibrate on, at least one.
            method: how a histogram becomes a range.
            tried: told of every step.
            progress: told which share of the search is done, 0 to 1.

        Raises:
            CompileError: the network gives values that are no numbers.
        """
        contract = self._contract
        search = Int8Search(self._network, contract.imgsz, len(contract.mean))
        before = FrameToInput(contract).eval()
        examples: list[Example] = []
        for frame in frames:
            with torch.inference_mode():
                x = before(torch.from_numpy(np.ascontiguousarray(frame.image[None])))
            found: list[Example] = []
            search.observe(lambda x=x, found=found: found.append(Example(x, search.network.logits(x))))  # type: ignore[misc, operator]
            examples = sorted([*examples, *found], key=lambda example: -example.doubt)[: self._count]
        self.recipe = search.find(examples, method, tried=tried, progress=progress)
        return self.recipe


def open_candidate(
    weights: Path,
    contract: str,
    foreign_contract: Contract | None = None,
    *,
    imgsz: tuple[int, int] | None = None,
    classes: int | None = None,
    smooth: bool = False,
) -> Candidate:
    """Read weights and their contract.

    Args:
        weights: a checkpoint of U-Net or U²-Net, or any segmentation network as ONNX.
        contract: "stream", "official", or a YAML file; a foreign network needs a file.
        foreign_contract: taken in its place if the network turns out to be a foreign one.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse weights with another number of classes.
        smooth: enlarge class scores, not class indices.

    Raises:
        CompileError: the weights and the contract do not fit.
        ModelError: the weights cannot be read.
    """
    try:
        loaded = load_network(weights, classes=classes)
    except NotOurNetworkError as error:
        if weights.suffix.lower() != ".onnx":
            raise
        if foreign_contract is None and contract in CONTRACTS["unet"]:
            raise CompileError(
                f"{error}; to compile it as it is, say how frames go in: --contract contract.yaml (see docs/contracts.md)"
            ) from error
        return _foreign(weights, foreign_contract or read_contract(Path(contract)), imgsz, classes, smooth)
    return _ours(loaded, contract_of(loaded.family, contract, loaded.n_channels), imgsz, smooth)


def contract_of(family: str, contract: str, n_channels: int) -> Contract:
    """The contract of a checkpoint family by name, or from a YAML file that changes its "stream".

    Raises:
        CompileError: no such name or file, or a file with a mistake in it.
    """
    if contract in CONTRACTS[family] or not os.path.exists(contract):
        return built_in_contract(family, contract, n_channels)
    return read_contract(Path(contract), built_in_contract(family, "stream", n_channels))


def _ours(loaded: LoadedNetwork, contract: Contract, imgsz: tuple[int, int] | None, smooth: bool) -> Candidate:
    contract = replace(contract, imgsz=imgsz or contract.imgsz)
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
    _check_classes(contract, loaded.n_classes)
    check_size(loaded.model, contract.imgsz)
    program = FrameProgram(loaded.model, contract, smooth=smooth).eval()

    def reference(frames_nhwc: NDArray[np.uint8]) -> Expected:
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            scores = loaded.model.logits(program.before(frames))
            masks, not_finite = program.after(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            return Expected(masks.numpy(), _undecided(scores))

    giga_macs = _giga_macs(loaded, contract)
    search_count = min(max(int(_SEARCH_GIGA_MACS / giga_macs), 2), 4)

    def chosen(samples: Sequence[Sample]) -> Sequence[Sample]:
        # Those that rounding moves most: with most of the mask near the threshold.
        return sorted(samples, key=_certainty)[:search_count]

    def module(precision: str, keep: Collection[str]) -> FrameProgram:
        if precision == "int8":
            assert int8.recipe is not None
            network = int8.recipe.apply(loaded.model, torch.float16, keep)
            keep = [name for name in keep if name not in int8.recipe.layers]
        else:
            network = copy.deepcopy(loaded.model)
        return FrameProgram(network, contract, half=precision != "fp32", keep=keep, smooth=smooth)

    int8 = Int8Frames(loaded.model, contract, giga_macs)

    def export(precision: str, frame_size_hw: tuple[int, int] | None, keep: Collection[str]) -> onnx.ModelProto:
        return export_program(module(precision, keep), frame_size_hw)

    def cpu_int8(
        frame_size_hw: tuple[int, int] | None, frames: Iterable[Frame], method: Method
    ) -> tuple[onnx.ModelProto, float]:
        assert int8.recipe is not None
        program = FrameProgram(rounded_network(loaded.model, int8.recipe), contract, smooth=smooth)
        return quantise(export_program(program, frame_size_hw), exact_layers(int8.recipe), frames, method)

    def sensitive(samples: Sequence[Sample], keep: Collection[str]) -> tuple[str, ...]:
        emulation = HalfEmulation(loaded.model)
        emulated = FrameProgram(emulation.network, contract, smooth=smooth).eval()
        return find_sensitive(emulation, lambda: _agreement(emulated, chosen(samples), loaded.n_classes), keep)

    ranges = RangeRecorder(loaded.model)
    return Candidate(
        loaded.family,
        loaded.architecture,
        contract,
        loaded.n_classes,
        reference,
        export,
        module=module,
        giga_macs=giga_macs,
        ranges=ranges,
        sensitive=sensitive,
        int8=int8,
        cpu_int8=cpu_int8,
    )


def _undecided(scores: torch.Tensor) -> NDArray[np.bool_] | None:
    """Where the two likeliest of several classes are close, (N, h, w); None for one class, where the mask shows it."""
    if scores.shape[1] == 1:
        return None
    # What gives probabilities itself is as good as what gives logits: the order is the same, and near is near.
    first, second = _probabilities(scores).topk(2, 1).values.unbind(1)
    undecided: NDArray[np.bool_] = (first - second < UNDECIDED_MARGIN).numpy()
    return undecided


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    is_distribution = bool((scores >= 0).all() and ((scores.sum(1) - 1).abs() < 1e-3).all())
    return scores if is_distribution else scores.softmax(1)


def _agreement(program: FrameProgram, samples: Sequence[Sample], class_count: int) -> float:
    """Mean IoU of a program with the reference."""
    task: Task = "binary" if class_count == 1 else "classes"
    with torch.inference_mode():
        masks = [program(torch.from_numpy(sample.frames_nhwc))[0].numpy()[0] for sample in samples]
    ious = [iou(mask, sample.expected_nhw[0], task) for mask, sample in zip(masks, samples, strict=True)]
    return float(np.mean(ious))


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


def _foreign(
    weights: Path, contract: Contract, imgsz: tuple[int, int] | None, classes: int | None, smooth: bool
) -> Candidate:
    network = read_foreign(weights)
    fitted = fixed_imgsz(network, contract)
    if imgsz is not None and imgsz != fitted.imgsz:
        fixed = fixed_imgsz(network, replace(contract, imgsz=imgsz))
        if fixed.imgsz != imgsz:
            raise CompileError(
                f"--imgsz: expected {fixed.imgsz[0]}×{fixed.imgsz[1]}, the one size that {weights} takes, got {imgsz[0]}×{imgsz[1]}"
            )
        fitted = fixed
    session = open_session(str(weights), str(weights))
    entry = session.get_inputs()[0]
    dtype = np.float16 if "float16" in entry.type else np.float32
    output = scores_output(network, fitted).name

    def run(x: torch.Tensor) -> NDArray[Any]:
        try:
            (scores,) = session.run([output], {entry.name: x.numpy().astype(dtype)})
        except Exception as error:
            raise CompileError(
                f"{weights}: ONNX Runtime cannot run it on pictures of {contract.imgsz[0]}×{contract.imgsz[1]}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        return np.asarray(scores)

    contract = fitted
    empty = FrameToInput(contract).eval()(torch.zeros((1, *contract.imgsz, 3), dtype=torch.uint8))
    contract = replace(contract, output_layout=find_output_layout(run(empty).shape, contract, output))
    class_count = count_classes(network, contract)
    if classes is not None and classes != class_count:
        raise CompileError(f"{weights}: expected {classes} classes, got {class_count}: leave --classes out")
    _check_classes(contract, class_count)
    before, after = FrameToInput(contract).eval(), ScoresToMask(contract, smooth=smooth).eval()
    values = ValueRange(contract, class_count)

    def reference(frames_nhwc: NDArray[np.uint8]) -> Expected:
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            scores = torch.from_numpy(run(before(frames)))
            values.add(scores.numpy())
            by_class = scores.float() if contract.output_layout == "nchw" else scores.float().permute(0, 3, 1, 2)
            masks, not_finite = after(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            return Expected(masks.numpy(), _undecided(by_class))

    def export(precision: str, frame_size_hw: tuple[int, int] | None, _: Collection[str]) -> onnx.ModelProto:
        if precision != "fp32":
            raise CompileError(
                f"--precision: expected fp32 for a network of another family, got {precision}: convert the .onnx file first"
            )
        return wrap(network, contract, frame_size_hw, smooth=smooth)

    return Candidate("foreign", weights.stem, contract, class_count, reference, export, doubt=values.check)


def _check_classes(contract: Contract, count: int) -> None:
    if count > 256:
        raise CompileError(
            f"the network: expected at most 256 classes, which a mask of 8 bits can tell apart, got {count}"
        )
    if count == 1 and contract.activation == "softmax":
        raise CompileError(
            f"contract {contract.name}: activation: expected sigmoid, or none for a network that gives probabilities, "
            "got softmax: it has one class"
        )
    if contract.classes is not None and len(contract.classes) != count:
        raise CompileError(
            f"contract {contract.name}: classes: expected {count} name{'s' if count > 1 else ''} as the network has classes, "
            f"got {len(contract.classes)}"
        )
