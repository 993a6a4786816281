"""The frame program on OpenVINO: Intel's processors, GPUs and NPUs, and other makers' processors."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import LOOK, NOT_FINITE, VIEWS, Bundle, cache_folder
from pipeline.engines.base import Computed, Engine
from pipeline.engines.kinds import EngineKind
from pipeline.engines.openvino_bf16 import in_bf16
from pipeline.engines.openvino_library import load_openvino
from pipeline.engines.program_values import Value, values_of
from pipeline.errors import BackendUnavailableError, BundleError
from pipeline.frames.frame import describe

OPENVINO = EngineKind(
    name="openvino",
    opens="OpenVinoEngine",
    help="OpenVINO, on the CPU",
    order=50,
    extra="openvino",
    needs=("openvino", "opencv"),
    overlaps=True,
    precisions=("bf16", "f32"),
)
OPENVINO_GPU = EngineKind(
    name="openvino-gpu",
    opens="OpenVinoGpuEngine",
    help="OpenVINO, on an Intel GPU",
    order=51,
    extra="openvino",
    needs=("openvino", "intel_gpu", "opencv"),
    device_files=("/dev/dri/renderD*", "/dev/dxg"),
    overlaps=True,
    precisions=("f16", "f32"),
)
OPENVINO_NPU = EngineKind(
    name="openvino-npu",
    opens="OpenVinoNpuEngine",
    help="OpenVINO, on an Intel NPU",
    order=52,
    extra="openvino",
    needs=("openvino", "intel_npu", "opencv"),
    device_files=("/dev/accel/accel*",),
    overlaps=True,
    precisions=("f16",),
)

openvino = load_openvino()
# One for all: each sets up the stack of its thread's signal handlers, and puts back another one's that may be gone when it ends.
_CORE = openvino.Core()

# Sizes for which a device that takes one size keeps what was compiled.
_MOST_SIZES = 4
_SHOWN = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}


class OpenVinoEngine(Engine):
    """Runs ``program.onnx`` as it lies in the bundle.

    What OpenVINO compiles is kept in the cache folder; it knows itself what belongs to which program, device and version.

    Args:
        bundle: what to run.
        at_once: 1: each mask as soon as it can be, for cameras; more: as many a second as can be, several computed at a time.
        precision: what is computed in, where the program is not INT8: "f32", or what the device has beside it ("bf16", "f16"). In BF16
            a CPU leaves the network's ends in FP32, and the layers that the bundle names.

    Raises:
        BackendUnavailableError: the device is not here, or cannot compute in the precision.
        BundleError: OpenVINO cannot load the program.
    """

    device: ClassVar[str] = "CPU"
    one_size: ClassVar[bool] = False
    """Whether the device wants a program of one size, and so one that is compiled for each."""

    takes_looks = True

    def __init__(self, bundle: Bundle, at_once: int = 1, precision: str = "f32") -> None:
        super().__init__(bundle)
        self._check_device(precision)
        self.keeps_state = bool(bundle.manifest.contract.get("state"))
        self._overlaps = at_once > 1 and not self.keeps_state  # a frame needs what came of the one before
        self._mixes = precision == "bf16" and bundle.manifest.precision != "int8"
        self._config = {
            "PERFORMANCE_HINT": "THROUGHPUT" if self._overlaps else "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if self._mixes else precision,
        }
        if (cache := _cache_folder()) is not None:
            self._config["CACHE_DIR"] = str(cache)
        self._compiled: dict[tuple[tuple[int, ...] | None, bool], _Requests] = {}
        self._waiting: deque[tuple[_Requests, Any, list[str]]] = deque()
        program = self._read()
        inputs, outputs = [list(map(_value, values)) for values in (program.inputs, program.outputs)]
        self._values = values_of(bundle, inputs, outputs)
        self._taken = program.input(self._values.frames).partial_shape
        self.counts, self.one_at_a_time = self._values.counts, self._values.one_at_a_time
        if not self.one_size:
            self._add(program, None, with_look=False)
        self.description = f"OpenVINO {_version()}, {self.device}, {_SHOWN[precision]}"

    def _check_device(self, precision: str) -> None:
        """Refuse what this machine has not."""
        devices = _CORE.available_devices
        if not any(name.split(".")[0] == self.device for name in devices):
            raise BackendUnavailableError(
                f"OpenVINO {_version()}: expected an Intel {self.device} and its driver, got {', '.join(devices) or 'no device'}: "
                f"install the driver, or take another --backend"
            )
        able = _CORE.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if precision != "f32" and _SHOWN[precision] not in able:
            raise BackendUnavailableError(
                f"OpenVINO {_version()}: expected a {self.device} that computes in {_SHOWN[precision]}, got one for {', '.join(able)}"
            )

    def _read(self) -> Any:
        """The program, as OpenVINO has it; by its reader of ONNX alone, for of others one is tried after the other."""

        def read() -> Any:
            reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
            return reader.convert(reader.load(str(self.bundle.program_path)))

        return self._loading(read)

    def _loading(self, load: Any) -> Any:
        try:
            return load()
        except Exception as error:  # its errors are RuntimeErrors, and others
            raise BundleError(
                f"{self.bundle.program_path}: OpenVINO {_version()} cannot load it for the {self.device} ({_told(error)}): "
                "compile the bundle again"
            ) from error

    def _requests(self, shape: tuple[int, ...] | None, *, with_look: bool) -> _Requests:
        """What is compiled for frames of a shape (None: of any), with or without what draws."""
        if (shape, with_look) not in self._compiled:
            self._add(self._read(), shape, with_look=with_look)
        return self._compiled[shape, with_look]

    def _add(self, program: Any, shape: tuple[int, ...] | None, *, with_look: bool) -> None:
        """Compile a program that was read; the oldest of several sizes is forgotten."""
        if self.bundle.manifest.composes and not with_look:
            results = [one for one in program.get_results() if VIEWS not in one.input_value(0).get_names()]
            parameters = [one for one in program.get_parameters() if LOOK not in one.output(0).get_names()]
            program = openvino.Model(results, parameters)
        if shape is not None:
            program.reshape({self._values.frames: list(shape)})
        if self._mixes:
            kept = [name for name, kind in self.bundle.manifest.layers.items() if kind == "fp32"]
            self._loading(lambda: in_bf16(program, kept))
        made = _Requests(self._loading(lambda: _CORE.compile_model(program, self.device, self._config)))
        while len(self._compiled) >= _MOST_SIZES:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[shape, with_look] = made
        if self._overlaps:
            # One waits: the device does not, while masks are passed on and a frame is fetched.
            self.in_flight = max(self.in_flight, made.count + 1)

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        self._begin(frames, {}, self._values.outputs)

    def _submit_with_look(self, frames: NDArray[np.uint8], look: NDArray[np.float32]) -> None:
        self._begin(frames, {LOOK: look}, [*self._values.outputs, VIEWS])

    def _begin(self, frames: NDArray[np.uint8], look: dict[str, NDArray[np.float32]], outputs: list[str]) -> None:
        if self.one_size and not self._taken.compatible(openvino.PartialShape(list(frames.shape))):
            raise self._failed(ValueError(f"it takes {self._taken}"), describe(frames))
        requests = self._requests(frames.shape if self.one_size else None, with_look=bool(look))
        given: dict[str, NDArray[Any]] = {self._values.frames: np.ascontiguousarray(frames), **look}
        zeros, state = self._values.zeros, self._state
        if zeros and state.values is None:
            state.values = [np.zeros(shape, np.float32) for shape in zeros.values()]
        if zeros:
            given |= dict(zip(zeros, state.values, strict=True))
        request = requests.take()
        try:
            request.start_async(given)  # it copies them
            if zeros:
                request.wait()
                state.values = [request.get_tensor(name).data.copy() for name in self._values.next]
        except Exception as error:
            requests.give(request)
            raise self._failed(error, describe(frames)) from error
        self._waiting.append((requests, request, outputs))

    def _collect(self) -> Computed:
        requests, request, outputs = self._waiting.popleft()
        try:
            request.wait()
            results = {name: request.get_tensor(name).data.copy() for name in outputs}
        except Exception as error:
            raise self._failed(error, "that it was given") from error
        finally:
            requests.give(request)
        return Computed(results[self._values.masks], results.get(VIEWS), results.get(NOT_FINITE))

    def _failed(self, error: Exception, frames: str) -> BundleError:
        """The one border at which OpenVINO's errors become ours."""
        return BundleError(
            f"{self.bundle.program_path}: OpenVINO {_version()} cannot run it on frames {frames} ({_told(error)}): "
            "compile the bundle again for such frames"
        )

    def _close(self) -> None:
        for _, request, _ in self._waiting:
            with suppress(RuntimeError):
                request.cancel()
                request.wait()
        self._waiting.clear()
        self._compiled.clear()


class OpenVinoGpuEngine(OpenVinoEngine):
    """The same on an Intel GPU, for which a program of any size is slow."""

    device = "GPU"
    one_size = True


class OpenVinoNpuEngine(OpenVinoEngine):
    """The same on an Intel NPU, which takes no program of any size, and computes in FP16."""

    device = "NPU"
    one_size = True

    def __init__(self, bundle: Bundle, at_once: int = 1, precision: str = "f16") -> None:
        super().__init__(bundle, at_once, precision)


class _Requests:
    """A compiled program, and the requests that it computes, each used again once it is collected.

    Attributes:
        compiled: as OpenVINO has it.
        count: how many at a time it asks for.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: list[Any] = []

    def take(self) -> Any:
        return self._idle.pop() if self._idle else self.compiled.create_infer_request()

    def give(self, request: Any) -> None:
        self._idle.append(request)


def _value(node: Any) -> Value:
    shape = tuple(side.get_length() if side.is_static else None for side in node.partial_shape)
    return Value(node.any_name, shape, _DTYPES.get(node.element_type.get_type_name(), "other"))


_DTYPES = {"u8": "uint8", "u16": "uint16", "f32": "float", "f16": "float16", "i32": "int32"}


def _version() -> str:
    return str(openvino.__version__).split("-")[0]


def _told(error: Exception) -> str:
    """What an error says, without where in its own code OpenVINO found it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or [line for line in lines if line] or [type(error).__name__])[-1]


def _cache_folder() -> Path | None:
    """Where compiled programs are kept; None where nothing can be."""
    folder = cache_folder() / "openvino"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder
