"""The options of ``python -m pipeline``: the command line, over a YAML file, over the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.audit.rate import parse_rate
from pipeline.command.command_line import OptionParser, nearest, share, whole_number
from pipeline.command.run_options import LookOptions, MaskOptions, ModelOptions, OnTruncated, OutputOptions, RunOptions
from pipeline.drift.options import DriftOptions, When
from pipeline.engines import ENGINES
from pipeline.engines.server_options import MEMORIES, ServerOptions
from pipeline.errors import OptionError
from pipeline.flight.options import FlightOptions
from pipeline.page.options import ADDRESS, Limits, PageOptions
from pipeline.registry import Choices
from pipeline.render.modes import MODES
from pipeline.results.zone_book import read_zones
from pipeline.results.zone_options import ZoneOptions, parse_zones
from pipeline.sinks import SINKS
from pipeline.sinks import forms as output_forms
from pipeline.sinks.options import (
    ENCODERS,
    LABELS,
    RESULTS,
    SinkOptions,
    byte_count,
    byte_count_above_zero,
    duration_s,
    words_of,
)
from pipeline.sources import SOURCES
from pipeline.sources import forms as source_forms
from pipeline.sources.options import Decode, LiveOptions

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_DEFAULT = RunOptions(())
_FLIGHT = FlightOptions("")
_DROP = {"auto": None, "latest": True, "never": False}


def parse_options(arguments: Sequence[str] | None = None) -> RunOptions:
    """Read the command line, and the YAML file that ``--config`` names.

    Args:
        arguments: without the program's name; None: those of the process.

    Raises:
        OptionError: an unknown option or a value that it does not take.
    """
    parser = _parser()
    values = vars(parser.parse_args([]))
    for action in parser._actions:  # from here on only what is given counts; --help still names the defaults
        action.help = (action.help or "").replace("%(default)s", str(action.default))
        action.default = argparse.SUPPRESS
    parser.usage = ""  # else argparse writes the usage of all options down, in case that one is wrong, and here none would be shown
    # Sources may stand anywhere among the options.
    given = vars(parser.parse_intermixed_args(arguments))
    if "config" in given:
        path = Path(given["config"])
        in_file = _config_arguments(parser, path)
        try:
            values |= vars(parser.parse_args(in_file))
        except OptionError as error:
            raise OptionError(f"--config {path}: {error}") from error
    sources = [*given.get("source", []), *given.pop("sources", [])]
    values |= given
    sources = sources or values["source"] or []
    if not sources:
        parser.error(f"expected a source: {source_forms()}")
    return _run_options(tuple(sources), values)


def _run_options(sources: tuple[str, ...], values: dict[str, Any]) -> RunOptions:
    return RunOptions(
        sources,
        ModelOptions(
            values["model"],
            values["backend"],
            may_build=values["rebuild"] == "auto",
            may_tune=not values["no_tune"],
            servers=_servers(values),
        ),
        MaskOptions(values["smooth"], values["fps"], values["refine_edges"], values["compose"]),
        LookOptions(
            values["render"],
            values["alpha"],
            values["threshold"],
            values["palette"],
            values["background"],
            legend=values["legend"],
            hud=values["hud"],
        ),
        OutputOptions(tuple(values["output"] or ()), values["save"], values["show"], values["headless"]),
        SinkOptions(
            results=values["results"],
            labels=values["labels"],
            sound=not values["no_audio"],
            encoder=values["encoder"],
            segment_s=values["segment_time"],
            segment_bytes=values["segment_size"],
            keep_segments=values["keep_files"],
            keep_bytes=values["keep_size"],
            keep_at_least_s=values["keep_at_least"],
            min_free_bytes=values["min_free"],
        ),
        _zones(values),
        LiveOptions(
            stall_s=values["stall"],
            reconnect_s=values["reconnect"],
            max_reconnects=values["max_reconnects"],
            on_corrupt=values["on_corrupt"],
            tls_verify=values["tls_verify"],
            follow_redirects=values["follow_redirects"],
        ),
        _page(values),
        audit=values["audit"],
        flight=_flight(values),
        decode=values["decode"],
        drop_oldest=_DROP[values["drop"]],
        max_frames=values["max_frames"],
        memory_bytes=values["memory_limit"],
        drift=DriftOptions(values["drift"], values["drift_frames"]),
        on_truncated=values["on_truncated"],
        quiet=values["quiet"],
        config=values["config"],
        watch_model=values["watch_model"],
        named=values,
    )


def _page(values: dict[str, Any]) -> PageOptions | None:
    if values["serve"] is None:
        return None
    return PageOptions(
        values["serve"],
        token=values["serve_token"],
        names=tuple(values["serve_name"] or ()),
        read_only=values["serve_read_only"],
        limits=Limits(viewers=values["serve_viewers"]),
    )


def _flight(values: dict[str, Any]) -> FlightOptions | None:
    if values["flight"] is None:
        return None
    return FlightOptions(values["flight"], values["flight_size"], values["flight_seconds"])


def _zones(values: dict[str, Any]) -> ZoneOptions:
    zones = parse_zones(values["zone"] or (), values["zone_above"] or ())
    path = None if values["zones_file"] is None else Path(values["zones_file"])
    if path is not None:
        if zones:
            raise OptionError(
                f"--zones-file {path}: expected zones in one place, got --zone too: put them into the file"
            )
        zones = read_zones(path)
    return ZoneOptions(zones, values["zone_enter"], values["zone_dwell"], path)


def _servers(values: dict[str, Any]) -> ServerOptions | None:
    if values["server"] is None:
        beside = ("server_memory", "server_ca", "server_cert", "server_key", "server_token_file", "server_wait")
        if given := [name for name in beside if values[name] is not None] + ["insecure"] * values["insecure"]:
            raise OptionError(f"--{given[0].replace('_', '-')}: expected --server grpc://HOST:PORT beside it, got none")
        return None
    return ServerOptions(
        values["server"],
        values["server_memory"] or ServerOptions.memory,
        ca=values["server_ca"],
        cert=values["server_cert"],
        key=values["server_key"],
        token_file=values["server_token_file"],
        insecure=values["insecure"],
        wait_s=ServerOptions.wait_s if values["server_wait"] is None else values["server_wait"],
    )


# What YAML takes for true and false. It is read as text, or "off" would be false, and 10:30 would be 630.
_SWITCHES = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "on"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "off"), False),
}


class _Parser(OptionParser):
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        for rows in (SOURCES, SINKS, ENGINES, MODES):
            rows.others  # noqa: B018 - looked up, so that a new parser names them
        OptionParser.print_help(_parser(), file)


def _parser() -> OptionParser:
    parser = _Parser(
        prog="python -m pipeline",
        description="Masks over pictures, videos, cameras and streams.",
        epilog="Exit status: 0 done, 2 a mistake in the input (one line says which), 1 a bug, 130 interrupted, 143 terminated.",
    )
    _add_input(parser)
    _add_outputs(parser)
    add_look(parser)
    parser.add_argument(
        "--hud", action="store_true", help="draw throughput, times of the stages and the model onto the view"
    )
    _add_masks(parser)
    _add_results(parser.add_argument_group("results for programs"))
    _add_drift(parser.add_argument_group("watching the input"))
    _add_servers(parser.add_argument_group("servers of --backend triton"))
    _add_live(parser.add_argument_group("cameras and streams"))
    _add_recording(parser.add_argument_group("recordings"))
    _add_page(parser.add_argument_group("the page"))
    _add_watching(parser.add_argument_group("watching the masks"))
    _add_flight(parser.add_argument_group("flight recorder"))
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="read options from a YAML file, the long options as keys; the command line wins",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    return parser


def add_model(parser: OptionParser, *, servers: bool = True) -> None:
    """Add the options that say what runs; all of them are fields of ``ModelOptions``.

    Args:
        parser: gets them.
        servers: a backend whose servers compute may be named.
    """
    parser.add_argument(
        "-m",
        "--model",
        default=_DEFAULT.model.name,
        metavar="NAME|DIR",
        help="a bundle, or the name of a published network, compiled on first use (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        default=_DEFAULT.model.backend,
        choices=Choices(ENGINES, "auto", without=lambda kind: kind.remote and not servers),
        help="what runs the network; auto takes what was found to be the fastest here, else a GPU where there is one, else the CPU "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--rebuild",
        default="auto",
        choices=("auto", "never"),
        help="what to do where the bundle has no plan for this GPU and its TensorRT; auto builds one from the "
        "bundle's program, once (default: %(default)s)",
    )


def _add_input(parser: OptionParser) -> None:
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"{source_forms()}; several share the backend")
    parser.add_argument(
        "-s",
        "--source",
        action="append",
        help="the same, as an option; may be repeated. NAME= in front of it, as in door=rtsp://camera/1, is what the source is called "
        "on the page, in metrics, results and logs, and where an output has {source}",
    )
    add_model(parser)
    parser.add_argument(
        "--watch-model",
        action="store_true",
        help="when the folder of --model has changed, check the new bundle and let it take over between two frames; SIGHUP asks for "
        "the same at once",
    )
    parser.add_argument(
        "--no-tune",
        action="store_true",
        help="do not find out which backend and precision is the fastest here, which --backend auto does once for each bundle on the "
        "frames of a camera or a long video, in at most 10 s",
    )
    parser.add_argument(
        "--drop",
        default="auto",
        choices=tuple(_DROP),
        help="which frames are dropped while the backend is busy: latest = all but the newest; never = none, the source waits; "
        "auto = latest for cameras and streams, never for files (default: %(default)s)",
    )
    parser.add_argument(
        "--decode",
        default=_DEFAULT.decode,
        choices=get_args(Decode),
        help="what decodes videos and streams; cuda = the GPU's decoder (NVDEC), and frames stay on the GPU, for TensorRT and bundles "
        "compiled with --pixels nv12 alone; it has not run on a GPU yet. auto = a Jetson's decoder where there is one, else FFmpeg on "
        "the CPU (default: %(default)s)",
    )
    parser.add_argument("--max-frames", type=whole_number(1), metavar="N", help="end each source after N frames")
    parser.add_argument(
        "--memory-limit",
        type=byte_count_above_zero,
        metavar="SIZE",
        help="give a source up that takes so much memory that the whole run takes more than this, and go on with the others (default: "
        "half of the machine, or of what its cgroup may take)",
    )
    parser.add_argument(
        "--on-truncated",
        default="auto",
        choices=get_args(OnTruncated),
        help="a file that is cut off: keep = what came before it is kept, as NAME.cut-off.mp4; refuse = it is not; auto = keep from a "
        "minute on; the status is 2 in any case (default: %(default)s)",
    )


def _add_outputs(parser: OptionParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        metavar="OUT",
        help=f"{output_forms()}; may be repeated; {{source}} stands for the source's name",
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="PATH",
        help="the same as --output; without PATH the name is made from the source's name",
    )
    parser.add_argument(
        "--show", action="store_true", help="show a window (the default with a display and no --output)"
    )
    parser.add_argument("--headless", "--no-display", action="store_true", help="never show a window")


def add_look(parser: OptionParser) -> None:
    """Add the options that say how masks are drawn; all of them are fields of ``LookOptions``."""
    parser.add_argument(
        "--render",
        default=_DEFAULT.look.mode,
        choices=Choices(MODES),
        help="how masks are drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--alpha",
        type=share,
        default=_DEFAULT.look.alpha,
        metavar="0..1",
        help="strength of the mask's color over the picture (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=_DEFAULT.look.threshold,
        metavar="0..1",
        help="probability from which a pixel belongs to the subject (default: %(default)s)",
    )
    parser.add_argument(
        "--palette",
        default=_DEFAULT.look.palette,
        metavar="NAME|FILE|COLORS",
        help="colors of the classes: default, cityscapes, voc, a YAML file, or #rrggbb,#rrggbb",
    )
    parser.add_argument(
        "--background",
        metavar="COLOR|PICTURE",
        help="what cutout and replace put behind the subject: #rrggbb or a picture",
    )
    parser.add_argument(
        "--legend", action="store_true", help="draw the classes and the share of the picture that each covers"
    )


def add_refine_edges(parser: OptionParser) -> None:
    """Add ``--refine-edges``."""
    parser.add_argument(
        "--refine-edges", action="store_true", help="move the edges of masks to the edges in the picture"
    )


def _add_masks(parser: OptionParser) -> None:
    parser.add_argument(
        "--smooth",
        default=_DEFAULT.masks.smooth,
        choices=("auto", "off", "on", "strong"),
        help="steady masks over time where the picture stands still; auto is on for cameras and streams, off for "
        "files (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="give every frame a mask at this frame rate, even on a slower backend: between computed masks the last "
        "one is moved with the picture, as far as that is measured to be right",
    )
    add_refine_edges(parser)
    parser.add_argument(
        "--compose",
        default=_DEFAULT.masks.compose,
        choices=("auto", "host", "device"),
        help="where the overlay is drawn; auto takes the GPU if the bundle was compiled with --compose device. The "
        "CPU still draws masks that --smooth or --refine-edges changed, and every other --render (default: "
        "%(default)s)",
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--results",
        type=words_of(RESULTS),
        default=_DEFAULT.recording.results,
        metavar="FORM,FORM",
        help=f"what each region has beside its box in .jsonl: some of {','.join(RESULTS)} (COCO's polygons, COCO's run "
        "lengths as text or as numbers, a line of YOLO's labels)",
    )
    group.add_argument(
        "--labels",
        choices=LABELS,
        help="fill the folder of --output with pictures and labels for training: COCO's annotations.json, YOLO's text files, or "
        "class maps as PNG",
    )
    group.add_argument(
        "--zone",
        action="append",
        metavar="NAME=x,y x,y x,y",
        help="watch a part of the frame, given by its corners as shares of width and height from the top left; may be repeated. Events "
        "tell when a class enters it or leaves it",
    )
    group.add_argument(
        "--zone-above",
        action="append",
        metavar="NAME=SHARE",
        help="tell also when a class covers this share of the zone or more, and when it no longer does; may be repeated",
    )
    group.add_argument(
        "--zones-file",
        metavar="FILE",
        help="take the zones from this YAML file, and keep those there that are drawn on the page (--serve); it need not be there yet",
    )
    group.add_argument(
        "--zone-enter",
        type=_positive_share,
        default=_DEFAULT.zones.enter,
        metavar="SHARE",
        help="a class is in a zone from this share of it on, and out again below half of that (default: %(default)s)",
    )
    group.add_argument(
        "--zone-dwell",
        type=duration_s,
        default=_DEFAULT.zones.dwell_s,
        metavar="TIME",
        help="something must be so for this long before it is an event (default: %(default)s s)",
    )


def _add_drift(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--drift",
        default=_DEFAULT.drift.when,
        choices=get_args(When),
        help="tell when frames are unlike everything that the model was verified on: darker, blurred, in fog; auto is on for cameras "
        "and streams where the bundle knows its frames, off for files (default: %(default)s)",
    )
    group.add_argument(
        "--drift-frames",
        metavar="DIR",
        help="keep the frames that are farthest from those as PNG, 16 at most, for a new calibration or verification",
    )


def _positive_share(text: str) -> float:
    if not share(text):
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text}")
    return share(text)


def _add_servers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--server",
        metavar="grpc://HOST:PORT,…",
        help="servers that compute the masks, each frame one of them; grpcs:// is TLS",
    )
    group.add_argument(
        "--server-memory",
        choices=MEMORIES,
        help="how frames travel: raw = in the messages; shared = in memory that servers of this machine share "
        f"(default: {ServerOptions.memory})",
    )
    group.add_argument("--server-ca", metavar="FILE", help="authorities that verify the servers' certificates, as PEM")
    group.add_argument("--server-cert", metavar="FILE", help="our own certificate, for mutual TLS; with --server-key")
    group.add_argument("--server-key", metavar="FILE", help="its private key")
    group.add_argument(
        "--server-token-file",
        metavar="FILE",
        help="a file with the token that the servers ask for; without it EDGEMASK_SERVER_TOKEN in the environment is one",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="speak in plain text to servers on other machines too, the token as well: for networks that you trust",
    )
    group.add_argument(
        "--server-wait",
        type=duration_s,
        metavar="TIME",
        help="how long files wait for servers that are gone or busy, and every source at the start "
        f"(default: {ServerOptions.wait_s:g} s)",
    )


def _add_live(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stall",
        type=duration_s,
        default=_DEFAULT.live.stall_s,
        metavar="TIME",
        help="a source without a frame for this long is stalled (default: %(default)s s)",
    )
    group.add_argument(
        "--reconnect",
        type=duration_s,
        default=_DEFAULT.live.reconnect_s,
        metavar="TIME",
        help="a stalled source is connected again after this much more silence (default: %(default)s s)",
    )
    group.add_argument(
        "--max-reconnects",
        type=whole_number(0),
        metavar="N",
        help="give up after N attempts in a row (default: never)",
    )
    group.add_argument(
        "--on-corrupt",
        default=_DEFAULT.live.on_corrupt,
        choices=("drop", "pass"),
        help="what to do with damaged frames (default: %(default)s)",
    )
    group.add_argument(
        "--tls-verify",
        default=_DEFAULT.live.tls_verify,
        metavar="yes|no|CA.pem",
        help="certificates of https://, rtsps:// and mqtts:// are verified by the system's authorities, those of a file (the camera's "
        "own may be one), or not at all, and then no password is sent (default: %(default)s)",
    )
    group.add_argument(
        "--follow-redirects",
        action="store_true",
        help="let a stream send us to other hosts; passwords stay with the host that they were given for",
    )


def _add_recording(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--no-audio", action="store_true", help="leave the sound and subtitles of a file out of its video"
    )
    group.add_argument(
        "--encoder",
        default=_DEFAULT.recording.encoder,
        choices=ENCODERS,
        help="what encodes videos; auto takes NVENC where it works, else x264",
    )
    group.add_argument(
        "--segment-time",
        type=duration_s,
        metavar="TIME",
        help="start a new file of a recording after this time: 30, 10m, 1h (default for cameras: 1h)",
    )
    group.add_argument(
        "--segment-size", type=byte_count, metavar="SIZE", help="start a new file of a recording at this size: 500M, 2G"
    )
    group.add_argument(
        "--keep-files",
        type=whole_number(1),
        metavar="N",
        help="keep at most N files of a recording, delete the oldest",
    )
    group.add_argument(
        "--keep-size",
        type=byte_count,
        metavar="SIZE",
        help="keep at most this size of a recording in all, delete the oldest files",
    )
    group.add_argument(
        "--keep-at-least",
        type=duration_s,
        default=_DEFAULT.recording.keep_at_least_s,
        metavar="TIME",
        help="never delete a file of a recording that is younger, whatever --keep-files, --keep-size and a full disk ask for "
        "(default: 0)",
    )
    group.add_argument(
        "--min-free",
        type=byte_count,
        default=_DEFAULT.recording.min_free_bytes,
        metavar="SIZE",
        help="end a recording before less than this is free on its disk (default: 200M)",
    )


def _add_page(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--serve",
        nargs="?",
        const=ADDRESS,
        metavar="HOST:PORT",
        help="stream the live picture to browsers, on a page (without HOST:PORT: 127.0.0.1:8080; a port alone: of "
        "127.0.0.1). Addresses other than loopback need a token",
    )
    group.add_argument(
        "--serve-token",
        metavar="TOKEN",
        help="the page's token, 16 characters or more; without one it is made and printed where the address needs "
        "it. EDGEMASK_TOKEN in the environment is safer, because other users see command lines",
    )
    group.add_argument(
        "--serve-name", action="append", metavar="NAME", help="another host name of the page; may be repeated"
    )
    group.add_argument("--serve-read-only", action="store_true", help="viewers of the page cannot change settings")
    group.add_argument(
        "--serve-viewers",
        type=whole_number(1),
        default=Limits().viewers,
        metavar="N",
        help="viewers of the page at once, at most (default: %(default)s)",
    )


def _add_watching(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--audit",
        type=parse_rate,
        default=_DEFAULT.audit,
        metavar="RATE",
        help="how often a frame of each source is also computed by the bundle's program in FP32, on idle cores, to see whether the "
        "masks still agree with it: 1/min, 2/h, 1/10 for every 10th frame, off; auto = 1/min of cameras and streams whose bundle runs "
        "otherwise than so (default: %(default)s)",
    )


def _add_flight(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flight",
        metavar="DIR",
        help="when something happens (scores that are not finite, a mask that is gone, flicker, a stall, SIGUSR1, the page's button), "
        "write the last seconds of frames as decoded, masks and times as one file into this folder; python -m pipeline.replay runs it "
        "again",
    )
    group.add_argument(
        "--flight-size",
        type=byte_count_above_zero,
        default=_FLIGHT.size_bytes,
        metavar="SIZE",
        help="what these files may take in all; the oldest are deleted first (default: 512M)",
    )
    group.add_argument(
        "--flight-seconds",
        type=duration_s,
        default=_FLIGHT.before_s,
        metavar="TIME",
        help="how much before the event is in a file, as far as the memory goes (default: %(default)s s)",
    )


def _config_arguments(parser: OptionParser, path: Path) -> list[str]:
    from pipeline.yaml_file import read_yaml  # few runs read YAML, and all would wait for its package

    entries = read_yaml(path, "--config", as_text=True)
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
            hint = nearest(name, actions) or f": there are {', '.join(actions)}"
            raise OptionError(f"--config {path}: unknown key {key!r}{hint}")
        action = actions[name]
        if value is None:  # written out: it is meant
            continue
        if value == "":
            raise OptionError(
                f"--config {path}: {key}: expected a value, got none: after # all is a comment, so put quotes around a color, "
                f'{key}: "#ff0000", or take the line out'
            )
        if action.nargs == 0 or (action.nargs == "?" and value in _SWITCHES):
            if value not in _SWITCHES:
                raise OptionError(f"--config {path}: {key}: expected true or false, got {value!r}")
            arguments += [f"--{name}"] if _SWITCHES[value] else []
            continue
        if isinstance(value, list) and not isinstance(action, argparse._AppendAction):
            raise OptionError(f"--config {path}: {key}: expected one value, got a list")
        # Checked before anything is made a string: a few nested aliases would fill the memory.
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in items):
            raise OptionError(f"--config {path}: {key}: expected a value or a list of values, got something nested")
        arguments += [f"--{name}={item}" for item in items]
    return arguments
