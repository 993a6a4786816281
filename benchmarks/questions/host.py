"""What does each step cost that the processor does for a frame, beside copying it and beside other tools?

The network and the decoder are left out. Frames come in turn, as in a video, so that no step finds its own in the processor's cache.

Ways to draw an overlay take turns, two in a process of their own. There what allocates a picture in each frame pays for page
faults; once a process has freed a large array, malloc keeps more memory and it does not. So they are measured before and after
that ("warm").
"""

from __future__ import annotations

import importlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.shared.environment import write_result
from pipeline.bundles.bundle import Manifest
from pipeline.command.command_line import OptionParser
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.masks.edges import refine_edges
from pipeline.masks.temporal import Smoothing
from pipeline.page.channel import Channel
from pipeline.render.annotations import Annotations
from pipeline.render.look import Look, soft_edge
from pipeline.render.modes import MODES
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette
from pipeline.sinks.json_lines import JsonLinesSink
from pipeline.stages.stage_timer import StageTimer

Step = Callable[[Frame], object]

SIZES = "640x360,1280x720,1920x1080,3840x2160"
ALPHA, THRESHOLD, COLOUR = 0.5, 0.5, "#ff0000"
STEPS = {  # key of a row: what the table calls it
    "memcpy": "copying the frame",
    "overlay": "overlay",
    "numpy": "overlay, numpy and floats",
    "supervision": "overlay, supervision",
    **{mode: mode for mode in MODES if mode != "overlay"},
    "smoothing": "smoothing over time",
    "edges": "drawing masks to edges",
    "annotations": "HUD and legend",
    "json_lines": "results as JSON lines",
    "page": "page, watched",
}

_SHARE = 0.2
_NETWORK_SIDE = 320
_STEP_PX = 3  # what moves from frame to frame
_WARM_UP = 2
# The largest array after which glibc's malloc keeps as much.
_LARGE_BYTES = 31 << 20


OF_X = "time of a step / time of copying the frame"

EXPLAINED = """
A cell: µs for one frame, and how many times as long as copying that frame takes, which is the least that anybody can do with it.
warm: the same once malloc keeps large arrays, which helps who allocates a picture in each frame."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks host`` is asked.

    Attributes:
        sizes: of the frames, WxH,….
        rounds: timed calls of a step.
        frames: frames that come in turn.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    sizes: str
    rounds: int
    frames: int
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks host`` takes."""
    parser.add_argument("--sizes", default=SIZES, metavar="WxH,…", help="size of the frames (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="timed calls of each step (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=6, metavar="N", help="different frames, used in turn (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the time of each step relative to copying the frame")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        OptionError: a size or a number is none.
    """
    sizes_wh = [_size_wh(text) for text in options.sizes.split(",")]
    for name, value in (("--rounds", options.rounds), ("--frames", options.frames)):
        if value < 1:
            raise OptionError(f"{name}: expected 1 or more, got {value}")
    peers = [peer for peer in ("supervision", "numpy") if _peer(peer) is not None]
    version = metadata.version("supervision") if "supervision" in peers else None
    rows: list[dict[str, Any]] = []
    for size_wh in sizes_wh:
        rows += _rows(size_wh, options.frames, options.rounds, peers)
    told = f"supervision {version}" if version else "without supervision (pip install 'edgemask[peers]')"
    print(f"µs per frame (of copying it): median of {options.rounds}; mask on {_SHARE:.0%} of the frame; {told}")
    print("\n".join(_table(rows, sizes_wh)))
    print(EXPLAINED)
    found = ratios(rows)
    for name, number in found.items():
        print(f"{name}: {number:g}")
    if options.plot:
        from benchmarks.shared.plots import grouped_bars, write_plot

        write_plot(options.plot, grouped_bars("Work of the processor for a frame", OF_X, _groups(rows), log=True))
    if options.json:
        write_result(
            Path(options.json),
            "host",
            {
                "rounds": options.rounds,
                "frames_in_turn": options.frames,
                "mask_share": _SHARE,
                "supervision": version,
                "opencv_threads": cv2.getNumThreads(),
                "table": rows,
                "ratios": found,
            },
        )


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What is held against bounds, of the sizes and steps that were measured."""
    found = {}
    row = {(row["step"], *row["size_wh"]): row for row in rows}
    overlay, larger = row.get(("overlay", 1920, 1080)), row.get(("overlay", 3840, 2160))
    for peer in ("supervision", "numpy"):
        compared = row.get((peer, 1920, 1080))
        if compared is not None:
            found[f"overlay_{peer}_over_ours"] = float(compared["of_overlay"])
            found[f"overlay_{peer}_over_ours_warm"] = float(compared["of_overlay_warm"])
    if overlay is not None:
        found["overlay_ms_1080p"] = round(overlay["us"] / 1000, 3)
        if larger is not None:
            found["overlay_4k_over_1080p"] = round(larger["us"] / overlay["us"], 3)
    return found


def moving_frames(size_wh: tuple[int, int], count: int) -> list[Frame]:
    """Pictures with a soft-edged ellipse of a fifth of the frame in their masks, which moves by a few pixels a frame.

    The mask is what a network of 320 × 320 gives, resized to the frame.
    """
    width, height = size_wh
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (max(1, height // 24), max(1, width // 24), 3), dtype=np.uint8)
    image = np.asarray(cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)
    image = np.asarray(cv2.add(image, random.integers(0, 8, image.shape, dtype=np.uint8)), np.uint8)
    small = np.zeros((_NETWORK_SIDE, _NETWORK_SIDE), np.uint8)
    radius = _NETWORK_SIDE * math.sqrt(_SHARE / math.pi)
    middle = (_NETWORK_SIDE // 2, _NETWORK_SIDE // 2)
    cv2.ellipse(small, middle, (round(0.8 * radius), round(radius / 0.8)), 0, 0, 360, 255, cv2.FILLED)
    mask = np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), 2), size_wh), np.uint8)
    return [
        Frame(
            np.roll(image, index * _STEP_PX, axis=1),
            index,
            index / 30,
            "clip",
            f"clip_{index}",
            mask=np.roll(mask, index * _STEP_PX, axis=1),
        )
        for index in range(count)
    ]


def numpy_overlay(image: Image, mask_hw: Image) -> Image:
    """The overlay as a formula of floats."""
    weight = (ALPHA * soft_edge(THRESHOLD)[mask_hw]).astype(np.float32)[..., np.newaxis]
    colour = np.array(load_palette(COLOUR).color(1), np.float32)
    view: Image = (image * (1 - weight) + colour * weight + np.float32(0.5)).astype(np.uint8)
    return view


def _supervision_overlay() -> Step | None:
    """The overlay as supervision draws it, from the network's mask on; None: it is not installed."""
    try:
        sv = importlib.import_module("supervision")
    except ImportError:
        return None
    annotator = sv.MaskAnnotator(color=sv.Color.from_hex(COLOUR), opacity=ALPHA)

    def overlay(frame: Frame) -> object:
        assert frame.mask is not None
        masks_nhw = (frame.mask >= round(255 * THRESHOLD))[np.newaxis]
        boxes = sv.mask_to_xyxy(masks_nhw).astype(np.float32)
        detections = sv.Detections(xyxy=boxes, mask=masks_nhw, class_id=np.zeros(1, int))
        return annotator.annotate(frame.image.copy(), detections)

    return overlay


def pair_us(peer: str, size_wh: tuple[int, int], count: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median times of copying, of the overlay and of what it is compared with; before and after a large array was freed."""
    frames = moving_frames(size_wh, count)
    other = _peer(peer)
    assert other is not None
    steps = {"memcpy": _copying(frames), "overlay": _drawing("overlay"), peer: other}
    fresh = _medians_us(steps, frames, rounds)
    np.empty(_LARGE_BYTES, np.uint8)  # freed at once
    return fresh, _medians_us(steps, frames, rounds)


def _rows(size_wh: tuple[int, int], count: int, rounds: int, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each step's median time of a call, and the same over that of copying the frame in the same turns."""

    def row(step: str, us: Mapping[str, float], **more: float) -> dict[str, Any]:
        of_memcpy = round(us[step] / us["memcpy"], 2)
        return {"step": step, "size_wh": list(size_wh), "us": round(us[step], 1), "of_memcpy": of_memcpy, **more}

    for peer in peers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            fresh, warm = process.submit(pair_us, peer, size_wh, count, rounds).result()
        if peer == peers[0]:
            yield row("memcpy", fresh)
            yield row("overlay", fresh, us_warm=round(warm["overlay"], 1))
        of_overlay, of_overlay_warm = (round(us[peer] / us["overlay"], 3) for us in (fresh, warm))
        us_warm = round(warm[peer], 1)
        yield row(peer, fresh, us_warm=us_warm, of_overlay=of_overlay, of_overlay_warm=of_overlay_warm)
    frames = moving_frames(size_wh, count)
    copying = _copying(frames)
    with ExitStack() as ending:
        for name, step in _other_steps(frames, ending).items():
            yield row(name, _medians_us({"memcpy": copying, name: step}, frames, rounds))


def _peer(name: str) -> Step | None:
    return _supervision_overlay() if name == "supervision" else lambda frame: numpy_overlay(*_arrays(frame))


def _copying(frames: Sequence[Frame]) -> Step:
    copied = np.empty_like(frames[0].image)
    return lambda frame: np.copyto(copied, frame.image)


def _medians_us(steps: Mapping[str, Step], frames: Sequence[Frame], rounds: int) -> dict[str, float]:
    """Each step once on a frame, then on the next one."""
    times_ns: dict[str, list[int]] = {name: [] for name in steps}
    calls = 0
    for _ in range(_WARM_UP + rounds):
        for name, step in steps.items():
            frame = frames[calls % len(frames)]
            calls += 1
            start_ns = time.perf_counter_ns()
            step(frame)
            times_ns[name].append(time.perf_counter_ns() - start_ns)
    return {name: float(np.median(each[_WARM_UP:])) / 1000 for name, each in times_ns.items()}


def _other_steps(frames: Sequence[Frame], ending: ExitStack) -> dict[str, Step]:
    steps = {mode: _drawing(mode) for mode in MODES if mode != "overlay"}
    steps["smoothing"] = _smoothing()
    steps["edges"] = lambda frame: refine_edges(*_arrays(frame))
    renderer = Renderer(Look("overlay"), "binary")
    steps["annotations"] = _annotations(frames, renderer)
    folder = ending.enter_context(tempfile.TemporaryDirectory())
    sink = JsonLinesSink(str(Path(folder, "results.jsonl")), SourceInfo("clip", "frames"), renderer)
    ending.callback(sink.discard)
    steps["json_lines"] = _found_anew(sink)
    channel = Channel("clip", ending.enter_context(ThreadPoolExecutor(1)))
    channel.watchers = 1
    steps["page"] = channel.put
    return steps


def _found_anew(sink: JsonLinesSink) -> Step:
    def write(frame: Frame) -> None:
        frame.found = None  # what is found in a frame is kept in it, and frames come here again
        sink.write(frame)

    return write


def _drawing(mode: str) -> Step:
    renderer = Renderer(Look(mode, alpha=ALPHA, threshold=THRESHOLD, palette=load_palette(COLOUR)), "binary")
    return lambda frame: renderer(*_arrays(frame))


def _smoothing() -> Step:
    smoothing, calls = Smoothing(), 0

    def smooth(frame: Frame) -> object:
        nonlocal calls
        calls += 1
        return smoothing(*_arrays(frame), calls / 30)

    return smooth


def _annotations(frames: Sequence[Frame], renderer: Renderer) -> Step:
    manifest = Manifest(
        model="network",
        task="binary",
        classes=("subject",),
        network_size_hw=(_NETWORK_SIDE, _NETWORK_SIDE),
        precision="fp32",
        contract={},
        weights={},
        tools={},
        created="",
    )
    annotations = Annotations(manifest, "backend", renderer, hud=True, legend=True)
    timer = StageTimer()
    for stage in ("decode", "engine", "render", "write"):
        timer.add(stage, 1.0)
    for frame in frames:
        frame.view = renderer(*_arrays(frame))
    return lambda frame: annotations(frame, timer)


def _arrays(frame: Frame) -> tuple[Image, Image]:
    assert frame.mask is not None
    return frame.image, frame.mask


def _size_wh(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if found is None:
        raise OptionError(f"--sizes: expected WIDTHxHEIGHT, several divided by commas, got {text!r}")
    return int(found[1]), int(found[2])


def _table(rows: Sequence[Mapping[str, Any]], sizes_wh: Sequence[tuple[int, int]]) -> Iterator[str]:
    cells = {}
    for row in rows:
        warm = f", warm {row['us_warm']:.0f}" if "us_warm" in row else ""
        cells[row["step"], tuple(row["size_wh"])] = f"{row['us']:.0f} ({row['of_memcpy']:.1f}){warm}"
    yield "| step | " + " | ".join(f"{width}×{height}" for width, height in sizes_wh) + " |"
    yield "|---" * (len(sizes_wh) + 1) + "|"
    for step, title in STEPS.items():
        if any((step, size_wh) in cells for size_wh in sizes_wh):
            yield f"| {title} | " + " | ".join(cells[step, size_wh] for size_wh in sizes_wh) + " |"


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each step's time over that of copying the frame, by size."""
    return {
        title: {"{}×{}".format(*row["size_wh"]): row["of_memcpy"] for row in rows if row["step"] == step}
        for step, title in STEPS.items()
        if any(row["step"] == step for row in rows)
    }
