"""edgemask [COMMAND] …: one command for everything; without COMMAND it runs masks over a source."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    # command: (module whose main() it is, what it does)
    "run": ("pipeline.__main__", "masks over pictures, videos and cameras (the default: edgemask SOURCE …)"),
    "corpus": ("pipeline.corpus.__main__", "masks over a corpus: many pictures and videos, in shards or on Ray"),
    "replay": ("pipeline.replay.__main__", "a flight recording run again: the first frame and layer that differ"),
    "compile": ("compile.__main__", "a trained network to a bundle, proven against the network"),
    "contract": ("compile.contract.__main__", "how a network wants its frames, found from its file and from examples"),
    "calibrate": ("calibration.__main__", "a calibration set for INT8 out of a camera, a video or a folder"),
    "inspect": ("compile.inspect.__main__", "what is inside a bundle"),
    "doctor": ("pipeline.doctor.__main__", "what this machine has, what is missing, and how to get it"),
    "benchmark": ("benchmarks.__main__", "frames per second, latency and agreement of a model on this machine"),
}

_OVERVIEW = """usage: edgemask [run] SOURCE … [options]
       edgemask COMMAND [options]

Real-time segmentation masks over pictures, videos, cameras and streams.

commands:
{commands}

  edgemask --version        the version
  edgemask COMMAND --help   the options of a command

examples:
  edgemask photo.jpg --output masked.png
  edgemask video.mp4 --render blur --output out.mp4
  edgemask /dev/video0
  edgemask compile --weights my_unet.pth --output bundle
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(_OVERVIEW.format(commands="\n".join(f"  {name:{width}}  {does}" for name, (_, does) in COMMANDS.items())))
        return 0
    if first in ("-V", "--version"):
        from pipeline.version import version

        print(f"edgemask {version()}")
        return 0
    if first not in COMMANDS:
        import difflib  # only a mistake needs it

        near = difflib.get_close_matches(first, COMMANDS, 1, 0.75)
        if near and not os.path.exists(first):
            print(
                f"error: expected a source or a command, got {first!r}: did you mean edgemask {near[0]}?",
                file=sys.stderr,
            )
            return 2
        return _run("run", arguments)
    return _run(first, arguments[1:])


def _run(command: str, arguments: Sequence[str]) -> int:
    if command == "run":
        from pipeline.early_libraries import map_early

        map_early("cv2")
    main_of_module: Callable[[Sequence[str]], int] = import_module(COMMANDS[command][0]).main
    from pipeline.command.command_line import called_as

    with called_as(f"edgemask {command}"):
        return main_of_module(arguments)


def command(*first: str) -> NoReturn:
    """The same as a process of its own, which ends; ``first`` stands before what it was given."""
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()
    status = main([*first, *sys.argv[1:]])
    from pipeline.process_end import end_process

    end_process(status)


def compile_command() -> NoReturn:
    """``edgemask compile``, by a name of its own."""
    command("compile")


def calibrate_command() -> NoReturn:
    """``edgemask calibrate``, by a name of its own."""
    command("calibrate")


if __name__ == "__main__":
    command()
