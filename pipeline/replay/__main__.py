"""python -m pipeline.replay FILE: a flight recording run again, and compared."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

# Read by OpenCV when it is first imported, as in python -m pipeline.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import io
from collections.abc import Sequence

from pipeline.command.command_line import run_command
from pipeline.replay.options import DIFFERS, ReplayOptions, parse_options
from pipeline.terminal import shown_log


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    differs: list[bool] = []
    status = run_command(lambda: differs.append(_run(parse_options(arguments))))
    return DIFFERS if status == 0 and any(differs) else status


def _run(options: ReplayOptions) -> bool:
    """Whether something differs."""
    from pipeline.flight.recording import Recording  # only now: --help and a wrong option need no OpenCV
    from pipeline.replay.report import replay

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not have ×
    with shown_log(quiet=options.quiet), Recording(options.file) as recording:
        if options.calibration_set is not None:
            from pipeline.replay.as_calibration import add_to_set

            print(add_to_set(recording, options.calibration_set))
            return False
        return replay(recording, options, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
