"""The options of ``python -m pipeline.replay``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.command.command_line import OptionParser
from pipeline.engines.kinds import ENGINES
from pipeline.registry import Choices

DIFFERS = 3
"""The exit status where something differs."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What is run again, and on what.

    Attributes:
        file: a flight recording.
        model: a bundle, or the name of a published network; None: the one that was recorded.
        backend: a key of ``ENGINES``, or "auto".
        reference: a bundle whose FP32 program the layers are compared with; None: that of the model; "": layers are not compared.
        calibration_set: a folder that gets the frames; nothing is run then. None: there is none.
        quiet: say what was found and nothing else.
    """

    file: str
    model: str | None = None
    backend: str = "auto"
    reference: str | None = None
    calibration_set: str | None = None
    quiet: bool = False


def parse_options(arguments: Sequence[str] | None = None) -> ReplayOptions:
    """Read the command line.

    Raises:
        OptionError: an unknown option, or a value that it does not take.
    """
    values = vars(_parser().parse_args(arguments))
    no_reference = values.pop("no_reference")
    return ReplayOptions(**{**values, "reference": "" if no_reference else values["reference"]})


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m pipeline.replay",
        description="Run the frames of a flight recording again and compare the masks with the recorded ones.",
        epilog="Exit status: 0 the same, 3 something differs, 2 a mistake in the input (one line says which), 1 a bug, 130 "
        "interrupted, 143 terminated.",
    )
    parser.add_argument("file", metavar="FILE", help="a recording of --flight")
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME|DIR",
        help="a bundle, or a published network (default: the one that was recorded)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=Choices(ENGINES, "auto", without=lambda kind: kind.remote),
        help="what runs the network; auto takes a GPU where there is one, else the CPU (default: %(default)s)",
    )
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument(
        "--reference",
        metavar="DIR",
        help="a bundle whose FP32 program is right: name the first layer of the model's program that computes something else, both on "
        "ONNX Runtime (default: the model's own, where it carries one)",
    )
    reference.add_argument("--no-reference", action="store_true", help="do not compare layers")
    parser.add_argument(
        "--as-calibration",
        dest="calibration_set",
        metavar="SET",
        help="add the frames to this calibration set, or make one of them, and run nothing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print the result and nothing else")
    return parser
