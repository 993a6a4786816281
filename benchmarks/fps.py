"""How fast a network is on this machine, and how far its masks agree with FP32: a row for each backend and precision that runs here.

Each row is measured in a process of its own, so that its memory is its own and a crash is a row that says so. FPS and latency are
those of the backend alone, from frames in memory to masks in memory, copies to a GPU and back included. What decoding, drawing and
writing add is what ``python -m benchmarks latency`` measures.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.shared.environment import write_result
from benchmarks.shared.passes import alone_hz, read_images
from benchmarks.shared.process import in_its_own_process, peak_memory_mb
from calibration.metrics.agreement import iou
from calibration.sets.photographs import PhotographSource
from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import PUBLISHED, open_model
from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.command.command_line import OptionParser
from pipeline.command.freed_memory import keep_freed_memory
from pipeline.engines import ENGINES, is_here, open_engine
from pipeline.engines.base import Engine
from pipeline.errors import EdgemaskError
from pipeline.frames.frame import Frame, Image
from pipeline.frames.pixels import Pixels
from pipeline.machine.gpu_sign import is_seen
from pipeline.terminal import logger_of

log = logger_of(__name__)

KEEPS_IOU = 0.99
"""Masks with this IoU or more with those of FP32 count as kept."""

SIZE_WH = (1280, 720)
"""Of the photographs that are timed where no source is given."""

SECONDS = 3.0
"""How long each engine is timed for its latency, and again for its throughput."""

EXPLAINED = """
FPS: frames a second with as many in flight as the engine takes, as for a video. p50, p99: one frame at a time; half and 99 of 100 take
at most so long. IoU: agreement of the masks with those of FP32 on the package's photographs, mean and worst; 1 is all.
Memory: the most that a process with this engine alone takes of the machine's, without a GPU's own."""

_WARM_UP, _LEAST, _MOST = 2, 8, 400  # calls
_TIMED = 8  # photographs; they lie in memory, which is measured too


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks`` is asked without a question.

    Attributes:
        model: a bundle's folder or a published network's name.
        source: frames to time on; None: photographs of the package at 1280×720.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    model: str
    source: str | None
    plot: str | None
    json: str | None


@dataclass(frozen=True, slots=True)
class Case:
    """A row before it is measured: a program, and what runs it."""

    bundle: Bundle
    backend: str

    @property
    def name(self) -> str:
        """As the verdict calls it."""
        return f"{self.bundle.manifest.precision} on {self.backend}"

    @property
    def program_path(self) -> Path:
        """The file that is run: the plan that was built for the backend, else the program."""
        plans = [entry.file for entry in self.bundle.manifest.engines if entry.runtime == self.backend]
        return self.bundle.folder / plans[-1] if plans else self.bundle.program_path


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured, or why not.

    Attributes:
        precision: of the program.
        backend: a key of ``pipeline.engines.ENGINES``.
        engine: backend and device in words.
        fps: frames a second.
        p50_ms: of a frame alone, median.
        p99_ms: the same, 99th percentile.
        iou_mean: with the masks of FP32; None where there is no FP32 to compare with.
        iou_worst: of the photographs.
        program_mb: of the file that is run, 10⁶ bytes.
        memory_mb: at most, of a process with this engine alone, 10⁶ bytes.
        error: why there are no figures; empty if there are.
    """

    precision: str
    backend: str
    engine: str = ""
    fps: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    iou_mean: float | None = None
    iou_worst: float | None = None
    program_mb: float = 0.0
    memory_mb: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        """As the verdict calls it."""
        return f"{self.precision} on {self.backend}"


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks`` takes without a question."""
    parser.add_argument(
        "model",
        nargs="?",
        default="u2netp",
        metavar="MODEL|BUNDLE",
        help="a published network or a bundle's folder (default: %(default)s)",
    )
    parser.add_argument(
        "--source", metavar="SOURCE", help="frames to time on (default: photographs of the package at 1280×720)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the frames per second")


def measure(options: Options) -> None:
    """Measure every case, and print the table and a verdict.

    Raises:
        EdgemaskError: there is no such model, or the source cannot be read.
    """
    said: list[str] = []
    cases, reference = find_cases(options.model, said.append)
    with TemporaryDirectory(prefix="edgemask.") as scratch:
        masks_path = None if reference is None else Path(scratch) / "masks.npz"
        rows = list(_measured(cases, reference, options.source, masks_path))
    manifest = cases[0].bundle.manifest
    print(
        f"{manifest.model}, {manifest.network_size_hw[0]}×{manifest.network_size_hw[1]} inside, frames of {_frames_of(options)}"
    )
    print("\n".join([*table(rows), EXPLAINED, *(f"note: {line}" for line in said), verdict(rows)]))
    if options.plot:
        from benchmarks.shared.plots import bars, write_plot

        named = [(row.name, row.fps) for row in rows if not row.error]
        write_plot(options.plot, bars(f"Throughput of {manifest.model} on this machine", "frames per second", named))
    if options.json:
        result = {
            "model": manifest.model,
            "network_size_hw": manifest.network_size_hw,
            "frames": _frames_of(options),
            "table": [asdict(row) for row in rows],
            "verdict": verdict(rows),
            "ratios": {},
        }
        write_result(Path(options.json), "fps", result)


def find_cases(model: str, say: Callable[[str], None] = print) -> tuple[list[Case], Bundle | None]:
    """What can be measured of a model on this machine.

    Args:
        model: a bundle's folder or a published network's name.
        say: gets a line for what cannot.

    Returns:
        The cases, at least one; and the FP32 bundle that their masks are compared with, None where there is none.

    Raises:
        EdgemaskError: there is no such model.
    """
    bundles = [Bundle.read(model)] if os.path.exists(model) else list(_bundles_of(model, say))
    reference = next((bundle for bundle in bundles if bundle.manifest.precision == "fp32"), None) or _sibling(
        bundles[0]
    )
    if reference is None:
        say(f"no FP32 program of {bundles[0].manifest.model} is here to compare masks with")
    seen = is_seen(Path("/"), os.environ)
    if not seen:
        say("no NVIDIA GPU is seen here: TensorRT is not measured")
    cases = [
        Case(bundle, name)
        for bundle in bundles
        for name, kind in ENGINES.items()
        if (seen or not kind.gpu)
        and not kind.remote
        and is_here(kind)
        and (
            not kind.plans
            or name in BUILT_FROM_PROGRAM
            or any(entry.runtime == name for entry in bundle.manifest.engines)
        )
    ]
    return cases, reference


def verdict(rows: Sequence[Row]) -> str:
    """What the rows say, in one line."""
    good = [row for row in rows if not row.error]
    if not good:
        return "nothing could be measured here: the rows say why"
    fastest = max(good, key=lambda row: row.fps)
    text = f"{fastest.name}{' is the fastest here' if len(good) > 1 else ''}: {fastest.fps:.1f} frames a second"
    compared = [row for row in good if row.iou_mean is not None]
    losing = [row for row in compared if (row.iou_mean or 0.0) < KEEPS_IOU]
    if not compared:
        return f"{text}; masks were not compared"
    if not losing:
        return f"{text}; nothing loses masks" if len(compared) > 1 or fastest.precision != "fp32" else text
    told = ", ".join(f"{row.name} (IoU {row.iou_mean:.3f})" for row in losing)
    text = f"{text}; {told} lose{'s' * (len(losing) == 1)} masks"
    keeping = [row for row in compared if row not in losing]
    if fastest in losing and keeping:
        best = max(keeping, key=lambda row: row.fps)
        text += f": the fastest that keeps them is {best.name}, {best.fps:.1f} frames a second"
    return text


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as a table in Markdown."""
    titles = (
        "precision",
        "backend",
        "FPS",
        "p50, ms",
        "p99, ms",
        "IoU with FP32",
        "worst",
        "program, MB",
        "memory, MB",
    )
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        if row.error:
            yield f"| {row.precision} | {row.backend} | {row.error} |" + " |" * (len(titles) - 3)
            continue
        cells = [row.precision, row.backend, f"{row.fps:.1f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}"]
        cells += ["–" if value is None else f"{value:.4f}" for value in (row.iou_mean, row.iou_worst)]
        yield f"| {' | '.join([*cells, f'{row.program_mb:.1f}', f'{row.memory_mb:.0f}'])} |"


def _bundles_of(name: str, say: Callable[[str], None]) -> Iterator[Bundle]:
    """A published network's bundles: FP32, and what else the package holds of it; FP16 compiled where it does not."""
    yield open_model(name)
    known = sorted(PUBLISHED.glob(f"{name}-*/"))
    yield from (Bundle.read(folder) for folder in known)
    if not any(folder.name == f"{name}-fp16" for folder in known):
        from benchmarks.shared.bundles import compiled_once  # the build half, which a published network does not need

        try:
            log.info(f"{name}: compiling FP16, once for this version")
            yield compiled_once(f"{name}-fp16", ["--model", name, "--precision", "fp16", "--quiet"])
        except EdgemaskError:
            say(f"FP16 of {name} could not be compiled: what is above on standard error says why")


def _sibling(bundle: Bundle) -> Bundle | None:
    """The published FP32 bundle of the same weights, contract and size."""
    with suppress(EdgemaskError):
        found = Bundle.read(PUBLISHED / bundle.manifest.model)
        one, other = found.manifest, bundle.manifest
        same = one.weights.get("sha256") == other.weights.get("sha256") and one.contract == other.contract
        return found if same and one.network_size_hw == other.network_size_hw else None
    return None


def _measured(
    cases: Sequence[Case], reference: Bundle | None, source: str | None, masks_path: Path | None
) -> Iterator[Row]:
    if reference is not None:
        in_its_own_process(write_masks, reference, masks_path)
    with tqdm(cases, unit=" rows", leave=False) as progress:
        for case in progress:
            progress.set_description(case.name)
            try:
                yield in_its_own_process(measure_case, case, source, masks_path)
            except EdgemaskError as error:
                yield Row(case.bundle.manifest.precision, case.backend, error=str(error))


def measure_case(case: Case, source: str | None, masks_path: Path | None) -> Row:
    """Measure one case, in this process.

    Args:
        case: program and backend; a GPU's plan is built where there is none.
        source: frames to time on; None: photographs of the package.
        masks_path: what ``write_masks`` wrote; None: nothing to compare with.

    Raises:
        EdgemaskError: the backend does not run here, or the source cannot be read.
    """
    keep_freed_memory()  # as the command does

    def rebuild(bundle: Bundle, backend: str, reason: str) -> Bundle:
        return rebuild_plan(bundle, backend, reason, quiet=True)

    with open_engine(case.bundle, case.backend, rebuild=rebuild) as engine:
        bundle, description = engine.bundle, engine.description
        images = _images(source, bundle)
        times_ms = sorted(_times_ms(engine, images))
        memory_mb = peak_memory_mb()
        ious = [] if masks_path is None else _ious(engine, masks_path)
        alone = alone_hz(engine, images, _count(times_ms)) if engine.on_gpu else 0.0
    if not engine.on_gpu:  # as a file's frames are computed: two at once, each on half of the cores
        with open_engine(case.bundle, case.backend, overlap=True) as engine:
            alone_hz(engine, images, 2 * engine.in_flight)
            alone = alone_hz(engine, images, _count(times_ms))
    return Row(
        bundle.manifest.precision,
        case.backend,
        description,
        round(alone, 3),
        round(statistics.median(times_ms), 3),
        round(float(np.percentile(times_ms, 99)), 3),
        round(statistics.fmean(ious), 5) if ious else None,
        round(min(ious), 5) if ious else None,
        round(Case(bundle, case.backend).program_path.stat().st_size / 1e6, 3),
        round(memory_mb, 1),
    )


def write_masks(bundle: Bundle, path: Path) -> None:
    """Write a bundle's masks of the photographs that prove, computed by ONNX Runtime, as ``NAME: (H, W) uint8``."""
    with open_engine(bundle, "onnxruntime") as engine:
        masks = {frame.name: engine(frame.as_pixels(engine.pixels)[None])[0] for frame in _photographs(bundle)}
    np.savez(path, **masks)


def _ious(engine: Engine, masks_path: Path) -> list[float]:
    task = engine.bundle.manifest.task
    ious = []
    with np.load(masks_path) as expected:
        for frame in _photographs(engine.bundle):
            mask_hw = engine(frame.as_pixels(engine.pixels)[None])[0]
            expected_hw = expected[frame.name]
            if mask_hw.shape != expected_hw.shape:  # one of the two takes frames of one size alone
                expected_hw = cv2.resize(expected_hw, mask_hw.shape[::-1], interpolation=cv2.INTER_NEAREST)
            ious.append(iou(mask_hw, expected_hw, task))
    return ious


def _photographs(bundle: Bundle) -> Iterator[Frame]:
    """The photographs that prove, at the size that the program takes if it takes but one; of even sides."""
    for frame in PhotographSource("verification"):
        height, width = bundle.manifest.frame_size_hw or (side // 2 * 2 for side in frame.size_hw)
        yield Frame(_resized(frame.image, (width, height)), frame.index, frame.pts_s, frame.source, frame.name)


def _images(source: str | None, bundle: Bundle) -> list[Image]:
    pixels: Pixels = bundle.manifest.pixels
    if source is not None:
        return read_images(source, pixels, _TIMED)
    height, width = bundle.manifest.frame_size_hw or SIZE_WH[::-1]
    frames = (
        Frame(_resized(frame.image, (width, height)), 0, 0.0, "photographs", frame.name)
        for frame in islice(PhotographSource(), _TIMED)
    )
    return [frame.as_pixels(pixels) for frame in frames]


def _resized(image: Image, size_wh: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), np.uint8)


def _times_ms(engine: Engine, images: Sequence[Image]) -> list[float]:
    """Times of single calls, after some to warm up, for as long as ``SECONDS`` or as few as ``_LEAST``."""
    for image in images[:_WARM_UP]:
        engine(image[None])
    times_ms: list[float] = []
    while len(times_ms) < _LEAST or (len(times_ms) < _MOST and sum(times_ms) < 1000 * SECONDS):
        frames = images[len(times_ms) % len(images)][None]
        start_s = time.perf_counter()
        engine(frames)
        times_ms.append(1000 * (time.perf_counter() - start_s))
    return times_ms


def _count(times_ms: Sequence[float]) -> int:
    """How many frames take about as long as ``SECONDS``."""
    return max(_LEAST, round(1000 * SECONDS / statistics.median(times_ms)))


def _frames_of(options: Options) -> str:
    return Path(options.source).name if options.source else "photographs at {}×{}".format(*SIZE_WH)
