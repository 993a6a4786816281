"""How much do masks flicker where the picture stands still, and what does smoothing leave of it?

A clip is measured as it is, and once more with a camera's noise added. Areas are compared with the masks of the clip as it is, not
smoothed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.shared.bundles import read_or_compile
from benchmarks.shared.clip_options import ClipOptions, add_clip_options
from benchmarks.shared.environment import write_result
from calibration.metrics.agreement import iou
from calibration.metrics.flicker import FlickerMeter
from pipeline.command.command_line import OptionParser
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import OptionError
from pipeline.frames.frame import Image
from pipeline.masks.edges import refine_edges
from pipeline.masks.steady import TIME_CONSTANTS_S
from pipeline.masks.temporal import DEFAULT_TIME_CONSTANT_S, Smoothing
from pipeline.sources import open_source

Steady = Callable[[Image, Image, float], Image]

SETTINGS = {  # key of a row: (what the table calls it, time constant in s or None, with edges)
    "off": ("off", None, False),
    "default": (f"{DEFAULT_TIME_CONSTANT_S:g} s (default)", DEFAULT_TIME_CONSTANT_S, False),
    "stronger": (f"{TIME_CONSTANTS_S['strong']:g} s", TIME_CONSTANTS_S["strong"], False),
    "edges": ("edges alone", None, True),
    "default_edges": (f"edges, then {DEFAULT_TIME_CONSTANT_S:g} s", DEFAULT_TIME_CONSTANT_S, True),
}
COLUMNS = {  # entry of a row: (what the table calls it, how it is written)
    "flicker": ("flicker × 1000", "{:.3f}"),
    "of_off": ("of that without", "{:.1%}"),
    "iou_mean": ("IoU with the FP32 mask", "{:.4f}"),
    "iou_worst": ("worst", "{:.4f}"),
    "cuts": ("cuts", "{}"),
    "ms_1080p": ("ms at 1080p", "{:.1f}"),
}

_SIZE_1080P_WH = (1920, 1080)
_TIMED_CALLS = 30
_DRAWN = ("off", "default")


EXPLAINED = """
flicker: mean change of the mask from frame to frame where the picture does not change; lower is steadier. IoU: what smoothing leaves
of the masks, 1 is all. cuts: changes of scene that were noticed, where smoothing begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClipOptions):
    """What ``python -m benchmarks flicker`` is asked.

    Attributes:
        noise: standard deviation of the noise that is added, of 255.
        max_frames: measure on the first so many; None: on all.
    """

    noise: float
    max_frames: int | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks flicker`` takes."""
    add_clip_options(parser, plot="draw the flicker of every frame, without smoothing and with the default")
    parser.add_argument(
        "--noise",
        type=float,
        default=6.0,
        metavar="LEVELS",
        help="standard deviation of the added noise, in levels of 255 (default: %(default)s)",
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="measure on the first N frames (default: all)")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the clip cannot be read or has no two frames, or the bundle is none for binary masks.
    """
    if not 0 < options.noise <= 255:
        raise OptionError(f"--noise: expected a standard deviation above 0, at most 255, got {options.noise}")
    bundle = read_or_compile(options.model, "stream")
    if bundle.manifest.task != "binary":
        raise OptionError(
            f"--model {options.model}: expected a bundle of binary masks, got one of {bundle.manifest.task}"
        )
    tracks = [_Track(noise, key) for noise in (0.0, options.noise) for key in SETTINGS]
    with open_engine(bundle, options.backend) as engine:
        frames, last = _follow(tracks, engine, options)
        backend = engine.description
    if last is None or not all(track.meter.pairs for track in tracks):
        raise OptionError(
            f"--clip {options.clip}: expected a video of two frames of one scene or more, got {frames} frames"
        )
    ms_1080p = {key: _best_ms(key, *last) for key in SETTINGS}
    rows = [track.row(tracks, ms_1080p[track.key]) for track in tracks]
    manifest = bundle.manifest
    contract = manifest.contract["name"]
    print(
        f"{manifest.model}, {manifest.precision}, contract {contract}, {backend}, {frames} frames of {Path(options.clip).name}"
    )
    print("\n".join(_table(rows)))
    print(EXPLAINED)
    if options.plot:
        from benchmarks.shared.plots import lines, write_plot

        title = f"Flicker of the masks of {manifest.model} on {Path(options.clip).name}"
        write_plot(options.plot, lines(title, "frame", "flicker × 1000", _panels(tracks)))
    if options.json:
        write_result(
            Path(options.json),
            "flicker",
            {
                "clip": Path(options.clip).name,
                "frames": frames,
                "model": manifest.model,
                "precision": manifest.precision,
                "contract": contract,
                "network_size_hw": manifest.network_size_hw,
                "backend": backend,
                "table": rows,
                "ratios": {
                    f"{row['setting']}_over_off{'_noise' if row['noise'] else ''}": row["of_off"]
                    for row in rows
                    if row["setting"] != "off"
                },
            },
        )


@dataclass
class _Track:
    """A row of the table: one setting, on the clip as it is or with noise."""

    noise: float
    key: str
    meter: FlickerMeter = field(default_factory=FlickerMeter)
    ious: list[float] = field(default_factory=list)
    flickers: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._smoothing, self._steady = _steady(self.key)

    def add(self, image: Image, mask_hw: Image, pts_s: float, reference_hw: Image) -> None:
        steady_hw = self._steady(image, mask_hw, pts_s)
        self.flickers.append(self.meter.add(image, steady_hw))
        self.ious.append(iou(steady_hw, reference_hw))

    def row(self, tracks: Sequence[_Track], ms_1080p: float) -> dict[str, Any]:
        (off,) = (track for track in tracks if track.key == "off" and track.noise == self.noise)
        return {
            "noise": self.noise,
            "setting": self.key,
            "flicker": round(1000 * self.meter.flicker, 4),
            "of_off": round(self.meter.flicker / off.meter.flicker, 4) if off.meter.flicker else None,
            "iou_mean": round(float(np.mean(self.ious)), 5),
            "iou_worst": round(min(self.ious), 5),
            "worst_frame": int(np.argmin(self.ious)),
            "cuts": self._smoothing.cuts if self._smoothing else None,
            "ms_1080p": round(ms_1080p, 2),
        }


def _follow(tracks: Sequence[_Track], engine: Engine, options: Options) -> tuple[int, tuple[Image, Image] | None]:
    """Give every frame of the clip to every track; returns how many there were, and the last but one with its mask."""
    random = np.random.default_rng(0)
    last: tuple[Image, Image] | None = None
    frames = 0
    with open_source(options.clip) as source:
        for frame in tqdm(source, total=source.info.frame_count, unit=" frames"):
            reference_hw = engine(frame.image[None])[0]
            noisy = _with_noise(frame.image, options.noise, random)
            noisy_mask_hw = engine(noisy[None])[0]
            for track in tracks:
                given = (noisy, noisy_mask_hw) if track.noise else (frame.image, reference_hw)
                track.add(*given, frame.pts_s, reference_hw)
            frames += 1
            if frames == options.max_frames:
                break
            last = frame.image, reference_hw
    return frames, last


def _steady(key: str) -> tuple[Smoothing | None, Steady]:
    """What makes the masks of a setting."""
    _, time_constant_s, edges = SETTINGS[key]
    smoothing = None if time_constant_s is None else Smoothing(time_constant_s=time_constant_s)

    def steady(image: Image, mask_hw: Image, pts_s: float) -> Image:
        if edges:
            mask_hw = refine_edges(image, mask_hw)
        return mask_hw if smoothing is None else smoothing(image, mask_hw, pts_s)

    return smoothing, steady


def _with_noise(image: Image, deviation: float, random: np.random.Generator) -> Image:
    noise = random.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    noisy: Image = np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)
    return noisy


def _best_ms(key: str, image: Image, mask_hw: Image) -> float:
    """Least time of a call at 1080p; the picture moves by a pixel a frame."""
    image, mask_hw = (np.asarray(cv2.resize(array, _SIZE_1080P_WH), np.uint8) for array in (image, mask_hw))
    moved = np.roll(image, 1, axis=1), np.roll(mask_hw, 1, axis=1)
    _, steady = _steady(key)
    times_ns = []
    for index in range(_TIMED_CALLS):
        given = moved if index % 2 else (image, mask_hw)
        start_ns = time.perf_counter_ns()
        steady(*given, index / 30)
        times_ns.append(time.perf_counter_ns() - start_ns)
    return min(times_ns[1:]) / 1e6  # the first one only begins


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| noise | smoothing | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for row in rows:
        cells = {name: "–" if row[name] is None else text.format(row[name]) for name, (_, text) in COLUMNS.items()}
        cells["iou_worst"] += f" ({row['worst_frame']})"
        yield f"| {row['noise']:g} | {SETTINGS[row['setting']][0]} | " + " | ".join(cells.values()) + " |"


def _panels(tracks: Sequence[_Track]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Flicker over the frames without smoothing and by default: the clip as it is, and with noise."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for track in tracks:
        if track.key in _DRAWN:
            above = f"noise of {track.noise:g} levels" if track.noise else "the clip as it is"
            panels.setdefault(above, {})[f"smoothing {SETTINGS[track.key][0]}"] = [
                (index, 1000 * value) for index, value in enumerate(track.flickers) if value is not None
            ]
    return panels
