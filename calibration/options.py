"""What a collection is asked for: ``CalibrateOptions``, and the command line of ``python -m calibration`` that makes them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.command.command_line import OptionParser, whole_number
from pipeline.errors import OptionError

MOST = 2048
"""Pictures of a set. Each may be kept in half as many more for a while, and compared with all of them."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """Which frames become a calibration set, and where it goes.

    Attributes:
        source: a camera, a stream, a video or pictures, as ``pipeline.sources.open_source`` takes it.
        output: the set's folder; a set that is there is replaced.
        count: pictures at most, for calibration and verification together, 2 to ``MOST``.
        verify_share: which share of them to verify on, as near as whole scenes allow; above 0, at most 0.5.
        max_frames: frames to look at; None for all, or of a camera ten minutes.
        quiet: show no progress and no report.
        add: keep the pictures of a set that is there, and add those frames that are unlike them.

    Raises:
        OptionError: a value that is not taken; it calls it as the command line does.
    """

    source: str
    output: str | os.PathLike[str]
    count: int = 256
    verify_share: float = 0.2
    max_frames: int | None = None
    quiet: bool = False
    add: bool = False

    def __post_init__(self) -> None:
        if not os.fspath(self.output):
            raise OptionError("--output: expected a folder, got nothing")
        if not 2 <= self.count <= MOST:
            raise OptionError(f"--count: expected a number from 2 to {MOST}, got {self.count}")
        if not 0 < self.verify_share <= 0.5:
            raise OptionError(f"--verify-share: expected a number above 0, at most 0.5, got {self.verify_share}")
        if self.max_frames is not None and self.max_frames < 1:
            raise OptionError(f"--max-frames: expected a number from 1, got {self.max_frames}")


def parse_options(arguments: Sequence[str] | None = None) -> CalibrateOptions:
    """Read the command line.

    Raises:
        OptionError: an unknown option, or a value that it does not take.
    """
    return CalibrateOptions(**vars(_parser().parse_args(arguments)))


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m calibration",
        description="Collect a calibration set: the frames of a source that differ most, without near-duplicates, "
        "spread over scenes and brightness. Some scenes are set apart for verification.",
        epilog="Exit status: 0 done, 2 a mistake in the input (one line says which), 1 a bug, 130 interrupted, 143 "
        "terminated. When interrupted, the set is made of the frames seen so far.",
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
        help="the set's folder; an existing set is replaced, but for --add",
    )
    parser.add_argument(
        "--count",
        type=whole_number(2, MOST),
        default=256,
        metavar="N",
        help="pictures at most, for calibration and verification together (default: %(default)s)",
    )
    parser.add_argument(
        "--verify-share",
        type=_verify_share,
        default=0.2,
        metavar="SHARE",
        help="share of the pictures for verification, as near as whole scenes allow (default: %(default)s)",
    )
    parser.add_argument(
        "--max-frames",
        type=whole_number(1),
        metavar="N",
        help="frames to look at (default: all; for a camera ten minutes, or until Ctrl-C)",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the pictures of a set that is there as they are, and add frames that are unlike all of them, to calibrate on",
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
