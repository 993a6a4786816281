"""TensorRT and TensorRT-RTX without a GPU: a plan is an ONNX program, and ONNX Runtime computes it on ``fake_gpu``'s memory.

Only names that the real bindings have are public, and each is in ``tensorrt_names.txt``.
"""

import enum
import json
from types import ModuleType

import numpy as np
import onnxruntime
from fake_gpu import Strict, Work, gpu


class Settings:
    """What a test sets before it opens an engine, and looks at afterwards."""

    def __init__(self):
        self.profile = ((1, 1, 1, 3), (1, 64, 64, 3), (8, 512, 512, 3))
        self.refuse_context = False
        self.refuse_execute = False
        self.lean_runtime_inside = False  # the plan is version-compatible: it needs leave to run its own code
        self.deserialized = []  # every plan that came
        self.runtimes = []


settings = Settings()


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self):
        self._complete = True


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    UINT8 = 1
    INT32 = 2


_DTYPES = {DataType.FLOAT: np.float32, DataType.UINT8: np.uint8, DataType.INT32: np.int32}
_OF_ONNX = {"tensor(uint8)": DataType.UINT8, "tensor(int32)": DataType.INT32}


class _OnDevice(Strict):
    """Holds memory of the device, so it is made and destroyed with a current context; keeps what it was made from alive."""

    def __init__(self, made_from):
        gpu.call(f"make {type(self).__name__}", waits=True)
        self._made_from = made_from
        gpu.alive[type(self).__name__] += 1

    def __del__(self):
        if "_made_from" in self.__dict__:
            gpu.alive[type(self).__name__] -= 1
            if not gpu.stack and not gpu.broken:
                gpu.faults.append(f"{type(self).__name__} is destroyed without a current context")


class Runtime(_OnDevice):
    DLA_core = -1
    engine_host_code_allowed = False

    def __init__(self, logger):
        if not getattr(logger, "_complete", False):
            gpu.fault("ILogger.__init__ was not called")
        super().__init__(None)
        self._logger = logger
        settings.runtimes.append((self.DLA_core, self.engine_host_code_allowed))

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if settings.runtimes and not name.startswith("_"):
            settings.runtimes[-1] = (self.DLA_core, self.engine_host_code_allowed)

    def deserialize_cuda_engine(self, serialized_engine):
        settings.deserialized.append(serialized_engine)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            if settings.lean_runtime_inside and not self.engine_host_code_allowed:
                raise ValueError("Serialized engine contains host code, which is not allowed")
            session = onnxruntime.InferenceSession(serialized_engine, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001
            # TensorRT's own way: lines in its log, and None.
            self._logger.log(Severity.WARNING, "this is only a warning")
            self._logger.log(Severity.ERROR, f"Error Code 1: Serialization\n  ({error})")
            return None
        return (RTXCudaEngine if settings.rtx else ICudaEngine)(self, session)


class ICudaEngine(_OnDevice):
    def __init__(self, runtime, session):
        super().__init__(runtime)
        self._session = session
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._values = {**self._inputs, **{value.name: value for value in session.get_outputs()}}

    @property
    def num_io_tensors(self):
        return len(self._values)

    def get_tensor_name(self, index):
        return list(self._values)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _OF_ONNX.get(self._values[name].type, DataType.FLOAT)

    def get_tensor_shape(self, name):
        return [side if isinstance(side, int) else -1 for side in self._values[name].shape]

    def create_execution_context(self):
        return self._make_context(None)

    device_memory_size_v2 = 1000

    def create_engine_inspector(self):
        return EngineInspector(self)

    def _make_context(self, config):
        if settings.refuse_context:
            self._made_from._logger.log(Severity.ERROR, "out of device memory")
            return None
        return IExecutionContext(self, config)


class EngineInspector(_OnDevice):
    execution_context = None

    def get_engine_information(self, kind):
        assert kind is LayerInformationFormat.JSON
        frames = {
            "Name": "frames",
            "Dimensions": list(self.execution_context._shape),
            "Format/Datatype": "Row major UINT8",
        }
        layer = {"Name": "red", "LayerType": "Gather", "Inputs": [frames], "Metadata": "[ONNX Layer: red]"}
        return json.dumps({"Layers": [layer], "Bindings": []})


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class IProfiler:
    def __init__(self):
        self._complete = True


class IExecutionContext(_OnDevice):
    profiler = None

    def __init__(self, engine, config):
        super().__init__(engine)
        self._engine, self._config = engine, config
        self._shape, self._addresses = None, {}
        self._shapes_set, self._executed = 0, False  # what was recorded is good for one setting of the shape

    def set_input_shape(self, name, shape):
        smallest, _, largest = settings.profile
        built = self._engine._inputs[name].shape
        if not all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)):
            return False
        if any(isinstance(fixed, int) and fixed != side for fixed, side in zip(built, shape, strict=True)):
            return False
        self._shape, self._executed = tuple(shape), False
        self._shapes_set += 1
        return True

    def infer_shapes(self):
        return [] if self._shape else list(self._engine._inputs)

    def get_tensor_shape(self, name):
        frames = next(iter(self._engine._inputs.values()))
        sides = dict(zip(frames.shape, self._shape or (), strict=False))
        if "H*3/2" in sides:  # NV12
            sides["H"] = sides["H*3/2"] * 2 // 3
        return [sides.get(side, side) for side in self._engine._values[name].shape]

    def set_tensor_address(self, name, memory):
        if type(memory) is not int or name not in self._engine._values:
            gpu.fault(f"set_tensor_address({name!r}, {memory!r})")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        gpu.call("execute_async_v3")
        if type(stream_handle) is not int or self._shape is None or set(self._addresses) != set(self._engine._values):
            gpu.fault("a handle that is no int, or a shape or an address is missing")
        if settings.refuse_execute:
            return False
        captured = gpu.capture is not None and gpu.capture.stream._handle == stream_handle
        if captured and gpu.refuse_capture == "execute":
            gpu.capture.spoilt = True
            return False
        if captured and not self._executed:
            gpu.fault("the first run of a shape is recorded: TensorRT is not set up for it yet")
        self._executed = True
        shapes = {name: self.get_tensor_shape(name) for name in self._engine._values}
        dtypes = {name: _DTYPES[self._engine.get_tensor_dtype(name)] for name in shapes}
        sources = {name: dtypes[name] for name in self._engine._inputs}
        targets = [name for name in shapes if name not in sources]
        sizes = {name: int(np.prod(sides)) * np.dtype(dtypes[name]).itemsize for name, sides in shapes.items()}
        places = {name: (self._addresses[name], size) for name, size in sizes.items()}
        made_for, shape = self._shapes_set, self._shape

        def run():
            if made_for != self._shapes_set:
                gpu.fault("work of another shape than the context's is run")
            given = {
                name: gpu.at(*places[name]).copy().view(dtype).reshape(shapes[name]) for name, dtype in sources.items()
            }
            for name, result in zip(targets, self._engine._session.run(targets, given), strict=True):
                gpu.at(*places[name])[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)

        uses = tuple(gpu.at(*place) for place in places.values())
        gpu.put(gpu.streams[stream_handle], Work("compute", run, uses=uses))
        if self.profiler is not None:
            assert self.profiler._complete
            self.profiler.report_layer_time("red", 0.5)
        if self._config is not None and self._config._cache is not None:
            self._config._cache._kernels.add(repr(shape).encode())
        return True


# TensorRT-RTX only ----------------------------------------------------------------------------------------------------


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class IRuntimeCache(Strict):
    def __init__(self):
        self._kernels = set()

    def serialize(self):
        return memoryview(b"cache of 1.7:" + b"|".join(sorted(self._kernels))) if self._kernels else None

    def deserialize(self, blob):
        known = blob.startswith(b"cache of 1.7:")
        self._kernels = set(blob.partition(b":")[2].split(b"|")) if known else set()
        return known


class IRuntimeConfig(Strict):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __init__(self, engine):
        self._made_from, self._cache = engine, None

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class RTXCudaEngine(ICudaEngine):
    def create_runtime_config(self):
        return IRuntimeConfig(self)

    def create_execution_context(self, runtime_config=None):
        return self._make_context(runtime_config)


def tensorrt(runtime, version):
    """The module ``tensorrt``, or that of TensorRT-RTX."""
    settings.rtx = runtime == "tensorrt-rtx"
    made = ModuleType("tensorrt")
    made.__version__ = version
    members = [
        ILogger,
        IProfiler,
        EngineInspector,
        LayerInformationFormat,
        TensorIOMode,
        DataType,
        Runtime,
        ICudaEngine,
        IExecutionContext,
    ]
    if settings.rtx:
        members += [CudaGraphStrategy, IRuntimeCache, IRuntimeConfig]
    for member in members:
        setattr(made, member.__name__, member)
    return made
