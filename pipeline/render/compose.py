"""Where the overlay is drawn: by the engine, whose program may do so, or by the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import OptionError
from pipeline.render.look import Look, soft_edge
from pipeline.render.modes import MODES
from pipeline.render.overlay import Renderer


def look_values(look: Look) -> NDArray[np.float32]:
    """A look for a program that composes.

    Args:
        look: its alpha, threshold and palette count, as in mode "overlay" for a binary mask.

    Returns:
        (6,) float32, see ``pipeline.bundles.bundle.LOOK_VALUES``.
    """
    slope, intercept = _line(soft_edge(look.threshold))
    return np.array([slope, intercept, look.alpha, *look.palette.color(1)], np.float32)


def composed_looks(
    choice: str, engine: Engine, renderer: Renderer, *, steady: bool
) -> Callable[[], NDArray[np.float32] | None] | None:
    """What ``pipeline.flow.run`` asks for each frame's look, if the engine is to draw.

    Args:
        choice: "host", "device", or "auto": device where the engine's program composes and runs on a GPU.
        engine: frames to masks, and perhaps views; one that can become another draws as that one can.
        renderer: its look at the time of asking counts; it draws what the engine does not.
        steady: masks are changed after the engine, so that a view drawn from what it gave would be wrong.

    Returns:
        Gives the values of the look for the next frame, or None where the host draws that frame; None: the host draws all.

    Raises:
        OptionError: device, and the engine's program does not compose.
    """
    if choice == "device" and not engine.composes:
        bundle = engine.bundle
        raise OptionError(
            f"--compose device: expected a bundle whose program composes, got {bundle.folder}: "
            "compile one, of a network of one class, with python -m compile --compose device"
        )

    def draws() -> bool:
        return engine.composes and (choice == "device" or engine.on_gpu)

    def values() -> NDArray[np.float32] | None:
        look = renderer.look
        return look_values(look) if MODES[look.mode].on_device and draws() else None

    can_become_another = isinstance(engine, ReplaceableEngine)
    return values if choice != "host" and not steady and (draws() or can_become_another) else None


def _line(edge: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the line that, clipped to 0 to 1, goes through all of a rising edge's values."""
    rising = np.flatnonzero((edge > 0) & (edge < 1))
    if rising.size > 1:
        first, last = rising[0], rising[-1]
        slope = (edge[last] - edge[first]) / (last - first)
        return float(slope), float(edge[first] - slope * first)
    # At most one value on the way up: a slope of 1 is 0 at the value before it, and 1 at the one after.
    if rising.size == 1:
        return 1.0, float(edge[rising[0]] - rising[0])
    first_full = int(np.argmax(edge))
    return (0.0, 1.0) if first_full == 0 else (1.0, float(1 - first_full))
