"""Which backends can run here, which can only build, and what the others lack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.doctor.packages import loads, unfit_gpu
from pipeline.engines.kinds import EngineKind
from pipeline.machine.probe import Facts, Finding

Ability = Literal["run", "build", "none"]


@dataclass(frozen=True)
class Backend:
    """What a backend can do on this machine.

    Attributes:
        can: "run", networks; "build", plans for other machines alone; or "none" of both.
        reason: what it runs on, or what it lacks.
        mend: the command that would let it run, as far as one does.
    """

    name: str
    can: Ability
    reason: str
    mend: str | None = None


def judge(kind: EngineKind, facts: Facts, findings: Mapping[str, Finding]) -> Backend:
    """Say what a backend can do, from the rows by their keys."""
    lack, mend = _lack(kind.needs, findings)
    unfit = unfit_gpu(kind, facts)
    if unfit:
        lack, mend = unfit, None
    package = next((need for need in kind.needs if need != "gpu"), "")
    if lack and kind.builds_anywhere and loads(package, facts):
        building, command = _lack(("compile",), findings)
        if building is None:
            return Backend(kind.name, "build", f"builds plans for other machines; to run them here: {lack}", mend)
        return Backend(kind.name, "none", f"{lack}; to build plans takes the build half", command)
    if lack:
        return Backend(kind.name, "none", lack, mend)
    words = f"{findings[package].title} {findings[package].text}" if package else kind.help
    return Backend(kind.name, "run", f"{words}, on {findings['gpu'].text}" if kind.gpu else words)


def automatic(backends: Iterable[Backend], order: Iterable[str]) -> str | None:
    """The backend that ``--backend auto`` takes for a bundle that has a plan for each: the first of ``order`` that runs."""
    running = {backend.name for backend in backends if backend.can == "run"}
    return next((name for name in order if name in running), None)


def _lack(keys: Iterable[str], findings: Mapping[str, Finding]) -> tuple[str | None, str | None]:
    """The first row that is not ok, as a reason, and the command that mends it."""
    for key in keys:
        finding = findings.get(key)
        if finding is None:
            return f"{key}: could not be found out", None
        if key == "gpu" and finding.state == "note":
            return "it needs an NVIDIA GPU", None
        if finding.state != "ok":
            return f"{finding.title}: {finding.text}", finding.mend
    return None, None
