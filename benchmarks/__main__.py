"""python -m benchmarks QUESTION: measure one thing, print a table, write JSON with --json."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # python -m puts the current folder first, which may hold packages that are called like ours.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import importlib
from collections.abc import Sequence

from pipeline.command.command_line import OptionParser, run_command
from pipeline.errors import BackendUnavailableError, EdgemaskError, ModelError, OptionError

QUESTIONS = {
    # question: (module, what it answers)
    "accuracy": ("benchmarks.questions.accuracy", "how good are the masks, against ground truth"),
    "energy": ("benchmarks.questions.energy", "how many frames does a joule give, and is the machine throttled"),
    "flicker": (
        "benchmarks.questions.flicker",
        "how much do masks flicker on video, and what does smoothing leave of it",
    ),
    "gpu": ("benchmarks.questions.gpu", "what does an NVIDIA GPU make of the frame program"),
    "host": ("benchmarks.questions.host", "what does each step cost that the processor does for a frame"),
    "latency": (
        "benchmarks.questions.latency",
        "what is left of an engine's rate in the pipeline, and where a frame's time goes",
    ),
    "sizes": ("benchmarks.questions.sizes", "which --imgsz for which frame rate, and what is left of the masks"),
    "soak": ("benchmarks.questions.soak", "does anything grow over many frames"),
    "start": ("benchmarks.questions.start", "how long from the command to the first mask"),
    "throughput": ("benchmarks.questions.throughput", "how do frames per second go with the number of sources"),
    "int8": ("benchmarks.questions.int8", "how much of the masks does INT8 keep, ours and other tools'"),
    "peers": (
        "benchmarks.questions.peers",
        "how many frames per second, beside rembg, supervision, loops with OpenCV and PyTorch, and trtexec",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(
        lambda: _measure(list(sys.argv[1:] if arguments is None else arguments)), (EdgemaskError, ModelError)
    )


def _measure(arguments: list[str]) -> None:
    questions = "\n".join(f"  {name}  {answer}" for name, (_, answer) in QUESTIONS.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m benchmarks QUESTION [--help]\n\nquestions:\n{questions}")
        return
    question = arguments[0]
    if question not in QUESTIONS:
        raise OptionError(f"expected a question ({', '.join(QUESTIONS)}), got {question!r}")
    try:
        module = importlib.import_module(QUESTIONS[question][0])
    except ImportError as error:
        raise BackendUnavailableError(
            f"{question}: needs packages that are not here ({error}): install them with: pip install '.[compile]'"
        ) from error
    parser = OptionParser(prog=f"python -m benchmarks {question}", description=module.__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the result with its environment")
    module.add_options(parser)
    module.measure(parser.parse_args(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
