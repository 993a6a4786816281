"""Pictures in a GPU's memory for FFmpeg's NVENC, which reads them there: PyAV takes their addresses by DLPack.

It has not run on a GPU yet: it is written against PyAV's interface and FFmpeg's source, and tested without one.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import av
from av.video.frame import CudaContext, VideoFrame

from pipeline.frames.on_device import OnDevice, Plane

# The first PyAV whose encoders take pictures on a GPU; before, FFmpeg was not told of the memory that they are in.
_FIRST_PYAV = 18
# DLPack's numbers and names.
_CUDA, _UNSIGNED = 2, 1
_CAPSULE_NAME = b"dltensor"


def encodes_from_gpu() -> bool:
    """Whether this PyAV can have pictures encoded from a GPU's memory; of GPU and driver it says nothing."""
    return int(av.__version__.split(".")[0]) >= _FIRST_PYAV


class PicturesOnGpu:
    """Pictures on the GPU as one encoder takes them, without a copy; for one thread.

    They are in the device's primary context, as those of decoder and engine. They must be complete: NVENC waits for the default stream
    alone. FFmpeg holds each until NVENC has given what it encoded of it; then nobody reads it any more.

    NVENC keeps addresses registered until it ends, so this holds all memory that it was given, and must live as long as the encoder.
    """

    def __init__(self) -> None:
        self._context = CudaContext(device_id=0, primary_ctx=True)
        self._memory: set[object] = set()

    def __call__(self, picture: OnDevice) -> VideoFrame:
        """One picture, which is held until FFmpeg needs it no more.

        NVENC looks for chroma right behind luma, with as long rows: so it is in all memory that has ``picture.memory``.
        """
        self._memory.add(picture.memory)
        (height, width), lent = picture.size_hw, []
        try:
            for plane, rows in ((picture.luma, height), (picture.chroma, height // 2)):
                lent.append(_Lent(plane, (rows, width), picture))
            return VideoFrame.from_dlpack(
                [one.capsule() for one in lent], format="nv12", width=width, height=height, cuda_context=self._context
            )
        except BaseException:
            for one in lent:
                one.give_back()
            raise


class _Tensor(ctypes.Structure):
    """DLPack's ``DLManagedTensor``, with the ``DLTensor`` that it begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _Lent:
    """A plane of bytes that is lent out by DLPack, and its owner held until it is given back."""

    _lent: dict[int, _Lent] = {}  # noqa: RUF012 - of the process, for whoever gives back knows a number alone
    _numbers = itertools.count(1)

    def __init__(self, plane: Plane, size_hw: tuple[int, int], owner: object, device_type: int = _CUDA) -> None:
        self._owner, self._number = owner, next(self._numbers)
        self._shape, self._strides = (ctypes.c_int64 * 2)(*size_hw), (ctypes.c_int64 * 2)(plane.pitch_bytes, 1)
        self._tensor = _Tensor(
            *(plane.address, device_type, 0, 2, _UNSIGNED, 8, 1, self._shape, self._strides, 0, self._number),
            ctypes.cast(_deleter, ctypes.c_void_p),
        )
        self._lent[self._number] = self

    def capsule(self) -> Any:
        """What DLPack hands over."""
        return _new_capsule(ctypes.addressof(self._tensor), _CAPSULE_NAME, None)

    def give_back(self) -> None:
        """Hold the owner no longer; safe to call twice."""
        self._lent.pop(self._number, None)

    @classmethod
    def came_back(cls, tensor_address: int) -> None:
        """Called by who had it, from any thread."""
        cls._lent.pop(_Tensor.from_address(tensor_address).manager_ctx or 0, None)


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_Lent.came_back)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
