"""A segmentation network as ONNX that cannot be brought into layers: as it is, in the precision that it came in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compile.networks.contract import Contract
from compile.networks.onnx_file import nodes_of, read_whole, tensors_of
from compile.networks.onnx_graph import is_same
from compile.networks.onnx_precision import precision_of
from compile.networks.onnx_runtime import LimitedSession
from compile.program.foreign import (
    ValueRange,
    count_classes,
    find_output_layout,
    fitted_contract,
    foreign_network,
    scores_output,
    wrap,
)
from compile.program.graph_network import photographs
from compile.program.network import Network, check_count, undecided
from compile.program.program import FrameToInput, ScoresToMask
from compile.proof.verify import Expected, require_finite
from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError


class OnnxNetwork(Network):
    """A network from an ONNX file; ONNX Runtime is its reference.

    Args:
        weights: the file.
        contract: how frames go in and masks come out.
        imgsz: (height, width) inside the network in place of the contract's.
        classes: refuse another number of classes.
        smooth: enlarge class scores, not class indices.

    Raises:
        CompileError: the file cannot be read, or does not fit the contract.
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
        self._weights, self._smooth = weights, smooth
        original, self.data_files = read_whole(weights)
        self._network = foreign_network(original, weights)
        self.precision = precision_of(nodes_of(self._network), tensors_of(self._network), str(weights))
        fitted = fitted_contract(self._network, contract, weights, imgsz)
        self._session = LimitedSession(original.SerializeToString(), str(weights))
        entry = self._session.get_inputs()[0]
        self._input, self._dtype = entry.name, np.float16 if "float16" in entry.type else np.float32
        self._output = scores_output(self._network, fitted).name
        empty = FrameToInput(fitted).eval()(torch.zeros((1, *fitted.imgsz, 3), dtype=torch.uint8))
        shape = self._run(empty, fitted.imgsz).shape
        fitted = replace(fitted, output_layout=find_output_layout(shape, fitted, self._output))
        class_count = count_classes(self._network, fitted)
        check_count(weights, fitted, class_count, classes)
        super().__init__("foreign", weights.stem, fitted, class_count)
        self._before, self._after = FrameToInput(fitted).eval(), ScoresToMask(fitted, smooth=smooth).eval()
        self._values = ValueRange(fitted, class_count)
        self.takes_batch = self._gives_the_same_together(original)

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the network in ONNX Runtime."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            scores = torch.from_numpy(self._run(self._before(frames), self.contract.imgsz))
            self._values.add(scores.numpy())
            by_class = scores.float() if self.contract.output_layout == "nchw" else scores.float().permute(0, 3, 1, 2)
            masks, not_finite = self._after(scores, frames)
            require_finite(not_finite.numpy(), "the network")
            return Expected(masks.numpy(), undecided(by_class))

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        if precision != self.precision:
            raise CompileError(
                f"--precision: expected {self.precision} for a network that cannot be brought into layers, got {precision}: "
                f"take {self.precision}"
            )
        return wrap(self._network, self.contract, frame_size_hw, smooth=self._smooth, takes_batch=self.takes_batch)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._values.check()

    def _gives_the_same_together(self, original: onnx.ModelProto) -> bool:
        """Whether three pictures at once give what each gives alone, where the file's input is freed for them."""
        free = onnx.ModelProto()
        free.CopyFrom(original)
        for value in (*free.graph.input, *free.graph.output):
            if value.name in (self._input, self._output):
                value.type.tensor_type.shape.dim[0].dim_param = "N"
        del free.graph.value_info[:]
        order = (0, 2, 3, 1) if self.contract.layout == "nhwc" else (0, 1, 2, 3)
        pictures = [np.ascontiguousarray(x.transpose(order)) for x in photographs(self.contract)]
        alone = np.concatenate([self._run(torch.from_numpy(x), self.contract.imgsz) for x in pictures])
        try:
            session = LimitedSession(free.SerializeToString(), str(self._weights))
            (together,) = session.run([self._output], {self._input: np.concatenate(pictures).astype(self._dtype)})
        except CompileError:  # its shapes hold for one picture alone
            return False
        return is_same(np.asarray(together), alone, coarse=self.precision != "fp32")

    def _run(self, x: torch.Tensor, size_hw: tuple[int, int]) -> NDArray[Any]:
        try:
            (scores,) = self._session.run([self._output], {self._input: x.numpy().astype(self._dtype)})
        except CompileError as error:
            raise CompileError(f"{error}: on pictures of {size_hw[0]}×{size_hw[1]}") from error
        return np.asarray(scores)
