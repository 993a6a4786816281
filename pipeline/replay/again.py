"""The frames of a recording through an engine again, and what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline.flow.inference import infer
from pipeline.frames.frame import Frame
from pipeline.masks.agreement import agreement
from pipeline.stages.stage_timer import StageTimer

if TYPE_CHECKING:
    from pipeline.engines.base import Engine


@dataclass(frozen=True, slots=True)
class Compared:
    """A frame that was computed again.

    Attributes:
        number: its place in the recording, from 0.
        frame: with the new mask.
        pixels: how many of its mask's pixels have another value than in the recording; all of them if it has another size.
        levels: by how much at most, 0 to 255; of class maps, 1.
        iou: of both masks.
        recorded_not_finite: scores that were not finite when it was recorded.
    """

    number: int
    frame: Frame
    pixels: int
    levels: int
    iou: float
    recorded_not_finite: int

    @property
    def same(self) -> bool:
        """The mask, and how many scores are not finite, are those of the recording."""
        return self.pixels == 0 and self.frame.not_finite == self.recorded_not_finite


def run_again(frames: Iterable[Frame], engine: Engine) -> Iterator[Compared]:
    """Compute the masks of frames that have one already, and compare.

    Args:
        frames: of a recording, in its order.
        engine: computes the masks; fed as in a run.

    Raises:
        EdgemaskError: a frame cannot be read, or does not fit the program.
    """
    recorded: deque[Frame] = deque()

    def unmasked() -> Iterator[Frame]:
        for frame in frames:
            recorded.append(frame)
            yield replace(frame, mask=None, not_finite=0)

    for number, frame in enumerate(infer(unmasked(), engine, StageTimer())):
        yield _compared(number, frame, recorded.popleft(), engine)


def _compared(number: int, frame: Frame, before: Frame, engine: Engine) -> Compared:
    mask, recorded = frame.mask, before.mask
    assert mask is not None
    if recorded is None or recorded.shape != mask.shape:
        return Compared(number, frame, mask.size, 255, 0.0, before.not_finite)
    task = engine.bundle.manifest.task
    apart = cv2.absdiff(mask, recorded)
    pixels = int(np.count_nonzero(apart))
    levels = int(apart.max()) if task == "binary" else int(pixels > 0)
    return Compared(number, frame, pixels, levels, agreement(mask, recorded, task), before.not_finite)
