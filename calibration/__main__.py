"""python -m calibration --source S --output DIR: a calibration set from a camera, stream, video or folder."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

# Read by OpenCV when it is first imported, as in python -m pipeline.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import io
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from calibration.options import CalibrateOptions, parse_options
from pipeline.command.command_line import run_command
from pipeline.command.progress import Progress
from pipeline.errors import BackendUnavailableError, CalibrationError, OptionError, SourceError
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch
from pipeline.terminal import logger_of, shown_log

if TYPE_CHECKING:
    from calibration.sets.calibration_set import CalibrationSet
    from calibration.sets.frames import SetWriter

log = logger_of(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _run(parse_options(arguments)))


def _run(options: CalibrateOptions) -> None:
    with shown_log(quiet=options.quiet):
        collected, report, ended = _collect(options)
        from calibration.sets.calibration_set import SHEET_NAME

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a file's name need not be UTF-8, nor a terminal
        if not options.quiet:
            print(report)
        if collected.split_by == "time":
            log.info(
                "one scene only: its end is set apart to verify on, after a gap; a source with more scenes verifies better"
            )
    print(os.path.join(options.output, SHEET_NAME))
    if ended is not None:
        raise ended


def _collect(options: CalibrateOptions) -> tuple[CalibrationSet, str, StoppedError | SourceError | None]:
    """Watch the source and write the set; gives it with its report, and what ended the source early."""
    with ExitStack() as stack:
        source = stack.enter_context(open_source(options.source))
        try:
            from calibration.sets.calibration_set import is_set, read_set
            from calibration.sets.frames import SetWriter
        except ImportError as error:
            raise BackendUnavailableError(
                f"pictures cannot be written here ({error}): install what it needs with: pip install 'edgemask[cpu]'"
            ) from error
        if is_set(options.source):
            raise OptionError(
                f"--source {options.source}: expected a camera, a video or pictures, got a calibration set with its contact sheet: "
                f"give {os.path.join(options.source, 'calibration')}"
            )
        there = read_set(options.output) if options.add and is_set(options.output) else None
        log.info("source: %s, %s", source.info.name, source.info.description)
        if source.info.live:
            log.info("Ctrl-C ends the recording and makes the set of what was seen")
        with uninterrupted():
            writer = stack.enter_context(SetWriter(options.output, source.info, options.count))
        ended: StoppedError | SourceError | None = None
        try:
            _watch(source, writer, options)
        except StoppedError as stopped:
            ended = stopped
        except (
            SourceError
        ) as error:  # what a camera saw before it was unplugged is worth keeping; half of a file is not
            if not source.info.live:
                raise
            ended = error
        with uninterrupted():
            try:
                if there is None:
                    collected, report = writer.finish(options.verify_share)
                else:
                    collected, report = writer.finish_onto(there)
            except CalibrationError as error:
                if ended is None:
                    raise
                log.info("no set: %s", error)
                raise ended from error
    return collected, report, ended


def _watch(source: Source, writer: SetWriter, options: CalibrateOptions) -> None:
    from calibration.sets.frames import within_limits

    frames = Prefetch(within_limits(source, options.max_frames), 2, drop_oldest=source.info.live, name="decode")
    with Progress(source.info, options.max_frames, quiet=options.quiet) as progress, frames, ExitStack() as ending:
        if source.info.live:
            ending.callback(source.close)  # may hang in a read, which this ends
        for frame in frames:
            with uninterrupted():  # a frame is all in the pool or not
                writer.add(frame)
            progress(frame, frames.dropped)


if __name__ == "__main__":
    sys.exit(main())
