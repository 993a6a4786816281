"""What does it cost to compute elsewhere: frames per second through a server over those in the process?

The parts are modules of their own, which add options, measure, and give lines, a table, ratios and bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.questions import scale_server
from benchmarks.questions.scale_server import Measured
from benchmarks.shared.environment import write_result
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``python -m benchmarks scale`` is asked.

    Attributes:
        clip: a video.
        model: a bundle's folder or a published network's name.
        servers: where a tritonserver is installed; None: where ``make test`` puts it.
        in_flight: frames on their way at once, N,….
        frames: per pass.
        rounds: of all passes.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    clip: str
    model: str
    servers: str | None
    in_flight: str
    frames: int
    rounds: int
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks scale`` takes."""
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    scale_server.add_options(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")


def measure(options: Options) -> None:
    """Run the benchmark and print its tables.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read, or there is no server.
    """
    keep_freed_memory()  # as the command does
    parts: dict[str, Measured] = {
        "server": scale_server.measure(
            clip=options.clip,
            model=options.model,
            servers=options.servers,
            in_flight=options.in_flight,
            frames=options.frames,
            rounds=options.rounds,
        ),
    }
    for part in parts.values():
        print("\n".join(part.lines))
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [bar for part in parts.values() for bar in part.bars]
        write_plot(options.plot, bars("Elsewhere over in the process", "frames per second, relative", named))
    if options.json:
        result = {
            "model": options.model,
            "rounds": options.rounds,
            "frames": options.frames,
            "table": {name: part.table for name, part in parts.items()},
            "ratios": {name: value for part in parts.values() for name, value in part.ratios.items()},
        }
        write_result(Path(options.json), "scale", result)
