"""python -m compile.inspect DIR: what is inside a bundle."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

import argparse
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compile.inspect.table import field
from pipeline.command.command_line import OptionParser, run_command
from pipeline.errors import BackendUnavailableError

if TYPE_CHECKING:
    from compile.inspect.report import Report

_WIDTH = 110
_MOST_RUNS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _inspect(_parser().parse_args(arguments)))


def _inspect(options: argparse.Namespace) -> None:
    try:
        from compile.inspect.report import inspect_bundle
    except ImportError as error:
        raise BackendUnavailableError(
            f"inspecting needs packages that are not here ({error}): install them with: pip install 'edgemask[compile]'"
        ) from error
    if options.plot is not None:
        try:
            from compile.inspect.int8_plot import write_plot
        except ImportError as error:
            raise BackendUnavailableError(
                f"--plot: expected matplotlib, which draws it, got none ({error}): install it with: pip install 'edgemask[plots]'"
            ) from error
    report = inspect_bundle(options.bundle, options.times)
    if options.plot is not None:
        write_plot(options.plot, report.manifest, report.int8)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have ×
    width = min(max(shutil.get_terminal_size((_WIDTH, 24)).columns, 80), _WIDTH)
    try:
        lines = [json.dumps(report.as_dict(), indent=2)] if options.json else _lines(report, options.layers, width)
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # head and less have seen enough; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(report: Report, all_layers: bool, width: int) -> Iterator[str]:
    from compile.inspect.bundle_text import bundle_lines
    from compile.inspect.int8_table import search_lines
    from compile.inspect.plan_text import plan_lines
    from compile.inspect.program_text import program_lines

    yield from bundle_lines(report, all_layers=all_layers, width=width)
    yield ""
    yield "Program"
    if report.program is None:
        yield from field("layers", f"not shown: {report.program_problem}", width)
    else:
        yield from program_lines(report.program, all_layers=all_layers, width=width)
    if report.int8 is not None:
        yield ""
        yield "INT8"
        yield from search_lines(report.int8, all_layers=all_layers, width=width)
    files = {file.name: file for file in report.files}
    for plan in report.plans:
        yield ""
        yield from plan_lines(plan, files.get(plan.file), report.program, all_layers=all_layers, width=width)


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m compile.inspect",
        description="What is inside a bundle: its files, the layers of its program with their precision, size and work, and its plans.",
        epilog="A plan is native code: its layers are shown where this machine can load it, and it is loaded only if "
        "its sha256 fits. A damaged file is named in the report, with status 0.",
    )
    parser.add_argument("bundle", metavar="DIR", help="the bundle's folder")
    parser.add_argument("--layers", action="store_true", help="show all layers, in the order in which they run")
    parser.add_argument(
        "--times",
        type=_runs,
        default=0,
        metavar="N",
        help="run each plan on N frames and show the time of each layer (default: %(default)s)",
    )
    parser.add_argument(
        "--plot",
        type=_png,
        metavar="FILE.png",
        help="draw what the INT8 search found: the layers that do most damage to the masks, and the steps",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


def _runs(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > _MOST_RUNS:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {_MOST_RUNS}, got {text!r}")
    return int(text)


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a file whose name ends in .png, got {text!r}")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
