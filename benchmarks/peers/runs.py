"""What a run of ours or of another tool is given and gives: the same frames of the same clip, through the same network."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from pipeline.bundles.bundle import Bundle
from pipeline.errors import OptionError
from pipeline.frames.frame import Image


@dataclass(frozen=True)
class Job:
    """What everyone is given.

    Attributes:
        clip: the video.
        frames: how many of its frames to take, from the first one on.
        size_hw: of a frame.
        fps: of the video.
        bundle: ours.
        network: the same network as its publisher gives it, ONNX.
        home: a folder with that file alone, under the publisher's name.
        backend: what ours runs on a CPU.
    """

    clip: Path
    frames: int
    size_hw: tuple[int, int]
    fps: Fraction
    bundle: Bundle
    network: Path
    home: Path
    backend: str = "onnxruntime"


@dataclass(frozen=True)
class Run:
    """How long it took, and what came out.

    Attributes:
        whole_s: from the first thing done to the last file closed; of a command from its start to its exit.
        running_s: from the first frame that was finished to the last one.
        masks: of each frame, (H, W) uint8, probability × 255.
        written: bytes of the files.
        cpu_s: processor time of all threads, or of a command's process; on a machine that does other things too it says more than
            ``whole_s``.
    """

    whole_s: float
    running_s: float
    masks: Sequence[Image]
    written: int = 0
    cpu_s: float = 0.0

    @property
    def cpu_ms(self) -> float:
        """Processor time of a frame."""
        return self.cpu_s * 1e3 / len(self.masks)

    @property
    def fps(self) -> float:
        """Frames per second, end to end."""
        return len(self.masks) / self.whole_s

    @property
    def running_fps(self) -> float:
        """Frames per second once it runs; the end-to-end rate where there is one frame."""
        return (len(self.masks) - 1) / self.running_s if self.running_s > 0 else self.fps


@dataclass
class Clock:
    """Times a loop: begun before the video is opened, told of every frame that is finished."""

    start_s: float = field(default_factory=time.perf_counter)
    start_cpu_s: float = field(default_factory=time.process_time)
    finished_s: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A frame is finished."""
        self.finished_s.append(time.perf_counter())

    def run(self, masks: Sequence[Image], folder: Path) -> Run:
        """All is written and closed."""
        whole_s = time.perf_counter() - self.start_s
        cpu_s = time.process_time() - self.start_cpu_s
        return Run(whole_s, self.finished_s[-1] - self.finished_s[0], masks, bytes_in(folder), cpu_s)


Runner = Callable[[Job, Path], Run]
"""(job, an empty folder to write into) to the run.

Raises ``BackendUnavailableError`` where the tool is not here, with how to have it."""


def bytes_in(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def read_masks(folder: Path, frames: int) -> list[Image]:
    """The masks that PNG files hold, in the order of their names: grey pictures, or the opacity of those that have one.

    Raises:
        OptionError: there are more or fewer than frames, or one is neither.
    """
    paths = sorted(folder.glob("*.png"))
    if len(paths) != frames:
        raise OptionError(f"{folder.name}: expected {frames} pictures, got {len(paths)}")
    masks: list[Image] = []
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is None or (picture.ndim == 3 and picture.shape[2] != 4):
            raise OptionError(f"{path.name}: expected a mask or a cut-out, got another picture")
        masks.append(np.asarray(picture if picture.ndim == 2 else picture[:, :, 3], np.uint8))
    return masks


def children_cpu_s() -> float:
    """Processor time of all child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_of_files(start_s: float, end_s: float, folder: Path, frames: int, cpu_s: float = 0.0) -> Run:
    """The run of a command that wrote a picture for each frame; their times tell when frames were finished.

    Args:
        start_s: before the command, by any clock.
        end_s: after it, by the same.
        folder: what it wrote.
        frames: how many pictures there must be.
        cpu_s: its processor time.
    """
    masks = read_masks(folder, frames)
    times_ns = [path.stat().st_mtime_ns for path in folder.glob("*.png")]
    return Run(end_s - start_s, (max(times_ns) - min(times_ns)) / 1e9, masks, bytes_in(folder), cpu_s)
