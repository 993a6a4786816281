"""Which plan of a bundle fits this machine, and that it is what was compiled: checked before TensorRT sees a byte of it.

A plan is native code for one GPU and one version of TensorRT. Deserialising another is at best an error in TensorRT's words and at
worst a crash, and one that somebody changed runs what they like.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from pipeline.bundles.bundle import MANIFEST_NAME, Bundle
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.bundles.regular_file import open_without_waiting
from pipeline.errors import BackendUnavailableError, BundleError, PlanError

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "torch-tensorrt": "Torch-TensorRT"}
"""Runtimes that run plans, as they are called in messages."""

BUILT_FROM_PROGRAM = ("tensorrt", "tensorrt-rtx")
"""Those whose plans are built from a bundle's ``program.onnx``; the other one takes the trained network."""


def read_plan(bundle: Bundle, runtime: str, version: str, sm: int | None, device: str) -> tuple[PlanEntry, bytes]:
    """Find the plan for a runtime and a GPU, check it and read it.

    Args:
        bundle: a bundle that was read.
        runtime: a key of ``NAMES``.
        version: of the runtime that will load it, complete.
        sm: compute capability of the GPU without the dot, such as 86; None if there is no GPU.
        device: the GPU's name, or why there is none.

    Returns:
        The plan's entry in the manifest, and its content: the bytes that were checked, whatever happens to the file later.

    Raises:
        BackendUnavailableError: there is no GPU.
        PlanError: there is none for this runtime, version and GPU, or the file was changed, cut off, or can be changed by anyone.
        BundleError: the manifest's entry is damaged.
    """
    name = NAMES[runtime]
    command = rebuild_command(bundle, runtime)
    entries = [_checked(bundle, entry) for entry in bundle.manifest.engines if entry.runtime == runtime]
    if sm is None:
        built_for = sorted({built for entry in entries for built in entry.sms})
        expected = f" of compute capability {_dotted(built_for)}" if built_for else ""
        raise BackendUnavailableError(
            f"{bundle.folder}: expected an NVIDIA GPU{expected} for {name}, got none ({device}): take --backend onnxruntime, "
            f"or on a machine with a GPU rebuild it with: {command}"
        )
    if not entries:
        raise PlanError(
            f"{bundle.folder}: expected a plan for {name} {version} and compute capability {_dotted([sm])} ({device}), "
            f"got none: build it with: {command}"
        )
    loadable = [entry for entry in entries if _version_fits(entry, version)]
    if not loadable:
        raise PlanError(
            f"{_path(bundle, entries)}: expected a plan of {name} {version}, which is here, "
            f"got one of {_joined(entry.version for entry in entries)}: rebuild it with: {command}"
        )
    fitting = [entry for entry in loadable if _sm_fits(entry, sm)]
    if not fitting:
        raise PlanError(
            f"{_path(bundle, loadable)}: expected a plan for compute capability {_dotted([sm])} ({device}), "
            f"got one for {_dotted(sorted({built for entry in loadable for built in entry.sms}))}: rebuild it with: {command}"
        )
    # The plain one before the compatible ones, which are slower; the newest first.
    entry = min(reversed(fitting), key=lambda entry: (entry.hardware != "same", entry.version_compatible))
    return entry, _read(bundle, entry, command)


def rebuild_command(bundle: Bundle, runtime: str) -> str:
    """What builds the plan for the GPU of the machine that it is run on, from the bundle's own program if that is enough."""
    import shlex

    if runtime not in BUILT_FROM_PROGRAM:
        weights = shlex.quote(str(bundle.manifest.weights.get("file", "FILE")))
        return f"python -m compile --weights {weights} --target {runtime} --output {shlex.quote(str(bundle.folder))}"
    return f"python -m compile --bundle {shlex.quote(str(bundle.folder))} --target {runtime}"


def _read(bundle: Bundle, entry: PlanEntry, command: str) -> bytes:
    import hashlib

    path = bundle.folder / entry.file
    try:
        for other in (bundle.folder, bundle.folder / MANIFEST_NAME, path.parent):
            _check_mode(str(other), os.stat(other).st_mode, command)
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PlanError(f"{path}: expected a file, got something else: rebuild it with: {command}")
            _check_mode(str(path), status.st_mode, command)
            if status.st_size != entry.size_bytes:
                raise PlanError(
                    f"{path}: expected {entry.size_bytes} bytes, got {status.st_size}: the file was cut off or replaced, "
                    f"rebuild it with: {command}"
                )
            content = file.read()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}): rebuild it with: {command}") from error
    expected, got = str(bundle.manifest.files[entry.file]), hashlib.sha256(content).hexdigest()
    if got != expected:
        raise PlanError(
            f"{path}: expected sha256 {expected[:12]}…, got {got[:12]}…: the file was changed or damaged, rebuild it with: {command}"
        )
    return content


def _check_mode(path: str, mode: int, command: str) -> None:
    if mode & stat.S_IWOTH:
        raise PlanError(
            f"{path}: expected permissions {stat.S_IMODE(mode) & ~stat.S_IWOTH:o}, got {stat.S_IMODE(mode):o}: anyone may change "
            f"what is run here; chmod o-w it, and if in doubt rebuild it with: {command}"
        )


def _checked(bundle: Bundle, entry: PlanEntry) -> PlanEntry:
    if not entry.is_complete(bundle.manifest.pixels) or entry.file not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder / MANIFEST_NAME}: expected file, version, size_bytes, sms and profile for each engine, "
            f"got {', '.join(entry.keys) or 'nothing'}: compile the bundle again"
        )
    return entry


def _version_fits(entry: PlanEntry, version: str) -> bool:
    if entry.version == version:
        return True
    # A version-compatible plan also loads in a later TensorRT, the next major one included, never in an earlier one.
    return entry.version_compatible and _numbers(entry.version) < _numbers(version)


def _sm_fits(entry: PlanEntry, sm: int) -> bool:
    return sm in entry.sms or (entry.hardware == "ampere+" and sm >= 80)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _dotted(sms: Sequence[int]) -> str:
    return ", ".join(f"{sm // 10}.{sm % 10}" for sm in sms)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _path(bundle: Bundle, entries: Sequence[PlanEntry]) -> str:
    return str(bundle.folder / entries[0].file) if len(entries) == 1 else f"{bundle.folder}: {len(entries)} plans"
