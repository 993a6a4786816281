"""The build half, run from the run half: in a process of its own, so that its memory and its PyTorch are gone when it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.bundles.bundle import MANIFEST_NAME, PLANS, PROGRAM_NAME, Bundle, cache_folder
from pipeline.bundles.file_lock import one_maker
from pipeline.bundles.plan import read_plan, rebuild_command
from pipeline.errors import ERRORS_VARIABLE, BuildError, BundleError, PlanError
from pipeline.own_process import module_command
from pipeline.terminal import logger_of

log = logger_of(__name__)

_WRITABLE = os.W_OK | os.X_OK


def compile_in_process(arguments: Sequence[str], inherited: Sequence[int] = (), *, quiet: bool = False) -> None:
    """Run ``python -m compile`` with these arguments; what it does it says on standard error.

    Args:
        arguments: of the command line.
        inherited: descriptors that it shall have too.
        quiet: it says nothing.

    Raises:
        BuildError: it failed; with its own sentence.
    """
    _run("compile", [*arguments, *(["--quiet"] if quiet else [])], inherited)


def told_by(module: str, arguments: Sequence[str]) -> str:
    """Run a module of the build half with these arguments, and give what it prints on standard output.

    Args:
        module: such as "compile.inspect".
        arguments: of its command line.

    Raises:
        BuildError: it failed; with its own sentence.
    """
    return _run(module, arguments, (), told=True)


def _run(module: str, arguments: Sequence[str], inherited: Sequence[int], *, told: bool = False) -> str:
    import shlex  # both: each run imports this file, and few make anything
    import subprocess

    errors, its_errors = os.pipe()
    with open(errors, encoding="utf-8", errors="replace") as sentence:
        try:
            done = subprocess.run(
                [*module_command(module), *arguments],
                env={**os.environ, ERRORS_VARIABLE: str(its_errors)},
                stdout=subprocess.PIPE if told else sys.stderr,
                pass_fds=(its_errors, *inherited),
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        finally:
            os.close(its_errors)
        if done.returncode != 0:
            raise BuildError(
                sentence.read() or f"python -m {module} {shlex.join(arguments)}: {_ending(done.returncode)}"
            )
    return done.stdout or ""


def rebuild_plan(bundle: Bundle, runtime: str, reason: str, *, quiet: bool = False) -> Bundle:
    """Have a bundle's plan for this machine's GPU built from the bundle's own program, by one process of several that want it.

    Args:
        bundle: on disk; it gets the plan, and loses one for the same runtime and GPU. Where it cannot be written its plans are
            kept in the cache folder, beside a copy of its program.
        runtime: as ``--target`` names it.
        reason: why the bundle's own plan, if it has one, does not do; logged where a plan is built in the place of one.
        quiet: show nothing of the build itself.

    Returns:
        The bundle that has the plan.

    Raises:
        BuildError: it cannot be built or kept here; with the command that tries again.
        BundleError: the bundle was changed meanwhile.
    """
    if bundle.manifest.for_cpu:
        raise BuildError(
            f"{bundle.folder}: expected a program that a plan can be built from, got INT8 for CPUs: compile the network itself "
            f"for this GPU with --target {runtime}"
        )
    place = plans_place(bundle)
    with one_maker(place, cache_folder() / "locks") as inherited:
        try:
            there = Bundle.read(place)
        except BundleError:
            if place == bundle.folder:
                raise
            there = _copy(bundle, place)
        if there.manifest.files != bundle.manifest.files:
            problem = _problem(there, runtime)
            if problem is None:
                return there
            reason = problem if _has_plan(there, runtime) else reason
        if _has_plan(bundle, runtime) or _has_plan(there, runtime):
            log.info(f"{reason}: done now")
        try:
            compile_in_process(["--bundle", str(place), "--target", runtime], inherited, quiet=quiet)
        except BuildError as error:
            less = " --workspace 1" if "memory" in str(error).lower() else ""
            raise BuildError(f"{error}: try again with: {rebuild_command(there, runtime)}{less}") from error
        return Bundle.read(place)


def plans_place(bundle: Bundle) -> Path:
    """Where the plans of a bundle are kept that are built here: in it, for it is replaced by one that has them, or in the cache.

    In the cache are those of bundles that are part of this package, that may not be written, or that hold files of somebody else's.
    """
    folder = Path(os.path.realpath(bundle.folder))
    is_ours_to_replace = (
        not folder.is_relative_to(Path(__file__).resolve().parents[1])
        and not os.path.ismount(folder)
        and bool(folder.stat().st_mode & 0o222)  # who is root may write what nobody is meant to
        and all(os.access(path, _WRITABLE) for path in (folder, folder.parent))
        and set(os.listdir(folder)) <= {MANIFEST_NAME, PLANS.rstrip("/"), *bundle.manifest.files}
    )
    return bundle.folder if is_ours_to_replace else cache_folder() / "plans" / bundle.manifest.files[PROGRAM_NAME][:32]


def _copy(bundle: Bundle, place: Path) -> Bundle:
    """The bundle without its plans, in the cache."""
    names = [name for name in bundle.manifest.files if not name.startswith(PLANS)]
    try:
        files = {name: (bundle.folder / name).read_bytes() for name in names}
        return Bundle.write(place, replace(bundle.manifest, engines=()), files)
    except (BundleError, OSError) as error:
        raise BuildError(
            f"{bundle.folder}: expected to keep a plan in it or in {place.parent}, got neither written ({error}): "
            "name a folder for it with EDGEMASK_CACHE=DIR"
        ) from error


def _problem(bundle: Bundle, runtime: str) -> str | None:
    """Why no plan of the bundle runs here; None if one does."""
    from pipeline.engines.gpu import find_gpu
    from pipeline.engines.tensorrt_library import load_tensorrt

    gpu = find_gpu()
    try:
        read_plan(bundle, runtime, str(load_tensorrt(runtime).__version__), gpu.sm, gpu.name)
    except PlanError as error:
        return str(error)
    return None


def _has_plan(bundle: Bundle, runtime: str) -> bool:
    return any(entry.runtime == runtime for entry in bundle.manifest.engines)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    killed = ", for want of memory?" if status == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{killed}"
