"""Which --imgsz for which frame rate on this machine? A network at several sizes: time, rate, and what is left of its masks.

Sizes take turns, so that a moment in which the machine is slow hits all of them. One frame is computed at a time, as for a camera.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.shared.bundles import compile_anew
from benchmarks.shared.environment import write_result
from benchmarks.shared.passes import Repeated, pipeline_pass, read_images
from calibration.metrics.agreement import iou
from calibration.metrics.saliency import SaliencyMetrics
from calibration.metrics.truth import read_truths, with_void_agreed
from calibration.sets.photographs import FOLDER
from compile.options import read_size
from pipeline.bundles.bundle import Bundle
from pipeline.command.command_line import OptionParser, whole_number
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame
from pipeline.sources import open_source

SIZES = "320,288,256,224,192,160,128"
RATES_HZ = (5, 10, 15, 25, 30, 60)

_CALLS = 2  # timed in a turn, after one that is not
_PASS_S = 1.0


EXPLAINED = """
ms alone: one frame through the engine, median. FPS: of the whole pipeline, one frame at a time. IoU: how much the masks have in common
with those of the network's own size, 1 is all; worst is the picture where it is least."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks sizes`` is asked.

    Attributes:
        model: a published network's name.
        weights: a checkpoint in its place.
        sizes: (height, width) inside the network, beside its own.
        contract: of the network.
        precision: fp32 or fp16.
        target: as of ``python -m compile``.
        backend: what runs the network.
        clip: a video to time on.
        pictures: to compare masks on, beside frames of the clip.
        truth: a folder with masks of the pictures.
        most: compare on so many frames of the clip.
        frames: of a pass, at least.
        rounds: turns.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    model: str
    weights: str | None
    sizes: Sequence[tuple[int, int]]
    contract: str
    precision: str
    target: str
    backend: str
    clip: str
    pictures: str
    truth: str | None
    most: int
    frames: int
    rounds: int
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks sizes`` takes."""
    parser.add_argument("--model", default="u2netp", metavar="NAME", help="a published network (default: %(default)s)")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint in place of --model")
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=SIZES,
        metavar="N|HxW,…",
        help="sizes inside the network to compare with its own (default: %(default)s)",
    )
    parser.add_argument("--contract", default="stream", help="contract of the network (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16"), help="(default: %(default)s)")
    parser.add_argument(
        "--target", default="onnx", help="the same as --target of the compile command (default: %(default)s)"
    )
    parser.add_argument("--backend", default="auto", help="what runs the network (default: %(default)s)")
    parser.add_argument(
        "--clip", default="samples/clip.mp4", metavar="VIDEO", help="video to time on (default: %(default)s)"
    )
    parser.add_argument(
        "--pictures",
        default=str(FOLDER),
        metavar="SOURCE",
        help="pictures to compare masks on, besides frames of the clip (default: the photographs of the package)",
    )
    parser.add_argument("--truth", metavar="DIR", help="ground truth of the pictures: PNG files of the same names")
    parser.add_argument(
        "--most",
        type=whole_number(1),
        default=32,
        metavar="N",
        help="frames of the clip to compare masks on, evenly spaced (default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=whole_number(1),
        default=16,
        metavar="N",
        help="frames per pass, at least (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=whole_number(1), default=5, metavar="N", help="rounds over all sizes (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw IoU over throughput")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: a size cannot be compiled, the clip or a picture cannot be read, or a picture has no truth.
    """
    if options.truth is not None and not Path(options.truth).is_dir():
        raise OptionError(f"--truth {options.truth}: expected a folder with NAME.png for every picture, got none")
    own = _compile(options, None)
    if options.truth is not None and own.manifest.task != "binary":
        raise OptionError(f"--truth: expected a network of binary masks, got one of {own.manifest.task}")
    own_hw = own.manifest.network_size_hw
    others = [_compile(options, size_hw) for size_hw in dict.fromkeys(options.sizes) if size_hw != own_hw]
    keep_freed_memory()  # as the command does
    with ExitStack() as stack:
        cases = [_Case(bundle, stack.enter_context(open_engine(bundle, options.backend))) for bundle in (own, *others)]
        _time(cases, options)
        _compare(cases, options)
        backend = cases[0].engine.description
    rows = [case.row(cases[0]) for case in cases]
    manifest = own.manifest
    print(
        f"{manifest.model}, {manifest.precision}, contract {manifest.contract['name']}, {backend}, median of {options.rounds} "
        f"turns, masks of {len(cases[0].ious)} pictures and frames"
    )
    print("\n".join([*_table(rows), EXPLAINED, *advice(rows)]))
    if options.plot:
        from benchmarks.shared.plots import points, write_plot

        title = f"{manifest.model} at several --imgsz, {backend}"
        named = {row["size"]: (row["fps"], row["iou_mean"]) for row in rows}
        of_y = f"mean IoU with the masks of {rows[0]['size']}"
        write_plot(options.plot, points(title, "frames per second of the pipeline", of_y, named))
    if options.json:
        write_result(
            Path(options.json),
            "sizes",
            {
                "model": manifest.model,
                "precision": manifest.precision,
                "contract": manifest.contract["name"],
                "backend": backend,
                "clip": Path(options.clip).name,
                "rounds": options.rounds,
                "compared_on": len(cases[0].ious),
                "table": rows,
                "advice": advice(rows),
                "ratios": _ratios(rows),
            },
        )


def advice(rows: Sequence[Mapping[str, Any]], rates_hz: Sequence[float] = RATES_HZ) -> list[str]:
    """For each rate one line: the size with the best masks that reaches it, of those that were measured.

    Args:
        rows: of sizes, the network's own first, each with "size", "fps" and "iou_mean".
        rates_hz: frames per second that somebody may want.
    """
    own = rows[0]
    lines = []
    for rate_hz in rates_hz:
        reached = [row for row in rows if row["fps"] >= rate_hz]
        if own in reached:
            lines.append(f"for {rate_hz:g} FPS: the network's own size, {own['size']} ({own['fps']:.1f} FPS)")
        elif reached:
            best = max(reached, key=lambda row: float(row["iou_mean"]))
            masks = f"IoU {best['iou_mean']:.2f} with {own['size']}"
            if best.get("max_f") is not None:
                masks += f", max F-measure {best['max_f']:.3f}, its {own['max_f']:.3f}"
            lines.append(
                f"for {rate_hz:g} FPS: --imgsz {best['size']} ({best['fps']:.1f} FPS, {masks}), or --fps {rate_hz:g} with {own['size']}"
            )
        else:
            fastest = max(rows, key=lambda row: float(row["fps"]))
            lines.append(
                f"for {rate_hz:g} FPS: no size reaches it ({fastest['size']} has {fastest['fps']:.1f} FPS); --fps {rate_hz:g} "
                "moves masks between those that are computed"
            )
    return lines


@dataclass
class _Case:
    """One size: what runs it, and what was measured so far."""

    bundle: Bundle
    engine: Engine
    times_ms: list[float] = field(default_factory=list)
    rates_hz: list[float] = field(default_factory=list)
    ious: list[tuple[float, str]] = field(default_factory=list)  # with the masks of the network's own size, and of what
    metrics: SaliencyMetrics | None = None

    def row(self, own: _Case) -> dict[str, Any]:
        worst, picture = min(self.ious)
        found = None if self.metrics is None else self.metrics.result()
        ms = statistics.median(self.times_ms)
        fps = statistics.median(self.rates_hz)
        return {
            "size": _name(self.bundle.manifest.network_size_hw),
            "own": self is own,
            "ms": round(ms, 3),
            "fps": round(fps, 3),
            # Of each turn its own ratio, for a turn is what both have in common.
            "fps_over_own": round(_median_ratio(self.rates_hz, own.rates_hz), 4),
            "iou_mean": round(statistics.fmean(value for value, _ in self.ious), 5),
            "iou_worst": round(worst, 5),
            "worst_picture": "" if self is own else picture,
            "max_f": None if found is None else found["max_f"],
            "mae": None if found is None else found["mae"],
        }


def _time(cases: Sequence[_Case], options: Options) -> None:
    images = read_images(options.clip, cases[0].engine.pixels)
    for case in cases:  # warm, and how long a frame takes
        for _ in range(2):
            start_s = time.perf_counter()
            case.engine(images[0][None])
            case.times_ms = [1000 * (time.perf_counter() - start_s)]
    counts = [max(options.frames, round(1000 * _PASS_S / case.times_ms[0])) for case in cases]
    for case in cases:
        case.times_ms.clear()
    for turn in tqdm(range(options.rounds), unit=" turns"):
        for case in cases:
            # The first call finds caches that hold another size.
            for call in range(1 + _CALLS):
                image = images[(turn * _CALLS + call) % len(images)]
                start_s = time.perf_counter()
                case.engine(image[None])
                if call:
                    case.times_ms.append(1000 * (time.perf_counter() - start_s))
        for case, count in zip(cases, counts, strict=True):
            case.rates_hz.append(pipeline_pass(case.engine, Repeated(options.clip, count)).hz)


def _compare(cases: Sequence[_Case], options: Options) -> None:
    """Masks of every size with those of the network's own, on pictures and frames of the clip; with the truth on pictures."""
    own, task = cases[0], cases[0].bundle.manifest.task
    for spec, truth, most in ((options.pictures, options.truth, None), (options.clip, None, options.most)):
        truths = None if truth is None else read_truths(truth, task, "--truth")
        for frame in tqdm(_thinned(spec, most), unit=" pictures"):
            reference_hw = own.engine(frame.as_pixels(own.engine.pixels)[None])[0]
            truth_hw = None if truths is None else truths(frame.name, frame.size_hw)
            for case in cases:
                mask_hw = reference_hw if case is own else case.engine(frame.as_pixels(case.engine.pixels)[None])[0]
                case.ious.append((iou(mask_hw, reference_hw, task), frame.name))
                if truth_hw is not None:
                    case.metrics = case.metrics or SaliencyMetrics()
                    case.metrics.add(*with_void_agreed(mask_hw, truth_hw))


def _thinned(spec: str, most: int | None) -> Iterator[Frame]:
    with open_source(spec) as source:
        count = source.info.frame_count
        step = 1 if most is None or count is None else max(1, math.ceil(count / most))
        yield from islice(source, 0, None if most is None else most * step, step)


def _compile(options: Options, size_hw: tuple[int, int] | None) -> Bundle:
    network = ["--weights", options.weights] if options.weights else ["--model", options.model]
    name = Path(options.weights).stem if options.weights else options.model
    name = "-".join((name, options.precision, Path(options.contract).stem, options.target))
    arguments = [*network, "--contract", options.contract, "--precision", options.precision, "--target", options.target]
    if size_hw is None:
        return compile_anew(name, arguments)
    return compile_anew(f"{name}-{_name(size_hw)}", [*arguments, "--imgsz", _name(size_hw)])


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    own = rows[0]
    titles = ["--imgsz", "ms alone", "FPS", f"of {own['size']}'s", f"IoU with {own['size']}", "worst"]
    with_truth = own["max_f"] is not None
    titles += ["max F-measure", "MAE"] if with_truth else []
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        cells = [
            row["size"],
            f"{row['ms']:.1f}",
            f"{row['fps']:.2f}",
            f"{row['fps_over_own']:.2f}",
            f"{row['iou_mean']:.4f}",
            f"{row['iou_worst']:.3f} ({row['worst_picture']})" if row["worst_picture"] else f"{row['iou_worst']:.3f}",
        ]
        cells += [f"{row['max_f']:.4f}", f"{row['mae']:.4f}"] if with_truth else []
        yield f"| {' | '.join(cells)} |"


def _ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    own, *others = rows
    return {f"fps_{row['size']}_over_{own['size']}": row["fps_over_own"] for row in others} | {
        f"iou_{row['size']}_with_{own['size']}": row["iou_mean"] for row in others
    }


def _median_ratio(rates_hz: Sequence[float], others_hz: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(rates_hz, others_hz, strict=True))


def _sizes(text: str) -> list[tuple[int, int]]:
    return [read_size(part) for part in text.split(",")]


def _name(size_hw: Sequence[int]) -> str:
    height, width = size_hw
    return str(height) if height == width else f"{height}x{width}"
