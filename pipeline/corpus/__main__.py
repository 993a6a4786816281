"""python -m pipeline.corpus --source FOLDER --model M --output DIR: masks of many pictures and videos."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

from collections.abc import Sequence

from pipeline.command.command_line import run_command
from pipeline.corpus.options import CorpusOptions, parse_options
from pipeline.terminal import shown_log


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _run(parse_options(arguments)))


def _run(options: CorpusOptions) -> None:
    from pipeline.corpus.whole import run_corpus  # only now: --help and a wrong option need none of it

    with shown_log(quiet=options.quiet):
        run_corpus(options)


if __name__ == "__main__":
    sys.exit(main())
