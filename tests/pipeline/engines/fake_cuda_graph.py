"""cuda.bindings.driver without a GPU: stream capture and graphs over ``fake_gpu``; errors come as the first of what is returned."""

import enum
from types import ModuleType, SimpleNamespace

from fake_gpu import Work, gpu

CUresult = enum.IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0,
        "CUDA_ERROR_INVALID_VALUE": 1,
        "CUDA_ERROR_INVALID_CONTEXT": 201,
        "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
        "CUDA_ERROR_NOT_SUPPORTED": 801,
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": 900,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
    },
)
CUstreamCaptureMode = enum.IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})


class CUstream:
    def __init__(self, init_value):
        if not isinstance(init_value, int):
            gpu.fault(f"CUstream of {init_value!r}")
        self._stream = gpu.streams[init_value]


class _Graph:
    """A recording ("graph"), or what is made of it to be launched ("executable"); counted until it is destroyed."""

    def __init__(self, kind, works):
        self._kind, self._works, self._live = kind, works, True
        gpu.alive[kind] += 1

    def _use(self, kind):
        if not self._live or self._kind != kind:
            gpu.fault(f"a destroyed {self._kind} is used" if not self._live else f"a {self._kind} is no {kind}")
        return self._works

    def _destroy(self, kind):
        self._use(kind)
        self._live = False
        gpu.alive[kind] -= 1


def _answer(name, *values):
    """What a function returns: its status, and its values if that is success."""
    if not gpu.stack:
        return CUresult.CUDA_ERROR_INVALID_CONTEXT, *(None for _ in values)
    if gpu.broken:
        return CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, *(None for _ in values)
    gpu.calls.append(name)
    return CUresult.CUDA_SUCCESS, *(value() for value in values)


def _begin(stream, mode):
    if gpu.capture is not None:
        gpu.fault("a stream is captured already")
    if mode is not CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL:
        gpu.fault(f"capture mode {mode}")
    if gpu.refuse_capture == "begin":
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
    (status,) = _answer("cuStreamBeginCapture")
    if status == CUresult.CUDA_SUCCESS:
        gpu.capture = SimpleNamespace(stream=stream._stream, works=[], spoilt=False)
    return (status,)


def _end(stream):
    capture, gpu.capture = gpu.capture, None
    if capture is None or capture.stream is not stream._stream:
        gpu.fault("a stream is not being captured")
    if capture.spoilt:
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
    return _answer("cuStreamEndCapture", lambda: _Graph("graph", capture.works))


def _instantiate(graph, flags):
    works = graph._use("graph")
    if flags != 0 or gpu.refuse_capture == "instantiate":
        return CUresult.CUDA_ERROR_NOT_SUPPORTED, None
    return _answer("cuGraphInstantiate", lambda: _Graph("executable", works))


def _launch(executable, stream):
    works = executable._use("executable")
    (status,) = _answer("cuGraphLaunch")
    if status == CUresult.CUDA_SUCCESS:
        for work in works:
            gpu.put(stream._stream, Work(work.name, work.run, uses=work.uses, graph=executable))
    return (status,)


def _destroy_graph(graph):
    graph._destroy("graph")
    return _answer("cuGraphDestroy")


def _destroy_executable(executable):
    if not gpu.broken and any(work.graph is executable for stream in gpu.streams.values() for work in stream._queue):
        gpu.faults.append("a graph is destroyed while it is running")
    executable._destroy("executable")
    return _answer("cuGraphExecDestroy")


def cuda_bindings_driver():
    """The module ``cuda.bindings.driver``."""
    made = ModuleType("cuda.bindings.driver")
    made.CUresult, made.CUstreamCaptureMode, made.CUstream = CUresult, CUstreamCaptureMode, CUstream
    made.cuStreamBeginCapture, made.cuStreamEndCapture = _begin, _end
    made.cuGraphInstantiate, made.cuGraphLaunch = _instantiate, _launch
    made.cuGraphDestroy, made.cuGraphExecDestroy = _destroy_graph, _destroy_executable
    return made
