"""python -m compile.contract NET [--examples DIR] [-o contract.yaml]: find how a network wants its frames."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

import argparse
from collections.abc import Sequence
from pathlib import Path

from compile.options import read_size
from pipeline.command.command_line import OptionParser, run_command, whole_number
from pipeline.errors import BackendUnavailableError, OptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _find(_parser().parse_args(arguments)))


def _find(options: argparse.Namespace) -> None:
    try:
        from compile.contract.infer import infer_contract
    except ImportError as error:
        raise BackendUnavailableError(
            f"finding a contract needs packages that are not here ({error}): install them with: pip install 'edgemask[compile]'"
        ) from error
    found, trial = infer_contract(Path(options.network), options.imgsz)
    if options.examples is not None:
        from compile.contract.examples import read_examples
        from compile.contract.search import search, told

        result = search(found, trial, read_examples(Path(options.examples), options.count))
        found = result.found
        print("\n".join(told(result)))
        print()
    text = found.yaml()
    if options.output is None:
        print(text, end="")
        return
    try:
        Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(
            f"--output {options.output}: expected a file that can be written, got {error.strerror}"
        ) from error
    print(found.line())
    print(f"{options.output}: written; compile with: --weights {options.network} --contract {options.output}")


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m compile.contract",
        description="Find how a network wants its frames and what its output means, as a contract for --contract: from its graph, its "
        "family and the files beside it, and with --examples from pictures whose masks are known.",
        epilog="Each line of the contract says where its value came from; what was only assumed is called not known.",
    )
    parser.add_argument(
        "network", metavar="NET", help="the network: an ONNX file, or what torch.export.save wrote (.pt2)"
    )
    parser.add_argument(
        "--examples",
        metavar="DIR",
        help="pictures with the masks that the network gives, NAME.jpg and NAME.png, or in folders images and masks: the candidates "
        "that reproduce them are found",
    )
    parser.add_argument(
        "--count",
        type=whole_number(1, 1000),
        default=12,
        metavar="N",
        help="how many of the examples to use, spread over all of them (default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz", type=read_size, metavar="HxW", help="size inside the network, where its file leaves it open"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the contract there (default: print it)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
