"""The options of ``python -m pipeline.corpus``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.command.command_line import OptionParser, whole_number
from pipeline.command.options import add_look, add_model, add_refine_edges
from pipeline.command.run_options import LookOptions, MaskOptions, ModelOptions, RunOptions
from pipeline.corpus.shard import WHOLE, Shard, read_shard
from pipeline.sinks.options import ENCODERS, SinkOptions

# Longer than any one frame takes, and shorter than the patience of who waits for a million files.
_TIMEOUT_S = 600

MasksAs = Literal["png", "video"]
"""What the masks of a video become: a folder of PNG files, or a lossless video."""


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What ``python -m pipeline.corpus`` is asked for.

    Attributes:
        source: a folder, a pattern or a list.
        output: the folder of the results.
        run: model, masks and look; its sources and outputs are empty.
        masks_as: what the masks of a video become.
        shard: the part that is done.
        workers: processes; on Ray actors. None: one, and on Ray one for each GPU, or for each node where there are none.
        timeout_s: a process of which no frame comes for so long is ended; 0: never.
        ray: None: not on Ray; "": on the cluster of ``RAY_ADDRESS``, or on this machine alone; else a cluster's address.
        quiet: say nothing but warnings and errors.
    """

    source: str
    output: str
    run: RunOptions
    masks_as: MasksAs = "png"
    shard: Shard = WHOLE
    workers: int | None = None
    timeout_s: int = _TIMEOUT_S
    ray: str | None = None
    quiet: bool = False


def parse_options(arguments: Sequence[str] | None = None) -> CorpusOptions:
    """Read the command line.

    Args:
        arguments: without the program's name; None: those of the process.

    Raises:
        OptionError: an unknown option or a value that it does not take.
    """
    given = _parser().parse_args(arguments)
    look = LookOptions(given.render, given.alpha, given.threshold, given.palette, given.background, legend=given.legend)
    run = RunOptions(
        (),
        ModelOptions(given.model, given.backend, may_build=given.rebuild == "auto"),
        MaskOptions(given.smooth, refine_edges=given.refine_edges),
        look,
        recording=SinkOptions(encoder=given.encoder),
        quiet=given.quiet,
    )
    return CorpusOptions(
        given.source,
        given.output,
        run,
        given.masks_as,
        given.shard,
        given.workers,
        given.timeout,
        given.on,
        given.quiet,
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m pipeline.corpus",
        description="Masks of a corpus: many pictures and videos. What is there already is not done again, so that the same command "
        "goes on after whatever has ended it.",
        epilog="Exit status: 0 done, 2 a source has failed (failed.jsonl in the folder of the results says which) or a mistake in the "
        "input, 1 a bug, 130 interrupted, 143 terminated.",
    )
    _add_files(parser)
    add_look(parser)
    parser.set_defaults(render="mask")
    parser.add_argument(
        "--smooth",
        default="off",
        choices=("off", "on", "strong"),
        help="steady the masks of videos over time where the picture stands still (default: %(default)s)",
    )
    add_refine_edges(parser)
    parser.add_argument(
        "--encoder",
        default="auto",
        choices=ENCODERS,
        help="what encodes videos; auto takes NVENC where it works, else x264 (default: %(default)s)",
    )
    _add_where(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    return parser


def _add_files(parser: OptionParser) -> None:
    parser.add_argument(
        "-s",
        "--source",
        required=True,
        metavar="FOLDER|GLOB|LIST.txt",
        help="a folder with all folders in it, a pattern such as 'films/**/*.mp4', or a file with a path in each line",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=_folder,
        metavar="DIR",
        help="the folder of the results, with the folders of the source",
    )
    add_model(parser, servers=False)
    parser.add_argument(
        "--masks-as",
        default="png",
        choices=get_args(MasksAs),
        help="what the masks of a video become: png = a folder of pictures, NAME.masks; video = NAME.mkv, lossless (FFV1 in gray) "
        "(default: %(default)s)",
    )


def _add_where(parser: OptionParser) -> None:
    parser.add_argument(
        "--shard",
        type=read_shard,
        default=WHOLE,
        metavar="I/N",
        help="do every Nth source alone; I is 0 to N-1. N commands do the whole, on as many machines (default: all)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1, 1024),
        metavar="N",
        help="processes with a network each (default: 1; on Ray one for each GPU, or for each node without any)",
    )
    parser.add_argument(
        "--timeout",
        type=whole_number(0, 1_000_000),
        default=_TIMEOUT_S,
        metavar="S",
        help="end a process of which no frame comes for so many seconds: its source is tried again, and then fails; 0 = never "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--on",
        type=_ray_address,
        metavar="ray[:ADDRESS]",
        help="do it on Ray: on the cluster at ADDRESS (auto: the one that this machine is a node of), else on that of the variable "
        "RAY_ADDRESS, else on this machine alone",
    )


def _folder(text: str) -> str:
    if not text:  # a variable that was not set, and not the current folder
        raise argparse.ArgumentTypeError("expected a folder, got nothing")
    return text


def _ray_address(text: str) -> str:
    system, _, address = text.partition(":")
    if system != "ray" or text == "ray:":
        raise argparse.ArgumentTypeError(f"expected ray or ray:ADDRESS, such as ray:10.0.0.1:6379, got {text}")
    return address
