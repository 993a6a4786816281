"""PyAV as it decodes on a GPU, without one: real pictures of FFmpeg, handed on as it hands on those that lie on a device.

Only what PyAV's classes have is public. The memory of a picture is the test's (``Placed``); its content is there when the test says.
"""

import resource

import av
import numpy as np
from av.codec.hwaccel import HWAccel

_STORED = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}
_OWN = ("format", "sw_format", "planes", "reformat")
_PASSED_ON = (
    *("width", "height", "pts", "time_base", "interlaced_frame", "rotation", "side_data", "is_corrupt"),
    *("color_range", "color_trc", "color_primaries", "colorspace"),
)
PITCH = 256
"""Of rows in a device's memory: a multiple of this many bytes."""


class Placed:
    """The bytes of a picture in memory that a test gives it; to be replaced.

    Args:
        planes: (rows, bytes) uint8 each, with the gaps after the rows.
    """

    def __init__(self, planes):
        self._planes = planes
        self.addresses = [plane.ctypes.data for plane in planes]


class CudaPlane:
    """Of ``av.video.plane.VideoPlane``."""

    def __init__(self, buffer_ptr, line_size):
        self.buffer_ptr, self.line_size = buffer_ptr, line_size

    def __buffer__(self, _):
        raise TypeError("Hardware frame planes do not support the Python buffer protocol.")


class CudaFrame:
    """Of ``av.VideoFrame``: one whose format is "cuda"."""

    def __init__(self, decoded, stored, place):
        self._decoded, self._host = decoded, decoded.reformat(format=stored)
        self.format, self.sw_format = av.VideoFormat("cuda", decoded.width, decoded.height), self._host.format
        rows = [np.asarray(memoryview(plane)).reshape(-1, plane.line_size) for plane in self._host.planes]
        pitch = -(-max(one.shape[1] for one in rows) // PITCH) * PITCH
        self._placed = place([np.pad(one, ((0, 0), (0, pitch - one.shape[1]))) for one in rows])
        self.planes = tuple(CudaPlane(address, pitch) for address in self._placed.addresses)

    def reformat(self, *, format):  # noqa: A002 - PyAV's name
        return self._host.reformat(format=format)

    def __getattr__(self, name):
        if name in _PASSED_ON:
            return getattr(self._decoded, name)
        raise AttributeError(name)


class Packet:
    """Of ``av.Packet``."""

    def __init__(self, packet, on_device):
        self._packet, self._on_device = packet, on_device

    def decode(self):
        return [self._on_device(one) for one in self._packet.decode()]

    def __getattr__(self, name):
        return getattr(self._packet, name)


class Opened:
    """A container of PyAV's, all of which is as it was but for what a class below says."""

    def __init__(self, container):
        self._container = container

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        return getattr(self._container, name)


class Container(Opened):
    """Of ``av.container.InputContainer``."""

    def __init__(self, container, on_device):
        super().__init__(container)
        self._on_device = on_device

    def demux(self, *streams):
        return (Packet(packet, self._on_device) for packet in self._container.demux(*streams))

    def decode(self, stream):
        return (self._on_device(one) for one in self._container.decode(stream))


class CudaDecoder:
    """A machine whose FFmpeg decodes on a GPU; ``install`` puts it there.

    Attributes:
        place: makes a picture's planes a ``Placed``.
        made: the accelerators that found their device.
        problem: raised where one looks for it.
        decodes: codecs of NVDEC.
    """

    def __init__(self, place=Placed):
        self.place, self.made, self.problem = place, [], None
        self.decodes = {"h264", "hevc"}
        self.frames = 0

    def install(self, monkeypatch):
        from pipeline.sources import nvdec

        decoder, open_it = self, av.open

        class Accelerator:
            """Of ``av.codec.hwaccel.HWAccel``."""

            def __init__(self, *arguments, **named):
                self._real = HWAccel(*arguments, **named)  # which refuses what it does not take
                assert self._real.is_hw_owned, "pictures would come down"
                assert self._real.options == {"primary_ctx": "1"}, "not the context that engines use"

            def create(self, codec):
                assert isinstance(codec, av.Codec)
                if decoder.problem is not None:
                    raise decoder.problem
                self.limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
                decoder.made.append(self)
                return self

        def open_on(file, *arguments, hwaccel=None, **named):
            container = open_it(file, *arguments, **named)
            if hwaccel is None:
                return container
            assert isinstance(hwaccel, Accelerator)
            hwaccel.create(av.Codec("h264", "r"))
            return Container(container, decoder._on_device)

        nvdec.require_gpu.cache_clear()
        monkeypatch.setattr(nvdec, "_KEPT", [])
        monkeypatch.setattr(nvdec, "HWAccel", Accelerator)
        monkeypatch.setattr(av, "open", open_on)

    def _on_device(self, decoded):
        stored = _STORED.get(decoded.format.name)
        if stored is None:
            return decoded  # FFmpeg has decoded it itself
        self.frames += 1
        return CudaFrame(decoded, stored, self.place)


class OnFakeGpu:
    """Puts decoded pictures into the memory of ``fake_gpu`` as FFmpeg does: what fills the memory is queued on the default stream.

    Their memory is another's when the picture is gone; whoever still reads it then is at fault.
    """

    def __init__(self, machine):
        self._gpu, self._unwritten, self._work = machine.gpu, machine.cuda.UNWRITTEN, machine.cuda.Work

    def __call__(self, planes):
        return _Placed(self._gpu, self._unwritten, self._work, planes)


class _Placed:
    def __init__(self, gpu, unwritten, work, planes):
        self._gpu, self._unwritten = gpu, unwritten
        self._memory = [np.full(plane.size, unwritten, np.uint8) for plane in planes]
        self.addresses = [gpu.map(one) for one in self._memory]
        memory = self._memory

        def fill():
            for one, plane in zip(memory, planes, strict=True):
                one[:] = plane.ravel()

        gpu.put(None, work("decode", fill))

    def __del__(self):
        for address, one in zip(self.addresses, self._memory, strict=True):
            self._gpu.unused(one, "a decoded picture")
            self._gpu.memory.pop(address, None)
            one[:] = self._unwritten
