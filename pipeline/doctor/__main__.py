"""python -m pipeline.doctor: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

import io
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.command.command_line import OptionParser, run_command
from pipeline.doctor.report import Report, examine, gather
from pipeline.engines.kinds import ENGINES
from pipeline.errors import BackendUnavailableError
from pipeline.terminal import one_line

_STATES = {"ok": "ok", "missing": "MISSING", "note": "note"}
_ABILITIES = {"run": "runs", "build": "builds", "none": "no"}
# What the first command is taken from where nothing can run.
_NEEDED = ("onnxruntime", "tensorrt", "opencv")
_INDENT = 27


def main(arguments: Sequence[str] | None = None, root: Path = Path("/")) -> int:
    """Run the command line and return the exit status; ``root`` is where ``/proc``, ``/sys``, ``/etc`` and ``/dev`` are."""
    return run_command(lambda: _run(arguments, root))


def _run(arguments: Sequence[str] | None, root: Path) -> None:
    parser = OptionParser(
        prog="python -m pipeline.doctor",
        description="What this machine has for edgemask, what is missing, and the command that adds it.",
        epilog="Exit status: 0 a backend can run here, 2 none can or a wrong option (one line says which), 1 a bug.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    report = examine(gather(root))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have ×
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 100)
    try:
        print(json.dumps(asdict(report), indent=2) if options.json else "\n".join(_lines(report, width)), flush=True)
    except BrokenPipeError:  # head and less have seen enough; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if report.auto is None:
        missing = (row.mend for row in report.findings if row.state == "missing" and row.key in _NEEDED and row.mend)
        mend = next(missing, "pip install 'edgemask[cpu]'")
        names = ", ".join(backend.name for backend in report.backends)
        raise BackendUnavailableError(f"no backend can run here: expected one of {names}, got none: begin with: {mend}")


def _lines(report: Report, width: int) -> Iterator[str]:
    yield "This machine"
    for finding in report.findings:
        yield from _row(_STATES[finding.state], finding.title, finding.text, finding.mend, width)
    yield ""
    yield "What can run a network (--backend)"
    for backend in report.backends:
        yield from _row(_ABILITIES[backend.can], backend.name, backend.reason, None, width)
    yield ""
    yield from textwrap.wrap(_automatic(report), width)
    if any(finding.mend for finding in report.findings):
        yield "Lines after $ are commands that mend or add what stands above them."


def _automatic(report: Report) -> str:
    runs = {backend.name for backend in report.backends if backend.can == "run"}
    if report.auto is None:
        return "--backend auto finds nothing that can run here."
    if not ENGINES[report.auto].plans:
        return f"--backend auto takes {report.auto} here."
    if report.auto not in BUILT_FROM_PROGRAM:
        other = "onnxruntime for one without" if "onnxruntime" in runs else "one without needs ONNX Runtime"
        plan = f"a bundle with a plan for it (python -m compile --target {report.auto})"
        return f"--backend auto takes {report.auto} here for {plan}, {other}."
    return f"--backend auto takes {report.auto} here; a bundle without a plan for this GPU gets one on first use."


def _row(state: str, title: str, text: str, mend: str | None, width: int) -> Iterator[str]:
    first, *others = textwrap.wrap(one_line(text), width - _INDENT, break_on_hyphens=False) or [""]
    yield f"  {state:<8} {title:<15} {first}"
    for line in others:
        yield " " * _INDENT + line
    if mend:
        yield " " * _INDENT + f"$ {mend}"  # one line whatever its length, to be copied


if __name__ == "__main__":
    sys.exit(main())
