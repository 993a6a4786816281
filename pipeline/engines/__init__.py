"""The backends: one file each, which says what it needs; imported only when asked for."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines.kinds import ENGINES, EngineKind
from pipeline.errors import BackendUnavailableError, BuildError, BundleError, EdgemaskError, OptionError, PlanError
from pipeline.machine.gpu_sign import is_seen
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.engines.base import Engine
    from pipeline.engines.choices import Way
    from pipeline.engines.server_options import ServerOptions

__all__ = ["ENGINES", "EngineKind", "Rebuild", "is_here", "is_undecided", "open_engine", "usable_runtime"]

log = logger_of(__name__)

Rebuild = Callable[[Bundle, str, str], Bundle]
"""Of a bundle, a backend and the reason why it has no plan that runs here: has one built, and gives the bundle that has it."""


def open_engine(
    bundle: Bundle,
    backend: str = "auto",
    *,
    overlap: bool = False,
    rebuild: Rebuild | None = None,
    servers: ServerOptions | None = None,
    tune: bool = False,
) -> Engine:
    """Make the engine that runs a bundle's frame program.

    Args:
        bundle: a bundle that was read, and so checked.
        backend: a key of ``ENGINES``, or "auto": the first of ours that the bundle has a plan for and this machine can run, or a
            plan that is built for the GPU of this machine, else the first that runs on a CPU. A backend of another package is taken
            only by its name.
        overlap: on a CPU, two frames at once on half of the cores each: more of them a second, and each takes longer. A GPU has
            several in flight in any case.
        rebuild: makes a plan where none is there or it does not fit this machine, such as ``pipeline.builds.build_half.rebuild_plan``;
            None to refuse.
        servers: that compute, for a backend whose servers do; None: there are none.
        tune: where it has not been found out, do so while frames go through the engine, and go on with the fastest way that agrees:
            for cameras and long videos.

    Where "auto" cannot use a GPU that is here or that the bundle was built for, the log says why.

    Raises:
        OptionError: there is no such backend, or servers are missing or not taken by it.
        BackendUnavailableError: its packages or its device are not on this machine.
        PlanError: the bundle's plan does not fit this machine, and was not to be rebuilt.
        BundleError: the backend cannot load the program.
    """
    if backend != "auto" and backend not in ENGINES:
        raise OptionError(f"--backend: expected auto or one of {', '.join(ENGINES)}, got {backend!r}")
    is_remote = backend != "auto" and ENGINES[backend].remote
    if servers is not None:
        if not is_remote:
            remote = " or ".join(name for name, kind in ENGINES.own.items() if kind.remote)
            raise OptionError(f"--server: expected --backend {remote} beside it, got {backend}")
        return _for_frames(_load(ENGINES[backend])(bundle, servers))
    if is_remote:
        raise OptionError(f"--backend {backend}: expected --server grpc://HOST:PORT beside it, got none")
    if backend != "auto" and not ENGINES[backend].precisions:
        return _open(bundle, ENGINES[backend], overlap, rebuild)
    sees_gpu = backend == "auto" and is_seen(Path("/"), os.environ)
    if (kept := _open_kept(bundle, backend, overlap, on_gpu=sees_gpu)) is not None:
        return kept
    if backend == "auto":
        engine, name = _guess(bundle, overlap, rebuild)
    else:
        engine, name = _open(bundle, ENGINES[backend], overlap, rebuild), backend
    return _tuned(engine, name, backend, overlap) if tune and not engine.keeps_state else engine


def _open_kept(bundle: Bundle, backend: str, overlap: bool, *, on_gpu: bool) -> Engine | None:
    """The engine of the way that was found to be the fastest here; None where none was, or it cannot be taken any more.

    Args:
        bundle: as ``open_engine`` has it, as the two that follow.
        backend: asked for.
        overlap: on a CPU.
        on_gpu: only one on a GPU: what is not used of a GPU that is here is found out each time.
    """
    ways = _ways(bundle, backend)
    if len(ways) < 2:
        return None
    from pipeline.engines.choices import Choices  # not at the top: --help reads this module

    choice = Choices(bundle, ways, overlap=overlap).read()
    if choice is None or (on_gpu and not ENGINES[choice.taken.backend].gpu):
        return None
    try:
        return _open(bundle, ENGINES[choice.taken.backend], overlap, None, choice.taken.precision)
    except (BackendUnavailableError, PlanError, BundleError) as error:
        log.info(f"{choice.taken}, which was the fastest here, cannot be taken: {error}")
        return None


def _ways(bundle: Bundle, backend: str) -> list[Way]:
    """The ways in which a bundle may be run on this machine, as far as that is known without loading anything."""
    from pipeline.engines.choices import Way

    planned = {entry.runtime for entry in bundle.manifest.engines}
    kinds = [kind for kind in ENGINES.own.values() if not kind.remote] if backend == "auto" else [ENGINES[backend]]
    sees_gpu = any(kind.gpu for kind in kinds) and is_seen(Path("/"), os.environ)
    ways = []
    for kind in kinds:
        if kind.gpu and not (sees_gpu and (kind.name in planned or not kind.plans)):
            continue
        if not is_here(kind):
            continue
        ways += [Way(kind.name, precision) for precision in kind.precisions or ("",)]
    return ways


def is_here(kind: EngineKind) -> bool:
    """Whether a backend's device and package are on this machine, as far as that is known without loading anything.

    Of NVIDIA's GPUs nothing is said: whether one is seen is ``pipeline.machine.gpu_sign``'s, and what its backends need is found out
    when one is opened.
    """
    if kind.device_files and not any(glob.glob(pattern) for pattern in kind.device_files):
        return False
    return kind.gpu or not kind.needs or _is_installed(kind.needs[0])


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # of what somebody has put in its place
        return False


def is_undecided(bundle: Bundle, backend: str, *, overlap: bool) -> bool:
    """Whether ``open_engine`` with ``tune`` would find out what is faster: there are several ways, and none was chosen yet."""
    ways = _ways(bundle, backend)
    if len(ways) < 2:
        return False
    from pipeline.engines.choices import Choices

    return Choices(bundle, ways, overlap=overlap).read() is None


def _tuned(engine: Engine, name: str, backend: str, overlap: bool) -> Engine:
    """An engine around that of the guess, which finds out what is faster; the same where there is no other way."""
    bundle = engine.bundle
    ways = _ways(bundle, backend)
    if len(ways) < 2:
        return engine
    from pipeline.engines.choices import Choices, Way
    from pipeline.engines.measured import MeasuredEngine
    from pipeline.engines.trial import Trial

    choices = Choices(bundle, ways, overlap=overlap)
    if choices.read() is not None:
        return engine
    precisions = ENGINES[name].precisions
    guess = Way(name, precisions[-1] if precisions else "")
    # What the program is compared with: in FP32 on ONNX Runtime; where there is none, what went through the gate, there too.
    is_reference = name == "onnxruntime" and bundle.reference_path in (bundle.program_path, None)
    trial = Trial(
        asked=backend,
        guess=guess,
        ways=ways,
        open_way=lambda way: _open(bundle, ENGINES[way.backend], overlap, None, way.precision),
        open_reference=None if is_reference else partial(_open_reference, bundle),
        choices=choices,
        photographs=_photographs,
    )
    return MeasuredEngine(engine, trial)


def _open_reference(bundle: Bundle) -> Engine:
    """ONNX Runtime on the bundle's program in FP32, or where it has none, on its program."""
    if bundle.reference_path is None:
        return _open(bundle, ENGINES["onnxruntime"], False, None)
    from pipeline.engines.reference import open_reference

    return open_reference(bundle)


def _photographs(engine: Engine) -> Sequence[NDArray[np.uint8]]:
    from pipeline.engines.photographs import photographs  # OpenCV

    return photographs(engine, 8)


def _guess(bundle: Bundle, overlap: bool, rebuild: Rebuild | None) -> tuple[Engine, str]:
    """What is taken where nothing is known: a GPU's, else the first that runs on a CPU; and its name."""
    engine, name, problems = _open_on_gpu(bundle, overlap, rebuild)
    if engine is not None:
        return engine, name
    if problems:
        # What could not be built says more than what is not installed.
        told = next((error for error in problems if not isinstance(error, BackendUnavailableError)), problems[-1])
        log.info(f"on the CPU: {told}")
        if (kept := _open_kept(bundle, "auto", overlap, on_gpu=False)) is not None:
            return kept, ""
    on_cpu = next(kind for kind in ENGINES.own.values() if not kind.gpu and not kind.remote)
    return _open(bundle, on_cpu, overlap, rebuild), on_cpu.name


def _open_on_gpu(
    bundle: Bundle, overlap: bool, rebuild: Rebuild | None
) -> tuple[Engine | None, str, Sequence[EdgemaskError]]:
    """The engine of a plan that the bundle has or that is built here, and its name; else None, and why if there is a GPU or plan."""
    built = [entry.runtime for entry in bundle.manifest.engines]
    if strangers := sorted({str(name) for name in built if name and name not in ENGINES}):
        log.info(
            f"{bundle.folder}: its plan for {', '.join(strangers)} is not used: expected one for {', '.join(ENGINES.own)}, or the "
            "package that brings this backend"
        )
    names = [name for name, kind in ENGINES.own.items() if kind.plans and name in built]
    problems: list[EdgemaskError] = []

    def attempt(name: str) -> Engine | None:
        with ExitStack() as stack:
            try:
                engine = _open(bundle, ENGINES[name], overlap, rebuild)
                stack.callback(engine.close)
                engine.try_out()
            except (BackendUnavailableError, PlanError, BuildError) as error:
                problems.append(error)
                return None
            stack.pop_all()
            return engine

    for name in names:
        if (engine := attempt(name)) is not None:
            return engine, name, ()
    if rebuild is not None:
        try:
            runtime = usable_runtime()
        except BackendUnavailableError as error:
            problems.append(error)
        else:
            if runtime is not None and runtime not in names and (engine := attempt(runtime)) is not None:
                return engine, runtime, ()
    programs = [name for name, kind in ENGINES.own.items() if kind.gpu and not kind.plans]
    for name in programs if programs and is_seen(Path("/"), os.environ) else ():
        if (engine := attempt(name)) is not None:
            return engine, name, ()
    return None, "", problems


def usable_runtime() -> str | None:
    """The first backend that can build plans and run them on the GPU of this machine; None, at once, where no GPU is seen.

    Raises:
        BackendUnavailableError: a GPU is here that cannot be used; with what is missing.
    """
    if not is_seen(Path("/"), os.environ):
        return None
    from pipeline.engines.gpu import first_runtime  # not at the top: a machine without a GPU need not load it

    return first_runtime()


def _load(kind: EngineKind) -> Callable[..., Engine]:
    make: Callable[..., Engine] = ENGINES.load(kind, f"backend {kind.name!r} cannot be loaded here")
    return make


def _open(bundle: Bundle, kind: EngineKind, overlap: bool, rebuild: Rebuild | None, precision: str = "") -> Engine:
    make = _load(kind)
    if precision:
        make = partial(make, precision=precision)
    if overlap and kind.overlaps and len(os.sched_getaffinity(0)) > 1:
        make = partial(make, at_once=2)
    try:
        engine = make(bundle)
        return _for_frames(engine) if kind.gpu else _for_large_frames(_for_frames(engine))
    except PlanError as error:
        if rebuild is None or kind.name not in BUILT_FROM_PROGRAM:
            raise
        reason = str(error)
    return _for_frames(make(rebuild(bundle, kind.name, reason)))


def _for_frames(engine: Engine) -> Engine:
    """One for whole frames, where the program takes tiles of them."""
    tiles = engine.bundle.manifest.tiles
    if tiles is None:
        return engine
    from pipeline.engines.tiled import TiledEngine

    return TiledEngine(engine, tiles)


def _for_large_frames(engine: Engine) -> Engine:
    """One that takes little memory for large pictures, if the program takes BGR frames of any size and averages the whole of each."""
    manifest = engine.bundle.manifest
    contract = manifest.contract
    is_for_any = manifest.frame_size_hw is None and manifest.pixels == "bgr"
    averages = contract.get("filter") == "area" and contract.get("fit") == "stretch"
    if not (is_for_any and averages) or engine.keeps_state:  # who keeps a state must get each frame once
        return engine
    from pipeline.engines.large_frames import LargeFrameEngine

    return LargeFrameEngine(engine)
