"""The GPU of this machine, as far as a build needs to know it, and what runs plans on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines.kinds import ENGINES
from pipeline.engines.tensorrt_library import load_tensorrt
from pipeline.errors import BackendUnavailableError
from pipeline.machine.gpu import pycuda_command
from pipeline.machine.probe import Facts


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
        BackendUnavailableError: there is none that CUDA can use, or PyCUDA, which looks, is not here.
    """
    try:
        from pipeline.engines.cuda_device import CudaDevice
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"the GPU cannot be asked ({error}): install the NVIDIA driver, and PyCUDA with: "
            f"{pycuda_command(Facts(Path('/'), {}, {}, os.environ))}; python -m pipeline.doctor says what is missing"
        ) from error
    try:
        device = CudaDevice()
        with device:
            free_bytes = device.free_bytes
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{error}: python -m pipeline.doctor says what mends it") from error
    if device.integrated:
        # CUDA leaves out what the system would give back: page cache, most of a Jetson's memory after some work.
        free_bytes = max(free_bytes, available_bytes(Path("/proc/meminfo").read_text(encoding="ascii")))
    return Gpu(device.name, device.sm, free_bytes)


def first_runtime() -> str:
    """The first of ``BUILT_FROM_PROGRAM`` that can build and run plans here.

    Raises:
        BackendUnavailableError: none can; with what is missing.
    """
    problem = None
    for runtime in BUILT_FROM_PROGRAM:
        try:
            load_tensorrt(runtime)
        except BackendUnavailableError as error:
            problem = problem or error
            continue
        gpu = find_gpu()
        capabilities = ENGINES[runtime].capabilities
        if not capabilities or divmod(gpu.sm, 10) in capabilities:
            return runtime
    assert problem is not None
    raise problem


def available_bytes(meminfo: str) -> int:
    """``MemAvailable`` of Linux's ``/proc/meminfo``, in bytes; 0 if it is not in there."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
