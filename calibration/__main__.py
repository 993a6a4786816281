"""python -m calibration --source S --output DIR: a calibration set from a camera, stream, video or folder."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # python -m puts the current folder first, which may hold packages that are called like ours.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Read by OpenCV when it is first imported, as in python -m pipeline.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import argparse
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.command.command_line import OptionParser, run_command, whole_number
from pipeline.command.progress import Progress
from pipeline.errors import BackendUnavailableError, CalibrationError, OptionError, SourceError
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.stages.prefetch import Prefetch

if TYPE_CHECKING:
    from calibration.sets.frames import SetWriter

# Each may be kept in half as many more for a while, and compared with all of them.
_MOST = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    say: Callable[[str], None] = (lambda _: None) if options.quiet else (lambda line: print(line, file=sys.stderr))
    with ExitStack() as stack:
        source = stack.enter_context(open_source(options.source))
        try:
            from calibration.sets.calibration_set import SHEET_NAME, is_set
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
        say(f"source: {source.info.name}, {source.info.description}")
        if source.info.live:
            say("Ctrl-C ends the recording and makes the set of what was seen")
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
                collected, report = writer.finish(options.verify_share)
            except CalibrationError as error:
                if ended is None:
                    raise
                say(f"no set: {error}")
                raise ended from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a file's name need not be UTF-8, nor a terminal
    if not options.quiet:
        print(report)
    if collected.split_by == "time":
        say("one scene only: its end is set apart to verify on, after a gap; a source with more scenes verifies better")
    print(os.path.join(options.output, SHEET_NAME))
    if ended is not None:
        raise ended


def _watch(source: Source, writer: SetWriter, options: argparse.Namespace) -> None:
    from calibration.sets.frames import within_limits

    frames = Prefetch(within_limits(source, options.max_frames), 2, drop_oldest=source.info.live, name="decode")
    with Progress(source.info, options.max_frames, quiet=options.quiet) as progress, frames, ExitStack() as ending:
        if source.info.live:
            ending.callback(source.close)  # may hang in a read, which this ends
        for frame in frames:
            with uninterrupted():  # a frame is all in the pool or not
                writer.add(frame)
            progress(frame, frames.dropped)


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m calibration",
        description="A calibration set: the frames of a source that differ most, without near-duplicates, spread over its scenes "
        "and its brightness, some of its scenes set apart to verify on.",
        epilog="Exit status: 0 done, 2 a mistake in the input (one line says which), 1 a bug, 130 interrupted, 143 terminated; "
        "an interrupted one makes the set of what it has seen.",
    )
    parser.add_argument(
        "-s",
        "--source",
        required=True,
        help="0 or /dev/video0, a video, a picture, a folder, a glob ('pics/**/*.jpg'), rtsp://…, http://…, csi://0, gst:PIPELINE, "
        "test://",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=_folder,
        metavar="DIR",
        help="the set's folder; a set that is there is replaced",
    )
    parser.add_argument(
        "--count",
        type=whole_number(2, _MOST),
        default=256,
        metavar="N",
        help="pictures at most, for calibration and verification together (default: %(default)s)",
    )
    parser.add_argument(
        "--verify-share",
        type=_verify_share,
        default=0.2,
        metavar="SHARE",
        help="which share of them to verify on, as near as whole scenes allow (default: %(default)s)",
    )
    parser.add_argument(
        "--max-frames",
        type=whole_number(1),
        metavar="N",
        help="frames to look at (default: all; of a camera ten minutes, or until Ctrl-C)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress and no report")
    return parser


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got nothing")
    return text


def _verify_share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 0.5, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
