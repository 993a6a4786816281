"""The frame program on ONNX Runtime, on the CPU: the reference, and the default where there is no GPU."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.bundles.bundle import LOOK, LOOK_VALUES, NOT_FINITE, VIEWS, Bundle
from pipeline.engines.base import Computed, Engine
from pipeline.engines.kinds import EngineKind
from pipeline.engines.on_cpu import slower_on_cpu
from pipeline.engines.program_values import Value, values_of
from pipeline.errors import BundleError
from pipeline.frames.frame import describe

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

ONNXRUNTIME = EngineKind(
    name="onnxruntime",
    opens="OnnxRuntimeEngine",
    help="ONNX Runtime, on the CPU of any machine",
    order=40,
    extra="cpu",
    needs=("onnxruntime", "opencv"),
    overlaps=True,
)


class OnnxRuntimeEngine(Engine):
    """Runs ``program.onnx`` as it lies in the bundle.

    Args:
        bundle: what to run.
        at_once: how many submissions are computed at a time, each on its share of the cores.
        program: the content of another program, in place of the bundle's own.
        aside: compute on one thread, and keep no memory between submissions: beside something that matters more.
    """

    takes_looks = True
    is_reference = True

    def __init__(self, bundle: Bundle, at_once: int = 1, *, program: bytes | None = None, aside: bool = False) -> None:
        super().__init__(bundle)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Or it plans all memory of a run as one block after the first, beside what the first one took: twice as much, and no faster.
        options.enable_mem_pattern = False
        if aside:
            options.intra_op_num_threads = 1
            options.enable_cpu_mem_arena = False  # a third of the memory, for a third of the time more
        self.keeps_state = bool(bundle.manifest.contract.get("state"))
        if self.keeps_state:
            at_once = 1  # a frame needs what came of the one before
        self._pool: ThreadPoolExecutor | None = None
        if at_once > 1:
            options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // at_once)
            from concurrent.futures import ThreadPoolExecutor

            # Passive: a thread computes what was submitted, in native code, until it is collected.
            self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="onnxruntime")
            self.in_flight = (
                at_once + 1
            )  # one waits: its cores do not, while masks are passed on and a frame is fetched
        try:
            self._session = onnxruntime.InferenceSession(
                program or str(bundle.program_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(
                f"{bundle.program_path}: ONNX Runtime {onnxruntime.__version__} cannot load it "
                f"({str(error).strip().splitlines()[0]}): compile the bundle again"
            ) from error
        inputs = [
            Value(value.name, tuple(value.shape), value.type.removeprefix("tensor(").removesuffix(")"))
            for value in self._session.get_inputs()
        ]
        outputs = [Value(value.name, tuple(value.shape)) for value in self._session.get_outputs()]
        self._values = values_of(bundle, inputs, outputs)
        self.counts, self.one_at_a_time = self._values.counts, self._values.one_at_a_time
        self._waiting: deque[dict[str, NDArray[Any]] | Future[dict[str, NDArray[Any]]]] = deque()
        self._masks_only = onnxruntime.RunOptions()
        self._masks_only.only_execute_path_to_fetches = True  # the overlay is not computed for nobody
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU"
        self.advice = slower_on_cpu(bundle.manifest)

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        look = {LOOK: np.zeros(len(LOOK_VALUES), np.float32)} if self.composes else {}
        self._begin(self._values.outputs, frames, look, self._masks_only if self.composes else None)

    def _submit_with_look(self, frames: NDArray[np.uint8], look: NDArray[np.float32]) -> None:
        self._begin([*self._values.outputs, VIEWS], frames, {LOOK: look}, None)

    def _begin(
        self,
        outputs: list[str],
        frames: NDArray[np.uint8],
        look: dict[str, NDArray[np.float32]],
        options: onnxruntime.RunOptions | None,
    ) -> None:
        inputs: dict[str, NDArray[Any]] = {self._values.frames: np.ascontiguousarray(frames), **look}
        if self._pool is None:
            self._waiting.append(self._run(outputs, inputs, options))
        else:
            self._waiting.append(self._pool.submit(self._run, outputs, inputs, options))

    def _run(
        self, outputs: list[str], inputs: dict[str, NDArray[Any]], options: onnxruntime.RunOptions | None
    ) -> dict[str, NDArray[Any]]:
        try:
            if self.keeps_state:
                return self._run_on(outputs, inputs, options)
            results = self._session.run(outputs, inputs, options)
        except Exception as error:  # ONNX Runtime's errors have no other class in common
            raise BundleError(
                f"{self.bundle.program_path}: ONNX Runtime {onnxruntime.__version__} cannot run it on frames "
                f"{describe(inputs[self._values.frames])} ({str(error).strip().splitlines()[0]}): "
                "compile the bundle again for such frames"
            ) from error
        return dict(zip(outputs, results, strict=True))

    def _run_on(
        self, outputs: list[str], inputs: dict[str, NDArray[Any]], options: onnxruntime.RunOptions | None
    ) -> dict[str, NDArray[Any]]:
        """The same of a recurrent program; the state stays where ONNX Runtime has it."""
        state = self._state
        if state.values is None:
            state.values = [
                onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                for shape in self._values.zeros.values()
            ]
        given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        given |= dict(zip(self._values.zeros, state.values, strict=True))
        names = [*outputs, *self._values.next]
        results = self._session.run_with_ort_values(names, given, options)
        state.values = results[len(outputs) :]
        return {name: value.numpy() for name, value in zip(outputs, results, strict=False)}

    def _collect(self) -> Computed:
        waiting = self._waiting.popleft()
        results = waiting if isinstance(waiting, dict) else waiting.result()
        return Computed(results[self._values.masks], results.get(VIEWS), results.get(NOT_FINITE))

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # what runs cannot be stopped
        self._waiting.clear()
        del self._session
