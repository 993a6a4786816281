"""How right are masks that ``--fps`` moves with the picture?

Subjects of a data set with ground truth move over its other pictures, so that the true mask of every frame is known. The governor of
``--fps`` gets these frames, and a backend that answers with the true mask, but late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.shared.environment import write_result
from benchmarks.shared.moving_clips import FPS, KINDS, SIZE_HW, Clip, Pictures, draw
from calibration.metrics.agreement import iou
from pipeline.command.command_line import OptionParser
from pipeline.engines.base import Computed
from pipeline.errors import EngineHungError, OptionError
from pipeline.frames.frame import Frame, Image
from pipeline.masks.agreement import TRUSTED_FROM, Trust
from pipeline.masks.governor import Governor
from pipeline.stages.stage_timer import StageTimer

if TYPE_CHECKING:
    from pipeline.engines.base import Engine

COLUMNS = {  # entry of a row: (what the table calls it, how it is written)
    "iou_all": ("IoU when all are moved", "{:.3f}"),
    "iou_all_p5": ("5th percentile", "{:.3f}"),
    "moved": ("frames with a moved mask", "{:.0%}"),
    "iou": ("their IoU", "{:.3f}"),
    "iou_p5": ("5th percentile", "{:.3f}"),
    "below": (f"below {TRUSTED_FROM:g}", "{:.0%}"),
    "told": ("IoU that the run tells", "{:.3f}"),
    "enough_fps": ("computed a second that would be enough, by the run", "{:.1f}"),
}

# Only a machine that stands still makes the backend wait so long.
_WAIT_S = 30
# What Prefetch takes to hand on a mask that is there.
_HANDED_ON_S = 0.004

EXPLAINED = """
IoU: of moved masks with the true ones. What a run tells: what its moved masks have by its own comparisons, and how many masks a second
would be enough, where those that are computed are not. Frames before a clip's second computed mask get no moved mask."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks motion`` is asked.

    Attributes:
        data: a folder with images/ and masks/ of the same names.
        ending: of the names of its pictures that clips are made of.
        computed_fps: masks a second, of 25 frames.
        clips: of each kind.
        kinds: of ``KINDS``.
        json: a file for the result; None: no file.
    """

    data: str
    ending: str
    computed_fps: float
    clips: int
    kinds: Sequence[str]
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks motion`` takes."""
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a folder with images/ and masks/ of the same names"
    )
    parser.add_argument(
        "--ending",
        default="5",
        metavar="TEXT",
        help="clips are made of pictures whose names end so; constants are chosen with 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--computed-fps",
        type=float,
        default=5.0,
        metavar="N",
        help=f"masks that the backend computes a second, of {FPS} frames (default: %(default)s)",
    )
    parser.add_argument("--clips", type=int, default=3, metavar="N", help="clips of each kind (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="which kinds (default: all)"
    )


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: an option is none, or the data set has too few pictures.
    """
    if not 1 <= options.computed_fps <= FPS:
        raise OptionError(f"--computed-fps: expected 1 to {FPS}, got {options.computed_fps:g}")
    if options.clips < 1:
        raise OptionError(f"--clips: expected 1 or more, got {options.clips}")
    data = Path(options.data)
    pictures = Pictures(data, options.ending)
    late = math.ceil(FPS / options.computed_fps)
    rows, cpu_ms = [], []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # of which one core's time is told
    try:
        for kind in tqdm(options.kinds, unit=" kinds"):
            runs = []
            for seed in range(options.clips):
                clip = draw(kind, pictures, seed)
                runs.append((_run(clip, late, _Always), _run(clip, late, Trust)))
                cpu_ms.append(runs[-1][1].cpu_ms)
            rows.append(_row(kind, runs, FPS / late))
    finally:
        cv2.setNumThreads(threads)
    clip_of = f"{options.clips} clips of each kind, {SIZE_HW[1]}×{SIZE_HW[0]}, {FPS} frames a second"
    print(f"{clip_of}, {FPS / late:.3g} computed, pictures of {data.name} ending in {options.ending}")
    print("\n".join(table(rows)))
    print(f"{np.mean(cpu_ms):.1f} ms of one core for each frame")
    print(EXPLAINED)
    if options.json:
        result = {
            "data": data.name,
            "ending": options.ending,
            "clips": options.clips,
            "frame_size_hw": SIZE_HW,
            "fps": FPS,
            "computed_fps": round(FPS / late, 3),
            "cpu_ms": round(float(np.mean(cpu_ms)), 2),
            "table": rows,
            "ratios": {},
        }
        write_result(Path(options.json), "motion", result)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a table in Markdown.

    Args:
        rows: of a result.
    """
    yield "| clip | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row in rows:
        cells = ("–" if row[name] is None else text.format(row[name]) for name, (_, text) in COLUMNS.items())
        yield f"| {row['label']} | " + " | ".join(cells) + " |"


class _Run(NamedTuple):
    """What one clip came to.

    Attributes:
        frames: how many.
        ious: of moved masks with the true ones.
        told: of them by the run's own comparisons.
        trust: of the scene at its end.
        cpu_ms: what a frame took of one core.
    """

    frames: int
    ious: list[float]
    told: list[float]
    trust: Trust
    cpu_ms: float


class _Always(Trust):
    """Has every mask moved, however wrong."""

    def allows(self, age: float) -> bool:
        return True


class _Late:
    """A backend that has the true masks, each so many frames after it was asked for.

    The number of a frame stands in its first pixel.

    Attributes:
        others_s: processor time of who got the frames, between one and the next.
    """

    pixels = "bgr"
    keeps_state = False

    def __init__(self, masks: Sequence[Image], late: int) -> None:
        self._masks, self._late = masks, late
        self.others_s = 0.0
        self._now = 0  # the frame that is being given
        self._asked: list[int] = []
        self._given = 0
        self._changed = Condition()

    def renew(self) -> None:
        pass

    def submit(self, frames_nhwc: Image, look: object = None, state: object = None) -> None:
        with self._changed:
            self._asked.append(_number(frames_nhwc[0]))
            self._changed.notify_all()

    def collect_all(self) -> Computed:
        with self._changed:
            number = self._asked[-1]
            if not self._changed.wait_for(lambda: self._is_due(number), _WAIT_S):
                raise EngineHungError(
                    f"frame {number}: expected {self._late} frames more, got less: is there a scene cut?"
                )
            self._given += 1
            self._changed.notify_all()
        return Computed(self._masks[number][None])

    def frames(self, images: Sequence[Image]) -> Iterator[Frame]:
        """The clip in the time of its frames: each comes when the masks that are due before it are there."""
        asked = 0  # how often, once the frame before has been looked at
        for number, image in enumerate(images):
            with self._changed:
                self._now = number
                self._changed.notify_all()
                while len(self._asked) < asked or (self._given < asked and self._is_due(self._asked[-1])):
                    if not self._changed.wait(_WAIT_S):
                        raise EngineHungError(f"frame {number}: expected mask {asked} before it, got {self._given}")
                asked += self._given == asked  # the governor keeps the backend busy
            time.sleep(_HANDED_ON_S)
            frame = Frame(_numbered(image, number), number, number / FPS, "clip", str(number))
            since_s = time.thread_time()
            yield frame
            self.others_s += time.thread_time() - since_s
        with self._changed:  # what is computed now is for nobody
            self._now += self._late
            self._changed.notify_all()

    def _is_due(self, number: int) -> bool:
        return number == 0 or self._now >= number + self._late


def _numbered(image: Image, number: int) -> Image:
    image = image.copy()
    image[0, 0, :2] = divmod(number, 256)
    return image


def _number(image: Image) -> int:
    return 256 * int(image[0, 0, 0]) + int(image[0, 0, 1])


def _run(clip: Clip, late: int, trust: Callable[[], Trust]) -> _Run:
    """Give a clip to a governor of its own."""
    trusts: list[Trust] = []

    def new_trust() -> Trust:
        trusts.append(trust())
        return trusts[-1]

    backend, governor = _Late(clip.masks, late), Governor(1000, "binary", trust=new_trust)
    moved: dict[int, Image] = {}
    for frame in governor.masked(backend.frames(clip.images), cast("Engine", backend), StageTimer()):
        if governor.reuse.moved > len(moved):
            assert frame.mask is not None
            moved[frame.index] = frame.mask
    frames = len(clip.images)
    return _Run(
        frames,
        [iou(mask, clip.masks[index]) for index, mask in moved.items()],
        list(governor.reuse.agreements),
        trusts[-1],
        1000 * backend.others_s / frames,
    )


def _row(kind: str, runs: Sequence[tuple[_Run, _Run]], computed_fps: float) -> dict[str, Any]:
    """What the clips of a kind came to, with every mask moved and as it is."""
    every = np.concatenate([always.ious for always, _ in runs])
    moved = np.concatenate([run.ious for _, run in runs])
    told = np.concatenate([run.told for _, run in runs])
    too_few = [run.trust.times_as_many for _, run in runs if not run.trust.is_enough]
    return {
        "clip": kind,
        "label": KINDS[kind][0],
        "frames": sum(run.frames for _, run in runs),
        "iou_all": _rounded(np.mean, every),
        "iou_all_p5": _rounded(_low, every),
        "moved": round(len(moved) / sum(run.frames for _, run in runs), 4),
        "iou": _rounded(np.mean, moved),
        "iou_p5": _rounded(_low, moved),
        "below": _rounded(np.mean, moved < TRUSTED_FROM),
        "told": _rounded(np.mean, told),
        "clips_with_too_few": len(too_few),
        "enough_fps": _rounded(np.median, computed_fps * np.array(too_few)),
    }


def _low(values: NDArray[np.float64]) -> float:
    return float(np.percentile(values, 5))


def _rounded(of: Callable[..., Any], values: NDArray[Any]) -> float | None:
    return round(float(of(values)), 4) if len(values) else None
