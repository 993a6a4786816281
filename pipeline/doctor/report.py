"""The report: every subject asked on its own, so that none can take the others down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pipeline.doctor import cameras, media, packages
from pipeline.doctor.backends import Backend, automatic, judge
from pipeline.engines.kinds import ENGINES, EngineKind
from pipeline.machine import gpu, machine
from pipeline.machine.probe import Facts, Finding, Question, ask

_SUBJECTS: tuple[tuple[str, str, Callable[[Facts], list[Finding]]], ...] = (
    # key and title of the row if the subject fails, what makes its rows
    ("system", "System", machine.system_findings),
    ("jetson", "Jetson", machine.jetson_findings),
    ("memory", "Memory", machine.memory_findings),
    ("gpu", "GPU", gpu.gpu_findings),
    ("cuda_toolkit", "CUDA toolkit", gpu.toolkit_findings),
    ("onnxruntime", "ONNX Runtime", packages.onnxruntime_findings),
    ("openvino", "OpenVINO", packages.openvino_findings),
    ("intel_gpu", "Intel GPU", partial(packages.intel_findings, "GPU")),
    ("intel_npu", "Intel NPU", partial(packages.intel_findings, "NPU")),
    ("tensorrt", "TensorRT", packages.tensorrt_findings),
    ("tensorrt_rtx", "TensorRT-RTX", packages.tensorrt_rtx_findings),
    ("pycuda", "PyCUDA", packages.pycuda_findings),
    ("torch_tensorrt", "Torch-TensorRT", packages.torch_findings),
    ("compile", "Build half", packages.build_half_findings),
    ("opencv", "OpenCV", media.opencv_findings),
    ("gstreamer", "GStreamer", media.gstreamer_findings),
    ("pyav", "PyAV", media.video_findings),
    ("display", "Display", media.display_findings),
    ("cameras", "Cameras", cameras.camera_findings),
)
_QUESTIONS = {
    "machine": machine.questions,
    "gpu": gpu.questions,
    "packages": packages.questions,
    "media": media.questions,
    "cameras": cameras.questions,
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        findings: the rows, in the order in which they are shown.
        backends: what each backend can do here.
        auto: what ``--backend auto`` takes for a bundle that has plans for this machine; None if nothing can run.
    """

    findings: tuple[Finding, ...]
    backends: tuple[Backend, ...]
    auto: str | None


def gather(root: Path) -> Facts:
    """Ask this machine, each question that could crash or hang in a process of its own."""
    asked: dict[str, Question] = {}
    failed: list[Finding] = []
    for subject, questions in _QUESTIONS.items():
        try:
            asked |= _guarded(partial(questions, root, os.environ))
        except _ProbeError as error:
            failed.append(Finding(f"questions_{subject}", "Questions", "note", f"{subject}: {error}"))
    for package in _other_packages():
        try:
            asked |= _guarded(partial(packages.import_question, package))
        except _ProbeError as error:
            failed.append(Finding(f"questions_{package}", "Questions", "note", f"{package}: {error}"))
    return Facts(root, _versions(), ask(asked), dict(os.environ), tuple(failed))


def examine(facts: Facts, order: Iterable[str] | None = None) -> Report:
    """Make the report; ``order`` is the one in which ``--backend auto`` tries backends; None: that of ours."""
    findings = list(facts.failed)
    for key, title, make in _SUBJECTS:
        try:
            findings += _guarded(partial(make, facts))
        except _ProbeError as error:
            findings.append(Finding(key, title, "note", str(error)))
    for package, kind in _other_packages().items():
        findings.append(packages.import_finding(package, kind, facts))
    by_key = {finding.key: finding for finding in findings}
    backends: list[Backend] = []
    for kind in sorted(ENGINES.values(), key=lambda kind: (kind.remote, kind.gpu)):
        try:
            backends.append(_guarded(partial(judge, kind, facts, by_key)))
        except _ProbeError as error:
            backends.append(Backend(kind.name, "none", str(error)))
    if order is None:
        order = [name for name, kind in ENGINES.own.items() if not kind.remote]
    return Report(tuple(findings), tuple(backends), automatic(backends, order))


def _other_packages() -> dict[str, EngineKind]:
    """The packages that backends need and that have no subject of their own, with a backend that does."""
    ENGINES.others  # noqa: B018 - looked up, so that the report has them
    known = {key for key, _, _ in _SUBJECTS}
    return {need: kind for kind in ENGINES.values() for need in kind.needs if need not in known}


class _ProbeError(Exception):
    """A probe failed in a way that nobody thought of; the message is what its row says."""


def _guarded(probe: Callable[[], _Result]) -> _Result:
    """The one place where anything is caught: what one probe cannot find out must not hide what the others did."""
    try:
        return probe()
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise _ProbeError(f"could not be found out, a bug worth reporting: {type(error).__name__}: {line}") from error


def _versions() -> dict[str, str]:
    versions = {}
    for name in packages.DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
