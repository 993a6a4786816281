"""Photographs that come with the package, for what the frames of one run, which look alike, cannot prove."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Engine
from pipeline.errors import EdgemaskError
from pipeline.frames.frame import Frame
from pipeline.sources import open_source

FOLDER = Path(__file__).parents[2] / "calibration" / "sets" / "photographs"
"""Files that the build half judges by too; nothing of its code is needed."""


def photographs(engine: Engine, count: int) -> list[NDArray[np.uint8]]:
    """Some of them, as an engine takes frames.

    Args:
        engine: whose size and pixels they get.
        count: how many; each of another kind.

    Returns:
        (1, H, W, 3) uint8 BGR each, or NV12; none where they are not here, or where the engine takes other channels.
    """
    try:
        with open_source(str(FOLDER)) as source:
            frames = [frame for frame in source if frame.index % 6 == 0][:count]
        return [_fitted(frame, engine).as_pixels(engine.pixels)[None] for frame in frames]
    except EdgemaskError:
        return []


def _fitted(frame: Frame, engine: Engine) -> Frame:
    height, width = engine.frame_size_hw or (side // 2 * 2 for side in frame.size_hw)
    image = np.asarray(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return Frame(image, frame.index, frame.pts_s, frame.source, frame.name)
