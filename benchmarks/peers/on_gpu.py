"""Ours and PyTorch's loops on an NVIDIA GPU, each in a process of its own, and why there are none on this machine."""

from __future__ import annotations

import ctypes
import importlib
from functools import partial
from pathlib import Path

from benchmarks.peers.commands import OURS, run_with
from benchmarks.peers.runs import Job, Run, Runner
from benchmarks.shared.process import in_its_own_process
from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import NAMES, rebuild_command
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import BackendUnavailableError, PlanError


def require_driver() -> None:
    """Look for NVIDIA's driver, which is quicker than loading PyTorch to be told that there is none.

    Raises:
        BackendUnavailableError: it is not here.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendUnavailableError(
            "not here: expected an NVIDIA GPU with its driver, got none (no libcuda.so.1)"
        ) from error


def our_gpu_run(job: Job, folder: Path) -> Run:
    """The pipeline with the fastest backend on a GPU that the bundle has a plan for; a video."""
    require_plan(job.bundle)
    require_driver()
    return in_its_own_process(_our_gpu_run, job, folder)


def torch_run(job: Job, folder: Path, compiler: str) -> Run:
    """``benchmarks.peers.torch_loops.torch_loop``, where there is a GPU for it."""
    require_driver()
    return in_its_own_process(_torch_run, job, folder, compiler)


def require_plan(bundle: Bundle, runtime: str | None = None) -> None:
    """See that a bundle has a plan for a runtime, or for any.

    Raises:
        BackendUnavailableError: it has none, with the command that builds one.
    """
    built = [entry.runtime for entry in bundle.manifest.engines]
    if not any(name in built for name in (NAMES if runtime is None else [runtime])):
        raise BackendUnavailableError(
            f"not here: the bundle has no plan for {'a GPU' if runtime is None else NAMES[runtime]}: build one with: "
            f"{rebuild_command(bundle, runtime or 'tensorrt')}"
        )


def open_gpu_engine(bundle: Bundle) -> Engine:
    """The fastest engine on this machine's GPU that the bundle has a plan for.

    Raises:
        BackendUnavailableError: no plan runs here.
    """
    built = [entry.runtime for entry in bundle.manifest.engines]
    reasons = []
    for name in NAMES:
        if name in built:
            try:
                return open_engine(bundle, name)
            except (BackendUnavailableError, PlanError) as error:
                reasons.append(str(error))
    raise BackendUnavailableError(f"not here: {'; '.join(reasons)}")


def _our_gpu_run(job: Job, folder: Path) -> Run:
    with open_gpu_engine(job.bundle) as engine:
        return run_with(engine, job, folder, "overlay", "video.mp4")


def _torch_run(job: Job, folder: Path, compiler: str) -> Run:
    try:
        loops = importlib.import_module("benchmarks.peers.torch_loops")
    except (ImportError, OSError) as error:  # a broken native library raises OSError
        raise BackendUnavailableError(
            f"not here: PyTorch cannot be loaded ({error}): pip install 'edgemask[compile]'"
        ) from error
    run: Run = loops.torch_loop(job, folder, compiler)
    return run


ON_GPU = "video_gpu"
"""Ours on a GPU, by its key; not on every machine, unlike the others of ours."""

ALL_OURS: dict[str, tuple[str, Runner]] = {
    **OURS,
    ON_GPU: ("video, in a process, on a GPU", our_gpu_run),
}
"""``OURS``, and the one that GPU loops are compared with."""

TORCH_COMPILE = partial(torch_run, compiler="torch.compile")
TORCH_TENSORRT = partial(torch_run, compiler="torch-tensorrt")
