"""NVENC as PyAV has it, without a GPU: takes pictures in the memory of ``fake_gpu``, reads them as late as it may, and x264 encodes.

Only what PyAV's classes have is public. What NVENC may not be given is a fault, and so is a picture that changes before it was read.
"""

import ctypes
from collections import deque

import av
import numpy as np

from tests.fakes.cuda_decoder import Opened

_DELAY = 3
_OPTIONS = {"preset": "ultrafast", "crf": "1"}


class _Tensor(ctypes.Structure):
    """DLPack's, as its header has it."""

    _fields_ = (
        *(
            ("data", ctypes.c_void_p),
            ("device_type", ctypes.c_int),
            ("device_id", ctypes.c_int),
            ("ndim", ctypes.c_int),
        ),
        *(("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)),
        *(("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64))),
        *(("byte_offset", ctypes.c_uint64), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p)),
    )


def _taken(capsule):
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    return _Tensor.from_address(api.PyCapsule_GetPointer(capsule, b"dltensor"))


class CudaContext:
    """Of ``av.video.frame``."""

    def __init__(self, device_id=0, primary_ctx=True):
        assert (device_id, primary_ctx) == (0, True), "not the context that decoder and engine use"


class CudaFrame:
    """Of ``av.VideoFrame``: one on the GPU; its memory is given back when FFmpeg needs it no more."""

    pts = time_base = pict_type = None

    def __init__(self, encoder, tensors, size_hw):
        self._encoder, self._tensors = encoder, tensors
        self.height, self.width = size_hw
        self.format = av.VideoFormat("cuda", self.width, self.height)

    def _read(self):
        """As NVENC does, which knows where luma begins and how long its rows are."""
        pitch, rows = self._tensors[0].strides[0], self.height * 3 // 2
        whole = self._encoder._at(self._tensors[0].data, pitch * (rows - 1) + self.width)
        return np.lib.stride_tricks.as_strided(whole, (rows, self.width), (pitch, 1)).copy()

    def __del__(self):
        for tensor in self._tensors:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tensor.deleter)(ctypes.addressof(tensor))


class Stream:
    """Of ``av.VideoStream``: of NVENC."""

    def __init__(self, stream, encoder):
        self.__dict__.update(_stream=stream, _encoder=encoder, _held=deque(), _known={}, pix_fmt="yuv420p")

    def __del__(self):
        for address, size in self._known.items():
            self._encoder._at(address, size)  # which is registered until now

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __setattr__(self, name, value):
        assert hasattr(av.VideoStream, name) or hasattr(av.VideoCodecContext, name)
        self.__dict__["pix_fmt"] = value if name == "pix_fmt" else self.pix_fmt
        setattr(self._stream, name, "nv12" if value == "cuda" else value)

    def encode(self, frame=None):
        encoder = self._encoder
        if frame is None:
            return [packet for held in self._held for packet in self._encoded(*held)] + self._stream.encode(None)
        if isinstance(frame, av.VideoFrame):
            assert self.pix_fmt != "cuda" or encoder.on_gpu, "hw_frames_ctx must be set when using GPU frames as input"
            assert frame.format.name == ("nv12" if self.pix_fmt == "cuda" else self.pix_fmt), "PyAV would convert it"
            encoder.on_cpu += 1
            self._held.append((frame, frame.to_ndarray()))
        else:
            assert (self.pix_fmt, frame.height, frame.width) == ("cuda", self.height, self.width)
            encoder.on_gpu += 1
            self._known[frame._tensors[0].data] = frame._tensors[0].strides[0] * self.height * 3 // 2
            self._held.append((frame, frame._read()))
        encoder.most_held = max(encoder.most_held, len(self._held))
        return self._encoded(*self._held.popleft()) if len(self._held) > _DELAY else []

    def _encoded(self, frame, as_given):
        now = frame.to_ndarray() if isinstance(frame, av.VideoFrame) else frame._read()
        np.testing.assert_array_equal(now, as_given, "a picture's memory was written to before it was encoded")
        picture = av.VideoFrame.from_ndarray(now, format="nv12" if self.pix_fmt == "cuda" else self.pix_fmt)
        picture.pts, picture.time_base, picture.pict_type = frame.pts, frame.time_base, frame.pict_type or 0
        return self._stream.encode(picture)


class Container(Opened):
    """Of ``av.container.OutputContainer``."""

    def __init__(self, container, encoder):
        super().__init__(container)
        self._encoder, self._streams = encoder, []

    def add_stream(self, name, rate=None, options=None):
        if name != "h264_nvenc":
            return self._container.add_stream(name, rate=rate, options=options)
        assert "cq" in options
        self._streams.append(Stream(self._container.add_stream("libx264", rate=rate, options=_OPTIONS), self._encoder))
        return self._streams[-1]


class CudaEncoder:
    """A machine with NVENC; ``install`` puts it there.

    Attributes:
        on_gpu: pictures that came in the GPU's memory.
        on_cpu: those that did not.
        most_held: the most that it held before it read them.
    """

    def __init__(self, at):
        self._at = at
        self.on_gpu = self.on_cpu = self.most_held = 0

    def install(self, monkeypatch):
        from pipeline.sinks import h264, nvenc

        encoder, open_it = self, av.open

        class VideoFrame:
            """Of ``av.VideoFrame``, for the one function that needs a GPU."""

            @staticmethod
            def from_dlpack(planes, format="nv12", width=0, height=0, *, cuda_context):  # noqa: A002 - PyAV's name
                assert format == "nv12"
                assert isinstance(cuda_context, CudaContext)
                luma, chroma = tensors = [_taken(one) for one in planes]
                for one, rows in ((luma, height), (chroma, height // 2)):
                    assert (one.device_type, one.device_id, one.code, one.bits, one.lanes) == (2, 0, 1, 8, 1)
                    assert (one.ndim, one.shape[0], one.shape[1], one.byte_offset) == (2, rows, width, 0)
                    assert one.strides[1] == 1
                assert chroma.strides[0] == luma.strides[0]
                assert luma.strides[0] % 4 == 0, "NVENC takes no other rows"
                assert chroma.data == luma.data + height * luma.strides[0], "NVENC looks for chroma there"
                return CudaFrame(encoder, tensors, (height, width))

        def open_on(file, mode="r", **named):
            container = open_it(file, mode, **named)
            return Container(container, encoder) if mode == "w" else container

        monkeypatch.setattr(nvenc, "VideoFrame", VideoFrame)
        monkeypatch.setattr(nvenc, "CudaContext", CudaContext)
        monkeypatch.setattr(h264, "_nvenc_problem", lambda *_: "")
        monkeypatch.setattr(av, "open", open_on)
