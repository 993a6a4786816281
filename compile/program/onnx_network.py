"""A segmentation network as ONNX that cannot be brought into layers: as it is, in FP32."""

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
from compile.networks.onnx_ends import final_activation_of
from compile.program.foreign import fitted_contract, photographs, read_foreign, wrap
from compile.program.network import Network, check_count, joined, undecided
from compile.program.outputs import find_output, fit_output
from compile.program.program import FrameToInput, ScoresToMask
from compile.program.score_range import ScoreRange
from compile.proof.verify import Expected, open_session, require_finite
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
        file = read_foreign(weights, contract.output)
        self._weights, self._network = weights, file.model
        fitted = fitted_contract(file.model, contract, weights, imgsz)
        self._session = open_session(file.original.SerializeToString(), str(weights))
        entry, result = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._dtype = entry.name, np.float16 if "float16" in entry.type else np.float32
        pictures = [torch.from_numpy(x) for x in photographs(fitted)]
        nchw = fitted.layout == "nchw"
        outputs = [self._run(x if nchw else x.permute(0, 2, 3, 1), fitted.imgsz) for x in pictures]
        self._output = output = find_output(outputs, fitted, contract.output or result.name, file.decision)
        fitted = fit_output(
            fitted, output, file.decision, final_activation_of(file.model, file.model.graph.output[0].name)
        )
        check_count(weights, fitted, output.class_count, classes)
        super().__init__("foreign", weights.stem, fitted, output.class_count)
        self._before, self._after = FrameToInput(fitted).eval(), ScoresToMask(fitted, form=output.form).eval()
        self._range = ScoreRange(fitted, output.class_count, output.form)

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
                masks, not_finite = self._after(output, frame)
                require_finite(not_finite.numpy(), "the network")
                flags = undecided(scores, self.contract, self._output.form)
                parts.append(Expected(masks.numpy(), self._after.fit.flags_on_frame(flags, frames_nhwc.shape[1:3])))
            return joined(parts)

    def export(
        self, precision: Precision, frame_size_hw: tuple[int, int] | None, keep: Collection[str]
    ) -> onnx.ModelProto:
        """The frame program as ONNX: see ``Network.export``."""
        if precision != "fp32":
            raise CompileError(
                f"--precision: expected fp32 for a network that cannot be brought into layers, got {precision}: take fp32"
            )
        output = self._output
        channels = 1 if output.form == "indices" else output.class_count
        return wrap(self._network, self.contract, frame_size_hw, channels=channels, form=output.form)

    def doubt(self) -> str | None:
        """What is to be told of the values that it gave."""
        return self._range.check()

    def _run(self, x: torch.Tensor, size_hw: tuple[int, int]) -> NDArray[Any]:
        try:
            (scores,) = self._session.run(None, {self._input: x.numpy().astype(self._dtype)})
        except Exception as error:
            raise CompileError(
                f"{self._weights}: ONNX Runtime cannot run it on pictures of {size_hw[0]}×{size_hw[1]}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        return np.asarray(scores)
