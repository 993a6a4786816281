"""The GPU through PyCUDA, on the device's primary context, which PyTorch shares: the one file that imports PyCUDA."""

from __future__ import annotations

import ctypes
import weakref
from types import TracebackType

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from pipeline.errors import BackendUnavailableError
from pipeline.frames.on_device import Plane

# CU_STREAM_NON_BLOCKING, of which PyCUDA has no name. While a graph is recorded from another kind of stream nobody may use the default
# one, and a decoder does.
_NON_BLOCKING = 1
_PITCH_BYTES = 256


class CudaDevice:
    """A GPU; current on the thread that is inside its ``with`` block, on any thread.

    All that is made here (streams, events, memory) is made, used and freed inside such a block; PyCUDA keeps for each thread what is
    current there. PyCUDA's errors leave it as ``BackendUnavailableError``.

    Attributes:
        name: such as "NVIDIA GeForce RTX 4090".
        sm: compute capability without the dot, such as 89.
        integrated: memory is shared with the CPU, as on a Jetson: nothing needs to be copied.

    Raises:
        BackendUnavailableError: there is no GPU or no driver, with CUDA's own words.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            cuda.init()
            device = cuda.Device(index)
            self.name = str(device.name())
            major, minor = device.compute_capability()
            self.sm = int(major) * 10 + int(minor)
            self.integrated = bool(device.get_attribute(cuda.device_attribute.INTEGRATED))
            self._context = device.retain_primary_context()
            # Its destructor pushes it and leaves it there, and calls cuCtxDetach, which is not for primary contexts.
            keep_for_ever(self._context)
        except cuda.Error as error:
            raise BackendUnavailableError(f"no GPU that CUDA can use: {_first_line(error)}") from error

    def __enter__(self) -> CudaDevice:
        try:
            self._context.push()
        except cuda.Error as error:
            raise self._failed(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        cuda.Context.pop()
        if isinstance(error, cuda.Error):
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> BackendUnavailableError:
        return BackendUnavailableError(f"{self.name}: CUDA failed: {_first_line(error)}")

    @property
    def free_bytes(self) -> int:
        """Memory that can still be had; on a Jetson what is free right now, without what the system would give back."""
        free_bytes, _ = cuda.mem_get_info()
        return int(free_bytes)

    def stream(self) -> cuda.Stream:
        """A new stream that waits for no other one, and none for it; ``handle`` is its address."""
        return cuda.Stream(_NON_BLOCKING)

    def event(self) -> cuda.Event:
        """A new event that a waiting thread sleeps on: spinning would take a core from the decoder."""
        return cuda.Event(cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING)

    def buffer(self, size_bytes: int) -> Buffer:
        """A new buffer that both sides can reach."""
        return Buffer(size_bytes, mapped=self.integrated)

    def surface(self, size_hw: tuple[int, int]) -> Surface:
        """New memory for a picture in NV12, which alone of all that is made here is given back by itself, from any thread."""
        return Surface(self, size_hw)


class Buffer:
    """Page-locked host memory and the device memory that belongs to it; on a Jetson they are the same.

    Attributes:
        host: (size_bytes,) uint8, owned by the buffer.
        address: of the device's side.
    """

    def __init__(self, size_bytes: int, *, mapped: bool) -> None:
        flags = cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        self.host: NDArray[np.uint8] = cuda.pagelocked_empty(size_bytes, np.uint8, mem_flags=flags)
        self._allocation = self.host.base
        try:
            self._device = None if mapped else cuda.mem_alloc(size_bytes)
            self.address = int(self._allocation.get_device_pointer() if self._device is None else self._device)
        except cuda.Error:
            self._allocation.free()
            raise

    def to_device(self, size_bytes: int, stream: cuda.Stream) -> None:
        """Put the copy of the first bytes to the device onto the stream."""
        if self._device is not None:
            cuda.memcpy_htod_async(self.address, self.host[:size_bytes], stream)

    def take_rows(self, start: int, plane: Plane, rows_and_bytes: tuple[int, int], stream: cuda.Stream) -> None:
        """Put a copy from the device's own memory to the device's side onto the stream.

        Args:
            start: where it goes, in bytes from the begin of the buffer; rows without gaps.
            plane: where it comes from.
            rows_and_bytes: how many rows of how many bytes each.
            stream: waits for whoever writes there.
        """
        copy = cuda.Memcpy2D()
        copy.set_src_device(plane.address)
        copy.src_pitch = plane.pitch_bytes
        copy.set_dst_device(self.address + start)
        copy.height, copy.width_in_bytes = rows_and_bytes
        copy.dst_pitch = copy.width_in_bytes
        copy(stream)

    def put_rows(self, start: int, surface: Surface, stream: cuda.Stream) -> None:
        """Put a copy of a picture in NV12 within the device onto the stream.

        Args:
            start: where it lies in the buffer, in bytes; rows without gaps.
            surface: where it goes.
            stream: waits for whoever writes here.
        """
        copy = cuda.Memcpy2D()
        copy.set_src_device(self.address + start)
        copy.set_dst_device(surface.luma.address)
        copy.height, copy.width_in_bytes = surface.rows_and_bytes
        copy.src_pitch, copy.dst_pitch = copy.width_in_bytes, surface.luma.pitch_bytes
        copy(stream)

    def to_host(self, size_bytes: int, stream: cuda.Stream) -> None:
        """Put the copy of the first bytes to the host onto the stream."""
        if self._device is not None:
            cuda.memcpy_dtoh_async(self.host[:size_bytes], self.address, stream)

    def free(self) -> None:
        """Give both sides back; nothing may be on its way to or from them."""
        if self._device is not None:
            self._device.free()
        self._allocation.free()


class Surface:
    """Device memory for a picture in NV12 as NVENC takes one: chroma right behind luma, and rows of a multiple of 256 bytes.

    It is freed with the last reference to it, on whatever thread that is; nothing may be on its way to or from it then.

    Attributes:
        size_hw: of the picture.
        rows_and_bytes: how many rows of how many bytes it has, luma and chroma.
        luma: where its first H rows are.
        chroma: where the others are.
    """

    def __init__(self, device: CudaDevice, size_hw: tuple[int, int]) -> None:
        height, width = self.size_hw = size_hw
        pitch_bytes = -(-width // _PITCH_BYTES) * _PITCH_BYTES
        self._device = device
        self.rows_and_bytes = height * 3 // 2, width
        allocation = cuda.mem_alloc(pitch_bytes * self.rows_and_bytes[0])
        self.luma = Plane(int(allocation), pitch_bytes)
        self.chroma = Plane(int(allocation) + pitch_bytes * height, pitch_bytes)
        # PyCUDA frees memory in the context that it was made in, where that is current.
        weakref.finalize(self, _free_on, device, allocation).atexit = False

    def to_host(self) -> NDArray[np.uint8]:
        """The picture, from any thread: (H·3/2, W) uint8, contiguous, owned by the caller. It must be complete."""
        rows, width = self.rows_and_bytes
        whole = np.empty((rows, self.luma.pitch_bytes), np.uint8)
        with self._device:
            cuda.memcpy_dtoh(whole, self.luma.address)
        return np.ascontiguousarray(whole[:, :width])


def _free_on(device: CudaDevice, allocation: cuda.DeviceAllocation) -> None:
    try:
        with device:
            allocation.free()
    except BackendUnavailableError:
        keep_for_ever(allocation)  # of a GPU that failed, see TensorRTEngine._close


def keep_for_ever(kept: object) -> None:
    """Never destroy an object, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
