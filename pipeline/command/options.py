"""The options of ``python -m pipeline``: the command line, over a YAML file, over the defaults."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command.command_line import OptionParser, share, whole_number
from pipeline.engines import ENGINES
from pipeline.errors import OptionError
from pipeline.registry import Choices
from pipeline.render.modes import MODES
from pipeline.sinks import SINKS
from pipeline.sinks import forms as output_forms
from pipeline.sinks.options import ENCODERS, byte_count, duration_s
from pipeline.sources import SOURCES
from pipeline.sources import forms as source_forms

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, and the YAML file that ``--config`` names.

    Raises:
        OptionError: an unknown option or a value that it does not take.
    """
    parser = _parser()
    options = vars(parser.parse_args([]))
    for action in parser._actions:  # from here on only what is given counts; --help still names the defaults
        action.help = (action.help or "").replace("%(default)s", str(action.default))
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(arguments))
    if "config" in given:
        path = Path(given["config"])
        arguments = _config_arguments(parser, path)
        try:
            options |= vars(parser.parse_args(arguments))
        except OptionError as error:
            raise OptionError(f"--config {path}: {error}") from error
    options |= given
    if not options["source"]:
        parser.error(f"expected --source: {source_forms()}")
    return argparse.Namespace(**options)


class _Parser(OptionParser):
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        for rows in (SOURCES, SINKS, ENGINES, MODES):
            rows.others  # noqa: B018 - looked up, so that a new parser names them
        OptionParser.print_help(_parser(), file)


def _parser() -> OptionParser:
    parser = _Parser(
        prog="python -m pipeline",
        description="Masks over pictures, videos and cameras.",
        epilog="Exit status: 0 done, 2 a mistake in the input (one line says which), 1 a bug, 130 interrupted, 143 terminated.",
    )
    parser.add_argument(
        "-s",
        "--source",
        action="append",
        help=f"{source_forms()}; several share the engine",
    )
    parser.add_argument(
        "-m",
        "--model",
        default="u2netp",
        metavar="NAME|DIR",
        help="a bundle, or the name of a published network, compiled on first use (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        metavar="OUT",
        help=f"{output_forms()}; may be repeated; {{source}} in it is the source's name",
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="PATH",
        help="short for --output; without PATH a name made from the source's",
    )
    parser.add_argument(
        "--show", action="store_true", help="show a window (the default with a display and no --output)"
    )
    parser.add_argument("--headless", "--no-display", action="store_true", help="never show a window")
    parser.add_argument(
        "--backend",
        default="auto",
        choices=Choices(ENGINES, "auto"),
        help="what runs the network: auto = a GPU where there is one, else the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--render", default="overlay", choices=Choices(MODES), help="how masks are shown (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha", type=share, default=0.5, metavar="0..1", help="strength of the colour (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.5,
        metavar="0..1",
        help="probability from which a pixel counts (default: %(default)s)",
    )
    parser.add_argument(
        "--palette",
        default="default",
        metavar="NAME|FILE|COLOURS",
        help="default, cityscapes, voc, a YAML file, or #rrggbb,#rrggbb",
    )
    parser.add_argument(
        "--rebuild",
        default="auto",
        choices=("auto", "never"),
        help="a plan for this GPU and its TensorRT, where the bundle has none: auto = build it here from the bundle's program, once "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--background", metavar="COLOUR|PICTURE", help="behind cutout and replace: #rrggbb or a picture"
    )
    parser.add_argument(
        "--legend", action="store_true", help="draw the classes and the share of the picture that each covers"
    )
    parser.add_argument("--hud", action="store_true", help="draw rate, times and model")
    parser.add_argument(
        "--drop",
        default="auto",
        choices=("auto", "latest", "never"),
        help="drop frames that wait: auto = for cameras only",
    )
    parser.add_argument("--max-frames", type=whole_number(1), metavar="N", help="end after so many frames of a source")
    parser.add_argument(
        "--smooth",
        default="auto",
        choices=("auto", "off", "on", "strong"),
        help="steady masks over time: auto = on for cameras and streams (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="keep this rate on a slower engine: between its masks the last one is moved with the picture, and is kept where that "
        "did not change",
    )
    parser.add_argument("--refine-edges", action="store_true", help="draw masks to the edges in the picture")
    parser.add_argument(
        "--compose",
        default="auto",
        choices=("auto", "host", "device"),
        help="where the overlay is drawn: auto = by a GPU if the bundle was compiled with --compose device; the host still draws masks "
        "that --smooth or --refine-edges changed, and every other --render (default: %(default)s)",
    )
    live = parser.add_argument_group("cameras and streams")
    live.add_argument(
        "--stall",
        type=duration_s,
        default=3.0,
        metavar="TIME",
        help="a source without a frame for so long is stalled (default: %(default)s s)",
    )
    live.add_argument(
        "--reconnect",
        type=duration_s,
        default=5.0,
        metavar="TIME",
        help="and is connected anew when nothing came for so long after that (default: %(default)s s)",
    )
    live.add_argument(
        "--max-reconnects",
        type=whole_number(0),
        metavar="N",
        help="give up after so many attempts in a row (default: never)",
    )
    live.add_argument(
        "--on-corrupt", default="drop", choices=("drop", "pass"), help="damaged frames (default: %(default)s)"
    )
    recording = parser.add_argument_group("recordings")
    recording.add_argument(
        "--encoder",
        default="auto",
        choices=ENCODERS,
        help="what encodes videos: auto = NVENC where it works, else x264",
    )
    recording.add_argument(
        "--segment-time",
        type=duration_s,
        metavar="TIME",
        help="a recording begins a new file after so long: 30, 10m, 1h (default for cameras: 1h)",
    )
    recording.add_argument("--segment-size", type=byte_count, metavar="SIZE", help="likewise at this size: 500M, 2G")
    recording.add_argument(
        "--keep-files",
        type=whole_number(1),
        metavar="N",
        help="delete the oldest files of this recording beyond so many",
    )
    recording.add_argument("--keep-size", type=byte_count, metavar="SIZE", help="likewise beyond this size in all")
    recording.add_argument(
        "--min-free",
        type=byte_count,
        default=200_000_000,
        metavar="SIZE",
        help="a recording ends before less than this is free on its disk (default: 200M)",
    )
    page = parser.add_argument_group("the page")
    page.add_argument(
        "--serve",
        nargs="?",
        const="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="a page with the live picture (without HOST:PORT: 127.0.0.1:8080); any other address than this machine's needs a token",
    )
    page.add_argument(
        "--serve-token",
        metavar="TOKEN",
        help="16 characters or more; EDGEMASK_TOKEN in the environment is safer, for command lines are visible; made and printed "
        "once if the address needs one",
    )
    page.add_argument(
        "--serve-name", action="append", metavar="NAME", help="another name that the page is called by; may be repeated"
    )
    page.add_argument("--serve-read-only", action="store_true", help="viewers cannot change settings")
    page.add_argument(
        "--serve-viewers", type=whole_number(1), default=8, metavar="N", help="at once (default: %(default)s)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with the long options as keys; the command line wins")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    return parser


def _config_arguments(parser: OptionParser, path: Path) -> list[str]:
    from pipeline.yaml_file import read_yaml  # few runs read YAML, and all would wait for its package

    entries = read_yaml(path, "--config")
    if not isinstance(entries, dict):
        raise OptionError(f"--config {path}: expected options as 'name: value', got {type(entries).__name__}")
    actions = {
        option[2:]: action for action in parser._actions for option in action.option_strings if option.startswith("--")
    }
    for reserved in ("help", "config"):
        actions.pop(reserved)
    arguments: list[str] = []
    for key, value in entries.items():
        name = str(key).replace("_", "-")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": there are {', '.join(actions)}"
            raise OptionError(f"--config {path}: unknown key {key!r}{hint}")
        action = actions[name]
        if isinstance(value, bool):
            if action.nargs not in (0, "?"):
                raise OptionError(f"--config {path}: {key}: expected a value, got {str(value).lower()}")
            arguments += [f"--{name}"] if value else []
            continue
        if isinstance(value, list) and not isinstance(action, argparse._AppendAction):
            raise OptionError(f"--config {path}: {key}: expected one value, got a list")
        # Checked before anything is made a string: a few nested aliases would fill the memory.
        items = value if isinstance(value, list) else [] if value is None else [value]
        if any(item is None or isinstance(item, (bool, list, dict, set)) for item in items):
            raise OptionError(f"--config {path}: {key}: expected a value or a list of values, got something nested")
        arguments += [f"--{name}={item}" for item in items]
    return arguments
