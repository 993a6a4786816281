"""The GPU of the machine that builds, as far as a build needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BackendUnavailableError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that is here.

    Attributes:
        name: such as "NVIDIA GeForce RTX 4090".
        sm: compute capability without the dot, such as 89.
        free_bytes: memory that can still be had.
    """

    name: str
    sm: int
    free_bytes: int


def find_gpu() -> Gpu:
    """Look at the first GPU of this machine.

    Raises:
        BackendUnavailableError: there is none, or PyCUDA, which looks, is not here.
    """
    try:
        from pipeline.engines.cuda_device import CudaDevice
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"the GPU cannot be asked ({error}): install the NVIDIA driver, and PyCUDA with: pip install '.[pycuda]'; "
            "python -m pipeline.doctor says what is missing"
        ) from error
    device = CudaDevice()
    with device:
        free_bytes = device.free_bytes
    if device.integrated:
        # CUDA leaves out what the system would give back: page cache, most of a Jetson's memory after some work.
        free_bytes = max(free_bytes, available_bytes(Path("/proc/meminfo").read_text(encoding="ascii")))
    return Gpu(device.name, device.sm, free_bytes)


def available_bytes(meminfo: str) -> int:
    """``MemAvailable`` of Linux's ``/proc/meminfo``, in bytes; 0 if it is not in there."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
