"""Who computes on which cores."""

from __future__ import annotations

import cv2

from pipeline.engines.base import Engine


def leave_cores_to(engine: Engine) -> None:
    """Let OpenCV draw on one thread where the engine needs all cores, else on as many as it likes; for the whole process.

    Its threads wait by spinning: a frame that was drawn on two took the engine's threads off their cores 60 times, on one 20 times.
    """
    cv2.setNumThreads(-1 if engine.on_gpu else 1)
