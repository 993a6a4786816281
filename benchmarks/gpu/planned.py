"""A bundle with plans for the GPU that is here, of each TensorRT that runs on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compile.plans.tensorrt_build import PlanOptions, build_plan
from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines.gpu import find_gpu
from pipeline.engines.kinds import ENGINES
from pipeline.engines.tensorrt_library import load_tensorrt
from pipeline.errors import BackendUnavailableError


def usable_runtimes() -> list[str]:
    """Those of TensorRT and TensorRT-RTX that build plans and run them here, the first choice first.

    Raises:
        BackendUnavailableError: none does; with what is missing for the first.
    """
    found, problems = [], []
    for runtime in BUILT_FROM_PROGRAM:
        try:
            load_tensorrt(runtime)
        except BackendUnavailableError as error:
            problems.append(str(error))
            continue
        capability = divmod(find_gpu().sm, 10)
        supported = ENGINES[runtime].capabilities
        if supported and capability not in supported:
            problems.append(f"{runtime}: it does not run on GPUs of compute capability {capability[0]}.{capability[1]}")
        else:
            found.append(runtime)
    if not found:
        raise BackendUnavailableError("; ".join(problems))
    return found


def with_plans(bundle: Bundle, folder: Path) -> Bundle:
    """Write a copy of a bundle with a plan of each, built from its program without the gate.

    Raises:
        BackendUnavailableError: see ``usable_runtimes``.
        CompileError: a plan cannot be built.
    """
    gpu, program = find_gpu(), bundle.program_path.read_bytes()
    files = {name: (bundle.folder / name).read_bytes() for name in bundle.manifest.files}
    entries = []
    for runtime in usable_runtimes():
        options = PlanOptions(
            runtime, (gpu.sm,) if runtime == "tensorrt-rtx" else (), gpu, pixels=bundle.manifest.pixels
        )
        plan = build_plan(program, options)
        entries.append(plan.entry(bundle.manifest.precision))
        files[entries[-1].file] = plan.content
    return Bundle.write(folder, replace(bundle.manifest, engines=tuple(entries)), files)
