"""What is to be compiled: a trained network with its contract, whatever its weights came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from calibration.int8.ranges import Method
from calibration.int8.recipe import Int8Recipe, Step
from compile.networks.contract import Contract
from compile.program.fp16 import Rounding
from compile.program.outputs import Form, check_classes, names_of, task_of
from compile.program.program import FrameProgram
from compile.proof.raw_values import Raw, thinned
from compile.proof.verify import Expected, Sample
from pipeline.bundles.bundle import Precision, Task
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame
from pipeline.frames.iou import UNDECIDED_MARGIN


class Network(ABC):
    """A network ready to compile. One whose layers are not known by name is FP32 alone, and refuses the rest.

    Args:
        family: checkpoint family, or "foreign".
        architecture: name of the network, for the manifest.
        contract: how frames go in and masks come out.
        class_count: channels of its output, or how many class indices it may give.

    Attributes:
        giga_macs: multiply-accumulates for one frame, in thousands of millions; None where that is not known.
        sequence: of how many frames in a row the gate's sequences are; 1 for a network that keeps nothing between frames.
        takes_batch: whether several pictures at once give what each gives alone.
        precision: that it came in; one that another tool quantized or halved has no FP32 to be compared with but a reference.
        has_layers: whether its layers are known by name: such a network takes FP16 and INT8, with some layers kept.
        data_files: what holds its weights beside the file that was named.
        sha256: of its weights and steps, where code makes it; empty where its files say all of it.
    """

    giga_macs: float | None = None
    sequence = 1
    takes_batch = True
    precision: Precision = "fp32"
    has_layers = False
    data_files: tuple[Path, ...] = ()
    sha256 = ""

    def __init__(self, family: str, architecture: str, contract: Contract, class_count: int) -> None:
        self.family, self.architecture = family, architecture
        self.contract, self.class_count = contract, class_count

    @property
    def task(self) -> Task:
        """What its masks mean."""
        return task_of(self.contract, self.class_count)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of what its masks tell apart."""
        return names_of(self.contract, self.class_count)

    @abstractmethod
    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the trained network in FP32, not exported, on (N, H, W, 3) uint8 BGR.

        Raises:
            CompileError: it cannot be run, or its scores are not finite.
        """

    @abstractmethod
    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX.

        Args:
            precision: of the network inside; "int8" after ``search_int8`` or ``use_int8``.
            frame_size_hw: fixed (height, width) of the frames; None for any.
            keep: names of layers that stay FP32.

        Raises:
            CompileError: it does not take the precision, or cannot be exported.
        """

    def module(self, precision: Precision, keep: Collection[str]) -> FrameProgram:
        """The same as a PyTorch module.

        Raises:
            CompileError: it has none.
        """
        raise CompileError(f"{self.architecture}: expected a network in PyTorch, got one as ONNX")

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave since it was opened; None if nothing is.

        Raises:
            CompileError: they contradict the contract.
        """
        return None

    def watching(self) -> AbstractContextManager[None]:
        """While the body runs ``reference``, the largest values of each layer are recorded for ``beyond_half``."""
        return nullcontext()

    def beyond_half(self) -> Mapping[str, float]:
        """Layers whose largest value while they were watched is more than FP16 holds, with that value."""
        return {}

    def sensitive(
        self, samples: Sequence[Sample], keep: Collection[str], rounding: Rounding = "fp16"
    ) -> tuple[str, ...]:
        """The few layers that must stay FP32 for the masks of some samples to stay, beside ``keep``, which stay anyway."""
        return ()

    def ends(self) -> tuple[str, ...]:
        """The layers that read the picture alone, and those that give the scores."""
        return ()

    def search_int8(
        self,
        frames: Iterable[Frame],
        method: Method,
        tried: Callable[[Step], None],
        progress: Callable[[float], object] = lambda _: None,
    ) -> Int8Recipe:
        """Find how it can be INT8: look at the frames once, and search on those where the masks are hardest to keep.

        Args:
            frames: to calibrate on, at least one.
            method: how a histogram becomes a range.
            tried: told of every step.
            progress: told which share of the search is done, 0 to 1.

        Raises:
            CompileError: it does not take INT8, or gives values that are no numbers.
        """
        raise self._no_int8()

    def use_int8(self, recipe: Int8Recipe) -> None:
        """Take what an earlier ``search_int8`` has found.

        Raises:
            CompileError: it does not take INT8.
        """
        raise self._no_int8()

    def export_for_cpu(
        self, frame_size_hw: tuple[int, int] | None, frames: Iterable[Frame], method: Method
    ) -> tuple[onnx.ModelProto, float]:
        """After ``search_int8``, the program as CPUs take INT8, and the share of the layers' weights in it.

        Args:
            frame_size_hw: fixed (height, width) of the frames; None for any.
            frames: to calibrate on.
            method: how a histogram becomes a range.

        Raises:
            CompileError: it does not take INT8.
        """
        raise self._no_int8()

    def _no_int8(self) -> CompileError:
        return CompileError(
            f"{self.architecture}: expected fp32 for a network that cannot be brought into layers, got int8"
        )


def check_count(weights: Path | str, contract: Contract, count: int, wanted: int | None) -> None:
    """Refuse a number of classes that was not wanted, or that the contract does not fit.

    Raises:
        CompileError: it is so.
    """
    if wanted is not None and wanted != count:
        raise CompileError(f"{weights}: expected {wanted} classes, got {count}: leave --classes out")
    check_classes(contract, count)


def joined(parts: Sequence[Expected]) -> Expected:
    """What is expected of several frames, of what is expected of each."""
    masks = np.concatenate([part.masks_nhw for part in parts])
    undecided_nhw = [part.undecided_nhw for part in parts if part.undecided_nhw is not None]
    raws = [part.raw for part in parts if part.raw is not None]
    together = Raw(*(_joined_arrays(column) for column in zip(*raws, strict=True))) if raws else None
    return Expected(masks, np.concatenate(undecided_nhw) if undecided_nhw else None, together)


def _joined_arrays(arrays: Sequence[NDArray[Any] | None]) -> Any:
    return None if any(array is None for array in arrays) else np.concatenate([a for a in arrays if a is not None])


def raw_of(frames_nhwc: NDArray[np.uint8], scores: torch.Tensor | None, values: torch.Tensor | None) -> Raw:
    """What masks are made of, for the gate: ``scores`` as they come out of the network, and ``values`` as ``ScoresToMask`` has them."""
    first, second = (None if one is None else thinned(one.numpy()) for one in (scores, values))
    return Raw(frames_nhwc, first, second)


def undecided(scores: torch.Tensor, contract: Contract, form: Form = "scores") -> NDArray[np.bool_] | None:
    """Where the two likeliest of several classes are close, (N, h, w); None where the mask shows it, or nothing does.

    Args:
        scores: (N, classes, h, w), logits or probabilities.
        contract: the network's.
        form: what its numbers are.
    """
    if form in ("indices", "decisions") or task_of(contract, scores.shape[1]) == "binary":
        return None
    margin = UNDECIDED_MARGIN
    if contract.multilabel:
        scores = scores.sigmoid() if contract.activation == "sigmoid" else scores
        # None of the labels is as likely as 0.5, from which a probability is half as far as two of two classes are apart.
        probabilities, margin = torch.cat((torch.full_like(scores[:, :1], 0.5), scores), 1), UNDECIDED_MARGIN / 2
    else:
        # What gives probabilities itself is as good as what gives logits: the order is the same, and near is near.
        probabilities = _probabilities(scores)
    first, second = probabilities.topk(2, 1).values.unbind(1)
    close: NDArray[np.bool_] = (first - second < margin).numpy()
    return close


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    is_distribution = bool((scores >= 0).all() and ((scores.sum(1) - 1).abs() < 1e-3).all())
    return scores if is_distribution else scores.softmax(1)
