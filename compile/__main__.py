"""python -m compile --model NAME --output DIR: trained weights to a bundle, checked against the trained network."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

from collections.abc import Sequence

from compile.build import build_bundle
from compile.options import parse_options
from pipeline.command.command_line import run_command
from pipeline.terminal import shown_log


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _build(arguments))


def _build(arguments: Sequence[str] | None) -> None:
    options = parse_options(arguments)
    with shown_log(quiet=options.quiet, to_stdout=True):
        build_bundle(options)


if __name__ == "__main__":
    sys.exit(main())
