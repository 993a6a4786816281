"""The frame program on ONNX Runtime, on the CPU: the reference, and the default where there is no GPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.engines.base import Engine
from pipeline.errors import BundleError
from pipeline.frame import describe


class OnnxRuntimeEngine(Engine):
    """Runs ``program.onnx`` as it lies in the bundle; one submission at a time."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.program_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(
                f"{bundle.program_path}: ONNX Runtime {onnxruntime.__version__} cannot load it "
                f"({str(error).strip().splitlines()[0]}): compile the bundle again"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(uint8)":
            raise BundleError(
                f"{bundle.program_path}: expected one uint8 input and one output, "
                f"got {len(inputs)} ({inputs[0].type if inputs else 'none'}) and {len(outputs)}: this is no frame program"
            )
        self._input_name = inputs[0].name
        self._masks: NDArray[np.uint8] | None = None
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU"

    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        try:
            (self._masks,) = self._session.run(None, {self._input_name: np.ascontiguousarray(frames_nhwc)})
        except Exception as error:  # ONNX Runtime's errors have no other class in common
            raise BundleError(
                f"{self.bundle.program_path}: ONNX Runtime {onnxruntime.__version__} cannot run it on frames "
                f"{describe(frames_nhwc)} ({str(error).strip().splitlines()[0]}): compile the bundle again for such frames"
            ) from error

    def _collect(self) -> NDArray[np.uint8]:
        masks_nhw, self._masks = self._masks, None
        if masks_nhw is None:
            raise RuntimeError("nothing was submitted")
        return masks_nhw

    def _close(self) -> None:
        del self._session
