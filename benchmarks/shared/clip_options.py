"""What questions ask that run a network over a video."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.command.command_line import OptionParser


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipOptions:
    """The options that these questions share; each adds its own.

    Attributes:
        clip: a video.
        model: a bundle's folder or a published network's name.
        backend: what runs the network.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    clip: str
    model: str
    backend: str
    plot: str | None
    json: str | None


def add_clip_options(parser: OptionParser, plot: str) -> None:
    """Add what ``ClipOptions`` holds, but for ``--json``, which every question has.

    Args:
        parser: of the question.
        plot: what ``--plot`` draws.
    """
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument("--backend", default="auto", help="what runs the network (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help=plot)
