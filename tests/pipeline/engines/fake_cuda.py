"""PyCUDA without a GPU, over ``fake_gpu``. Only names that ``pycuda.driver`` has are public, and each is in ``pycuda_names.txt``."""

import enum
import itertools
import threading
from types import ModuleType

import numpy as np
from fake_gpu import DriverError, Error, LaunchError, LogicError, OutOfMemory, Strict, Work, gpu

UNWRITTEN = 0xA5
_handles = itertools.count(0x1000)


class _Owned(Strict):
    """Belongs to the context that is current when it is made, and must go in it or on the thread that the context is from."""

    def __init__(self, call, *, waits=False):
        gpu.call(call, waits=waits)
        self._context, self._live = gpu.stack[-1], True
        gpu.alive[type(self).__name__] += 1

    def _end(self):
        if not self._live:
            raise LogicError(f"{type(self).__name__}::free failed: invalid resource handle")
        self._live = False
        gpu.alive[type(self).__name__] -= 1
        if not gpu.stack and threading.current_thread() is not self._context._thread and not gpu.broken:
            gpu.faults.append(f"{type(self).__name__} in out-of-thread context could not be cleaned up")

    def __del__(self):
        if self.__dict__.get("_live"):
            self._end()


class Stream(_Owned):
    def __init__(self, flags=0):
        super().__init__("cuStreamCreate")
        self._handle, self._queue, self._is_blocking = next(_handles), [], not flags & 1
        gpu.streams[self._handle] = self

    @property
    def handle(self):
        return self._handle

    def synchronize(self):
        gpu.call("cuStreamSynchronize", waits=True)
        while self._queue:
            gpu.step(self._queue)

    def wait_for_event(self, evt):
        gpu.call("cuStreamWaitEvent")
        if evt._recorded is not None:  # an event that was never recorded is complete
            gpu.put(self, Work("wait", needs=evt._recorded))

    def _end(self):
        if self._queue and not gpu.broken:
            gpu.faults.append(f"a stream is destroyed before {self._queue[0].name} is done")
        self._queue.clear()
        super()._end()


class Event(_Owned):
    def __init__(self, flags=0):
        super().__init__("cuEventCreate")
        self._recorded = None

    def record(self, stream=None):
        gpu.call("cuEventRecord")
        self._recorded = Work("record")
        gpu.put(stream, self._recorded)
        return self

    def synchronize(self):
        gpu.call("cuEventSynchronize", waits=True)
        if self._recorded is not None:
            gpu.finish(self._recorded)
        return self


class _Memory(_Owned):
    def __init__(self, call, size):
        super().__init__(call, waits=True)
        self._array, self._address = np.full(size, UNWRITTEN, np.uint8), None

    def _end(self):
        super()._end()
        gpu.unused(self._array, type(self).__name__)
        gpu.memory.pop(self._address, None)
        self._array[:] = UNWRITTEN  # whoever still reads it reads nonsense

    def free(self):
        self._end()


class DeviceAllocation(_Memory):
    def __init__(self, size):
        super().__init__("cuMemAlloc", size)
        self._address = gpu.map(self._array)

    def __int__(self):
        return self._address


class PagelockedHostAllocation(_Memory):
    def __init__(self, size, flags):
        super().__init__("cuMemHostAlloc", size)
        self._flags = flags

    @property
    def __array_interface__(self):
        return {"version": 3, "shape": self._array.shape, "typestr": "|u1", "data": (self._array.ctypes.data, False)}

    def get_device_pointer(self):
        gpu.call("cuMemHostGetDevicePointer")
        if not self._flags & HostAllocFlags.DEVICEMAP:
            raise LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        self._address = self._address or gpu.map(self._array)
        return self._address


class Memcpy2D(Strict):
    src_pitch = dst_pitch = width_in_bytes = height = 0

    def __init__(self):
        self._source = self._target = None

    def set_src_device(self, devptr):
        self._source = devptr

    def set_dst_device(self, devptr):
        self._target = devptr

    def __call__(self, stream):
        gpu.call("cuMemcpy2DAsync")
        if min(self.src_pitch, self.dst_pitch) < self.width_in_bytes:
            raise LogicError("cuMemcpy2DAsync failed: invalid argument")
        size = self.height, self.width_in_bytes
        source, target = _rows(self._source, self.src_pitch, *size), _rows(self._target, self.dst_pitch, *size)
        gpu.put(stream, Work("copy", lambda: np.copyto(target, source), uses=(source, target)))


def _rows(address, pitch, rows, width):
    whole = gpu.at(int(address), pitch * (rows - 1) + width)
    return np.lib.stride_tricks.as_strided(whole, (rows, width), (pitch, 1))


class Device(Strict):
    def __init__(self, index):
        if index != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    def name(self):
        return "Fake GPU"

    def compute_capability(self):
        return gpu.capability

    def get_attribute(self, attribute):
        return int(gpu.integrated) if attribute is DeviceAttribute.INTEGRATED else gpu.fault(f"asked for {attribute}")

    def retain_primary_context(self):
        return Context()


class Context(Strict):
    def __init__(self):
        self._thread = threading.current_thread()

    def push(self):
        if gpu.refuse_push:
            raise LogicError(f"cuCtxPushCurrent failed: {gpu.broken}")
        gpu.stack.append(self)

    @staticmethod
    def pop():
        if not gpu.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        gpu.stack.pop()

    def __del__(self):
        # The real one pushes a primary context here, leaves it there, and calls what is not for primary contexts.
        gpu.faults.append("the primary context was destroyed")


DeviceAttribute = enum.IntEnum("device_attribute", {"INTEGRATED": 18})
EventFlags = enum.IntEnum("event_flags", {"BLOCKING_SYNC": 1, "DISABLE_TIMING": 2})
HostAllocFlags = enum.IntEnum("host_alloc_flags", {"DEVICEMAP": 2})


def _init(flags=0):
    if not gpu.present:
        raise DriverError("cuInit failed: no CUDA-capable device is detected")


def _mem_get_info():
    gpu.call("cuMemGetInfo")
    return 1 << 30, 8 << 30


def _mem_alloc(size):
    if gpu.allocations_left == 0:
        raise OutOfMemory("cuMemAlloc failed: out of memory")
    if gpu.allocations_left is not None:
        gpu.allocations_left -= 1
    return DeviceAllocation(size)


def _pagelocked_empty(shape, dtype, order="C", mem_flags=0):
    return np.asarray(PagelockedHostAllocation(shape * np.dtype(dtype).itemsize, mem_flags))


def _copy(call, name, device, host, stream, into_device):
    gpu.call(call)
    owner = host
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, PagelockedHostAllocation) or not host.flags.c_contiguous:
        gpu.fault(f"{name}: the host's memory is not page-locked or not in one piece")
    uses = (gpu.at(int(device), host.nbytes), host)

    def run():
        there = gpu.at(int(device), host.nbytes)
        np.copyto(there, host) if into_device else np.copyto(host, there)

    gpu.put(stream, Work(name, run, uses=uses))


def _memcpy_htod_async(dest, src, stream=None):
    _copy("cuMemcpyHtoDAsync", "upload", dest, src, stream, True)


def _memcpy_dtoh(dest, src):
    gpu.call("cuMemcpyDtoH", waits=True)
    np.copyto(dest.reshape(-1), gpu.at(int(src), dest.nbytes))


def _memcpy_dtoh_async(dest, src, stream=None):
    _copy("cuMemcpyDtoHAsync", "download", src, dest, stream, False)


def pycuda_driver():
    """The module ``pycuda.driver``."""
    made = ModuleType("pycuda.driver")
    classes = (Device, Context, Stream, Event, Memcpy2D, Error, LogicError, OutOfMemory, LaunchError, DriverError)
    flags = (DeviceAttribute, EventFlags, HostAllocFlags)
    copies = (_memcpy_htod_async, _memcpy_dtoh, _memcpy_dtoh_async)
    functions = (_init, _mem_get_info, _mem_alloc, _pagelocked_empty, *copies)
    for member in (*classes, *flags, *functions, DeviceAllocation, PagelockedHostAllocation):
        setattr(made, member.__name__.lstrip("_"), member)
    return made
