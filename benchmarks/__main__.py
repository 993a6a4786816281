"""python -m benchmarks [MODEL|BUNDLE]: how fast is it here. python -m benchmarks QUESTION: measure one thing.

Each prints a table, writes JSON with --json, and most draw a plot with --plot.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        # python -m puts the current folder first, which may hold packages that are called like ours.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pipeline.early_interrupt import end_on_interrupt

    end_on_interrupt()

import importlib
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from pipeline.builds.model_name import PUBLISHED
from pipeline.command.command_line import OptionParser, run_command
from pipeline.errors import BackendUnavailableError, EdgemaskError, ModelError, OptionError
from pipeline.terminal import shown_log

QUESTIONS = {
    # question: (module, what it answers)
    "accuracy": ("benchmarks.questions.accuracy", "how good the masks are, compared with ground truth"),
    "audit": ("benchmarks.questions.audit", "whether the shadow gate (--audit) makes frames wait"),
    "energy": ("benchmarks.questions.energy", "how many frames a joule gives, and whether the machine is throttled"),
    "flicker": (
        "benchmarks.questions.flicker",
        "how much masks flicker on video, without and with smoothing",
    ),
    "gpu": ("benchmarks.questions.gpu", "how fast an NVIDIA GPU runs the program"),
    "host": ("benchmarks.questions.host", "time of each step that the CPU does for a frame"),
    "latency": (
        "benchmarks.questions.latency",
        "pipeline throughput relative to the backend alone, and the latency of each stage",
    ),
    "motion": ("benchmarks.questions.motion", "how right the masks are that --fps moves with the picture"),
    "scale": ("benchmarks.questions.scale", "what it costs to compute elsewhere: on a server"),
    "sizes": ("benchmarks.questions.sizes", "which --imgsz reaches which frame rate, and how good its masks are"),
    "soak": ("benchmarks.questions.soak", "whether memory grows over many frames, or hours"),
    "start": ("benchmarks.questions.start", "time from the command to the first mask"),
    "throughput": ("benchmarks.questions.throughput", "throughput with several sources"),
    "int8": ("benchmarks.questions.int8", "masks in INT8 compared with FP32, here and with other tools"),
    "peers": (
        "benchmarks.questions.peers",
        "throughput compared with rembg, supervision, loops with OpenCV and PyTorch, and trtexec",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(
        lambda: _measure(list(sys.argv[1:] if arguments is None else arguments)), (EdgemaskError, ModelError)
    )


def _measure(arguments: list[str]) -> None:
    question = arguments.pop(0) if arguments and arguments[0] in QUESTIONS else ""
    if not question:
        _require_model(arguments)
    module_name, _ = QUESTIONS.get(question, ("benchmarks.fps", ""))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        extras = "compile,triton" if question == "scale" else "compile"
        raise BackendUnavailableError(
            f"{question or 'benchmarks'}: packages are not here ({error}): install them with: pip install 'edgemask[{extras}]'"
        ) from error
    questions = "\n".join(f"  {name:<12}{answer}" for name, (_, answer) in QUESTIONS.items())
    parser = OptionParser(
        prog=f"python -m benchmarks {question}".rstrip(),
        description=module.__doc__,
        epilog=""
        if question
        else f"questions, each with options of its own (python -m benchmarks QUESTION --help):\n{questions}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="write the result and the machine it was measured on as JSON")
    module.add_options(parser)
    options = module.Options(**vars(parser.parse_args(arguments)))
    if getattr(options, "plot", None):
        require_plots()
    with shown_log(to_stdout=True):
        module.measure(options)


def _require_model(arguments: Sequence[str]) -> None:
    """See that the first argument, if it is none of the options, names a model; a mistyped question shall not be compiled."""
    if (
        not arguments
        or arguments[0].startswith("-")
        or Path(arguments[0]).exists()
        or (PUBLISHED / arguments[0]).is_dir()
    ):
        return
    try:
        from compile.networks.zoo import ZOO
    except ImportError:  # without the build half there are no others
        ZOO = {}  # noqa: N806
    if arguments[0] not in ZOO:
        raise OptionError(
            f"expected a question ({', '.join(QUESTIONS)}), got {arguments[0]!r}; nor is it a bundle's folder or a published network"
        )


def require_plots() -> None:
    """See that plots can be drawn, before anything is measured.

    Raises:
        BackendUnavailableError: matplotlib is not here.
    """
    try:
        importlib.import_module("benchmarks.shared.plots")
    except ImportError as error:
        raise BackendUnavailableError(
            f"--plot: expected matplotlib, which draws it, got none ({error}): install it with: pip install 'edgemask[plots]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
