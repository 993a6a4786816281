"""Which precision is fastest on this device: engines of all of them, timed in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from compile.draft import Draft
from compile.proof.verify import Sample, as_taken
from pipeline.engines import open_engine
from pipeline.terminal import logger_of

_WARM_UP, _ROUNDS = 2, 7
# A gain below this is within what a machine does by chance.
_CLEARLY = 0.97

log = logger_of(__name__)


def fastest(made: Sequence[Draft], backend: str, samples: Sequence[Sample]) -> Draft:
    """The fastest of several bundles on this device.

    Args:
        made: at least one. Of two that are equally fast the later one is taken, so give the more exact one later.
        backend: what runs them.
        samples: frames to run on; the first is taken.
    """
    times_ms = _times_ms(made, backend, as_taken(samples[0].frames_nhwc, made[0].manifest.pixels))
    best = len(made) - 1
    for index in reversed(range(len(made))):
        if times_ms[index] < _CLEARLY * times_ms[best]:
            best = index
    precisions = [draft.manifest.precision for draft in made]
    for precision, time_ms in zip(precisions, times_ms, strict=True):
        log.info("%s: %.2f ms a frame, %.2f × %s's", precision, time_ms, time_ms / times_ms[-1], precisions[-1])
    slower = precisions[:best]
    why = f": {' and '.join(slower)} {'is' if len(slower) == 1 else 'are'} no faster here" if slower else ""
    log.info("the fastest here that passes is %s%s", precisions[best], why)
    return made[best]


def _times_ms(
    made: Sequence[Draft], backend: str, frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> list[float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemask.")))
        engines = []
        for draft in made:
            bundle = draft.write(folder / draft.manifest.precision)
            engines.append(stack.enter_context(open_engine(bundle, backend)))
        times_ms: list[list[float]] = [[] for _ in engines]
        # In turn, so that what else the machine does slows all of them.
        for _ in range(_WARM_UP + _ROUNDS):
            for engine, times in zip(engines, times_ms, strict=True):
                start_s = time.perf_counter()
                engine(frames)
                times.append(1000 * (time.perf_counter() - start_s))
        return [median(times[_WARM_UP:]) for times in times_ms]
