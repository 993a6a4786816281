"""python -m pipeline SOURCE --model M --output O: masks over pictures, videos and cameras."""

from __future__ import annotations

import gc
import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

# Read by OpenCV when it is first imported. A picture's header must not claim the machine's memory; its own warnings would
# stand beside our one line.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# A camera that was unplugged is noticed after so many seconds and not after ten.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")

if __name__ == "__main__":
    from pipeline.early_libraries import map_early

    map_early("cv2")

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.command.command_line import run_command
from pipeline.command.options import parse_options
from pipeline.command.run_options import RunOptions
from pipeline.process_end import end_process
from pipeline.terminal import shown_log


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    reread = partial(parse_options, arguments)
    gc.disable()  # nothing is garbage while modules are imported, and to look for it takes a twentieth of that time
    try:
        return run_command(lambda: _run(reread(), reread))
    finally:
        gc.enable()


def _run(options: RunOptions, reread: Callable[[], RunOptions]) -> None:
    from pipeline.command.engine_of_run import HeadStart  # only now: --help and a wrong option need none of it
    from pipeline.command.freed_memory import keep_freed_memory
    from pipeline.early_libraries import import_numpy

    keep_freed_memory()
    import_numpy()
    with shown_log(quiet=options.quiet), HeadStart(options) as begun:
        from pipeline.command.job import run_job  # which takes as long as the engine needs to open
        from pipeline.sources import load_sources

        load_sources(options.sources)
        gc.freeze()  # what was imported stays to the end, where to look for garbage in it takes as long again
        gc.enable()
        run_job(options, reread if options.reloads else None, begun)


if __name__ == "__main__":
    end_process(main())
