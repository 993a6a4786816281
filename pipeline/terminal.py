"""Lines for the user, above a progress bar where there is one."""

from __future__ import annotations

import sys


def write_line(line: str) -> None:
    """Tell the user one line, above the bar if there is one."""
    if sys.stderr.isatty():
        from tqdm import tqdm  # a tenth of the time to the first mask, which only a terminal needs

        tqdm.write(line, file=sys.stderr)
    else:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
