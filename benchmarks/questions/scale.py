"""What does it cost to compute elsewhere: through a server over in the process, and a corpus on several workers over one?

The parts are modules of their own, which measure, and give lines, a table, ratios and bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.questions import scale_corpus, scale_server
from benchmarks.shared.environment import write_result
from benchmarks.shared.measured import Measured
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.sinks.options import words_of

PARTS = ("server", "corpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``python -m benchmarks scale`` is asked.

    Attributes:
        parts: what is measured, of `PARTS`.
        clip: a video.
        model: a bundle's folder or a published network's name.
        servers: where a tritonserver is installed; None: where ``make test`` puts it.
        in_flight: frames on their way at once, N,….
        frames: per pass.
        rounds: of all passes.
        pictures: of the corpus.
        runs: how often each way to do the corpus is measured.
        ray: where Ray is installed; None: in this environment, or where ``make test`` puts it.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    parts: tuple[str, ...]
    clip: str
    model: str
    servers: str | None
    in_flight: str
    frames: int
    rounds: int
    pictures: int
    runs: int
    ray: str | None
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks scale`` takes."""
    parser.add_argument(
        "--parts",
        type=words_of(PARTS),
        default=PARTS,
        metavar="PART,PART",
        help=f"what to measure: some of {','.join(PARTS)} (default: both)",
    )
    parser.add_argument("--clip", default="samples/clip.mp4", metavar="VIDEO", help="a video (default: %(default)s)")
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    scale_server.add_options(parser)
    scale_corpus.add_options(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")


def measure(options: Options) -> None:
    """Run the benchmark and print its tables.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read, or there is no server.
    """
    keep_freed_memory()  # as the command does
    parts: dict[str, Measured] = {}
    if "server" in options.parts:
        parts["server"] = scale_server.measure(
            clip=options.clip,
            model=options.model,
            servers=options.servers,
            in_flight=options.in_flight,
            frames=options.frames,
            rounds=options.rounds,
        )
    if "corpus" in options.parts:
        parts["corpus"] = scale_corpus.measure(options.model, options.pictures, options.runs, options.ray)
    for part in parts.values():
        print("\n".join(part.lines))
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [bar for part in parts.values() for bar in part.bars]
        write_plot(options.plot, bars("Elsewhere over in the process", "frames per second, or time, relative", named))
    if options.json:
        result = {
            "model": options.model,
            "rounds": options.rounds,
            "frames": options.frames,
            "pictures": options.pictures,
            "runs": options.runs,
            "table": {name: part.table for name, part in parts.items()},
            "ratios": {name: value for part in parts.values() for name, value in part.ratios.items()},
        }
        write_result(Path(options.json), "scale", result)
