"""A segmentation network as ONNX that cannot be brought into layers: as it is, in the precision that it came in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compile.networks.contract import Contract
from compile.networks.ends import channels_first
from compile.networks.onnx_ends import final_activation_of, keep_output
from compile.networks.onnx_file import nodes_of, read_whole, tensors_of
from compile.networks.onnx_graph import is_same
from compile.networks.onnx_precision import precision_of
from compile.networks.onnx_runtime import LimitedSession
from compile.program.foreign import check_graph, fitted_contract, foreign_network, photographs, wrap
from compile.program.network import Network, check_count, joined, raw_of, undecided
from compile.program.outputs import find_output, fit_output
from compile.program.program import FrameToInput, ScoresToMask
from compile.program.score_range import ScoreRange
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
    ) -> None:
        original, self.data_files = read_whole(weights)
        check_graph(original, weights)
        decision = keep_output(original, contract.output, weights)
        self._weights, self._network = weights, foreign_network(original, weights)
        self.precision = precision_of(nodes_of(self._network), tensors_of(self._network), str(weights))
        fitted = fitted_contract(self._network, contract, weights, imgsz)
        self._session = LimitedSession(original.SerializeToString(), str(weights))
        entry, result = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._dtype = entry.name, np.float16 if "float16" in entry.type else np.float32
        pictures = [torch.from_numpy(x) for x in photographs(fitted)]
        nchw = fitted.layout == "nchw"
        outputs = [self._run(x if nchw else x.permute(0, 2, 3, 1), fitted.imgsz) for x in pictures]
        self._output = output = find_output(outputs, fitted, contract.output or result.name, decision)
        ends_in = final_activation_of(self._network, self._network.graph.output[0].name)
        fitted = fit_output(fitted, output, decision, ends_in)
        check_count(weights, fitted, output.class_count, classes)
        super().__init__("foreign", weights.stem, fitted, output.class_count)
        self._before, self._after = FrameToInput(fitted).eval(), ScoresToMask(fitted, form=output.form).eval()
        self._range = ScoreRange(fitted, output.class_count, output.form)
        self.takes_batch = "n" in output.layout and self._gives_the_same_together(original, outputs)

    def reference(self, frames_nhwc: NDArray[np.uint8]) -> Expected:
        """Run the frame program around the network in ONNX Runtime."""
        frames = torch.from_numpy(frames_nhwc)
        with torch.inference_mode():
            parts = []
            for index in range(len(frames)):
                frame = frames[index : index + 1]
                output = torch.from_numpy(self._run(self._before(frame), self.contract.imgsz)).float()
                scores = channels_first(output, self._after.layout)
                self._range.add(scores)
                masks, not_finite, values = self._after.with_values(output, frame)
                require_finite(not_finite.numpy(), "the network")
                flags = undecided(scores, self.contract, self._output.form)
                flags = self._after.fit.flags_on_frame(flags, frames_nhwc.shape[1:3])
                parts.append(Expected(masks.numpy(), flags, raw_of(frames_nhwc[index : index + 1], scores, values)))
            return joined(parts)

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        if precision != self.precision:
            raise CompileError(
                f"--precision: expected {self.precision} for a network that cannot be brought into layers, got {precision}: "
                f"take {self.precision}"
            )
        output, many = self._output, self.takes_batch
        channels = 1 if output.form == "indices" else output.class_count
        form = output.form
        return wrap(self._network, self.contract, frame_size_hw, channels=channels, form=form, takes_batch=many)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._range.check()

    def _gives_the_same_together(self, original: onnx.ModelProto, alone: list[NDArray[Any]]) -> bool:
        """Whether three pictures at once give what each gives alone, where the file's input is freed for them."""
        free = onnx.ModelProto()
        free.CopyFrom(original)
        for value in free.graph.input:
            if value.name == self._input:
                value.type.tensor_type.shape.dim[0].dim_param = "N"
        for value in free.graph.output:
            value.type.tensor_type.ClearField("shape")
        del free.graph.value_info[:]
        order = (0, 2, 3, 1) if self.contract.layout == "nhwc" else (0, 1, 2, 3)
        pictures = [np.ascontiguousarray(x.transpose(order)) for x in photographs(self.contract)]
        try:
            session = LimitedSession(free.SerializeToString(), str(self._weights))
            (together,) = session.run(None, {self._input: np.concatenate(pictures).astype(self._dtype)})
        except CompileError:  # its shapes hold for one picture alone
            return False
        return is_same(np.asarray(together), np.concatenate(alone), coarse=self.precision != "fp32")

    def _run(self, x: torch.Tensor, size_hw: tuple[int, int]) -> NDArray[Any]:
        try:
            (scores,) = self._session.run(None, {self._input: x.numpy().astype(self._dtype)})
        except CompileError as error:
            raise CompileError(f"{error}: on pictures of {size_hw[0]}×{size_hw[1]}") from error
        return np.asarray(scores)
