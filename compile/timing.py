"""Which precision is fastest on this device: engines of all of them, timed in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from compile.proof.verify import Sample, as_taken
from pipeline.bundles.bundle import Bundle, Manifest
from pipeline.engines import open_engine

_WARM_UP, _ROUNDS = 2, 7
# A gain below this is within what a machine does by chance.
_CLEARLY = 0.97

Made = tuple[Manifest, dict[str, bytes]]


def fastest(made: Sequence[Made], backend: str, samples: Sequence[Sample], say: Callable[[str], None]) -> Made:
    """The fastest of several bundles on this device.

    Args:
        made: bundles that were not written yet, each a manifest and its files; at least one. Of two that are equally fast the later
            one is taken, so give the more exact one later.
        backend: what runs them.
        samples: frames to run on; the first is taken.
        say: gets a line for each, and one for what was taken.
    """
    times_ms = _times_ms(made, backend, as_taken(samples[0].frames_nhwc, made[0][0].pixels))
    best = len(made) - 1
    for index in reversed(range(len(made))):
        if times_ms[index] < _CLEARLY * times_ms[best]:
            best = index
    for (manifest, _), time_ms in zip(made, times_ms, strict=True):
        say(f"{manifest.precision}: {time_ms:.2f} ms a frame, {time_ms / times_ms[-1]:.2f} × {made[-1][0].precision}'s")
    taken = made[best][0].precision
    slower = [manifest.precision for manifest, _ in made[:best]]
    say(
        f"the fastest here that passes is {taken}"
        + (f": {' and '.join(slower)} {'is' if len(slower) == 1 else 'are'} no faster here" if slower else "")
    )
    return made[best]


def _times_ms(
    made: Sequence[Made], backend: str, frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> list[float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemask.")))
        engines = []
        for manifest, files in made:
            bundle = Bundle.write(folder / manifest.precision, manifest, files)
            engines.append(stack.enter_context(open_engine(bundle, backend)))
        times_ms: list[list[float]] = [[] for _ in engines]
        # In turn, so that what else the machine does slows all of them.
        for _ in range(_WARM_UP + _ROUNDS):
            for engine, times in zip(engines, times_ms, strict=True):
                start_s = time.perf_counter()
                engine(frames)
                times.append(1000 * (time.perf_counter() - start_s))
        return [median(times[_WARM_UP:]) for times in times_ms]
