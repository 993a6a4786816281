"""What a server costs: frames per second through a tritonserver of this machine over those of ONNX Runtime in the process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.shared.measured import Measured
from benchmarks.shared.passes import alone_hz, read_images
from benchmarks.shared.tritonserver import TritonServer, default_folder, put_on_python_backend
from pipeline.builds.model_name import open_model
from pipeline.bundles.bundle import Bundle
from pipeline.command.command_line import OptionParser
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.engines.server_options import MEMORIES, ServerOptions
from pipeline.errors import OptionError
from pipeline.frames.frame import Image

# Of the server, each on a core; in the process two frames are computed at once as well, each on half of the cores.
_INSTANCES = 2
_ALONE = "in the process"

EXPLAINED = """
FPS: the median of the rounds. The ratio: the median over the rounds of FPS through the server / FPS in the process, where two frames
are computed at once. Added: how much longer a frame takes with one in flight than in the process with one at a time, on all cores: of
the server one instance computes it then, on one core."""


def add_options(parser: OptionParser) -> None:
    """Add what this part takes."""
    parser.add_argument(
        "--servers",
        metavar="DIR",
        help="where tests/install-triton has put a tritonserver (default: where make test puts it)",
    )
    parser.add_argument(
        "--in-flight", default="1,2,4", metavar="N,…", help="frames on their way at once (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=12, metavar="N", help="frames per pass (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds of all passes (default: %(default)s)"
    )


def measure(*, clip: str, model: str, servers: str | None, in_flight: str, frames: int, rounds: int) -> Measured:
    """Measure it.

    Args:
        clip: a video.
        model: a bundle's folder or a published network's name.
        servers: where the tritonserver is installed; None: where ``make test`` puts it.
        in_flight: frames on their way at once, N,….
        frames: per pass.
        rounds: of all passes, each time in another order.

    Raises:
        EdgemaskError: the clip or the bundle cannot be read, or there is no server.
    """
    try:
        counts = sorted({int(text) for text in in_flight.split(",")})
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise OptionError(f"--in-flight: expected numbers from 1, got {in_flight}")
    for name, value in (("--frames", frames), ("--rounds", rounds)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    bundle = open_model(model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="edgemask.")))
        put_on_python_backend(bundle, folder / "repository", instances=_INSTANCES)
        server = stack.enter_context(
            TritonServer(Path(servers or default_folder()), folder / "repository", log=folder / "log")
        )
        engines = _engines(bundle, server.wait().address, counts, stack)
        images = read_images(clip, bundle.manifest.pixels, frames)
        rates_hz = _rates_hz(engines, images, frames, rounds)
    return _measured(rates_hz, counts)


def _engines(bundle: Bundle, address: str, counts: Sequence[int], stack: ExitStack) -> dict[tuple[str, int], Engine]:
    engines = {
        (_ALONE, at_once): stack.enter_context(open_engine(bundle, "onnxruntime", overlap=at_once > 1))
        for at_once in (1, 2)
    }
    for memory in MEMORIES:
        for count in counts:
            options = ServerOptions(f"grpc://{address}", memory, in_flight=count)
            engines[memory, count] = stack.enter_context(open_engine(bundle, "triton", servers=options))
    return engines


def _rates_hz(
    engines: dict[tuple[str, int], Engine], images: Sequence[Image], frames: int, rounds: int
) -> dict[tuple[str, int], list[float]]:
    rates_hz: dict[tuple[str, int], list[float]] = {key: [] for key in engines}
    for engine in engines.values():
        alone_hz(engine, images, 2)  # warm
    for number in range(rounds):
        # In another order each time, for what else this machine does comes and goes.
        keys = list(engines)
        first = number * 3 % len(keys)
        for key in keys[first:] + keys[:first]:
            rates_hz[key].append(alone_hz(engines[key], images, frames))
    return rates_hz


def _measured(rates_hz: dict[tuple[str, int], list[float]], counts: Sequence[int]) -> Measured:
    lines = ["| computed | in flight | FPS | of in the process | added ms a frame |", "|---|---|---|---|---|"]
    table: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    bars: list[tuple[str, float]] = []
    for (memory, count), rates in rates_hz.items():
        pairs = [there / here for there, here in zip(rates, rates_hz[_ALONE, 2], strict=True)]
        row: dict[str, Any] = {
            "computed": memory,
            "in_flight": count,
            "fps": round(statistics.median(rates), 3),
            "ratio": round(statistics.median(pairs), 4),
            "pairs": [round(pair, 4) for pair in pairs],
        }
        added = ""
        if memory != _ALONE:
            ratios[f"{memory}_{count}_over_process"] = row["ratio"]
            bars.append((f"{memory}, {count} in flight", row["ratio"]))
            if count == 1:
                apart_ms = [1000 / there - 1000 / here for there, here in zip(rates, rates_hz[_ALONE, 1], strict=True)]
                row["added_ms"] = ratios[f"{memory}_added_ms"] = round(statistics.median(apart_ms), 2)
                added = f"{row['added_ms']:.1f}"
        table.append(row)
        lines.append(f"| {memory} | {count} | {row['fps']:.2f} | {row['ratio']:.3f} | {added} |")
    return Measured([*lines, *EXPLAINED.splitlines()], table, ratios, bars)
