"""The process that computes audited frames in FP32: of lowest priority, on one core, and no longer there than its parent.

It is started with its parent's number and the number of a socket. It gets a bundle, and then frame after frame with the mask that the
run made of it, and answers in JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Task
    from pipeline.engines.base import Engine
    from pipeline.frames.frame import Image

_KILL_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_NICEST = 19


def main() -> None:
    """Answer until the parent has gone or says no more."""
    _step_back(parent=int(sys.argv[1]))
    connection = Connection(int(sys.argv[2]))

    def say(**words: Any) -> None:
        connection.send_bytes(json.dumps(words).encode())

    from pipeline.bundles.bundle import Bundle, Manifest  # now that it is out of everybody's way
    from pipeline.engines.reference import open_reference
    from pipeline.errors import EdgemaskError

    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        begin = json.loads(connection.recv_bytes())
        try:
            bundle = Bundle(Path(begin["folder"]), Manifest.from_json(begin["manifest"], begin["folder"]))
            with open_reference(bundle, aside=True) as engine:
                say(ready=True)
                while True:
                    header = json.loads(connection.recv_bytes())
                    say(**_audit(engine, header, connection.recv_bytes(), connection.recv_bytes()))
        except EdgemaskError as error:
            say(unusable=str(error))


def _step_back(parent: int) -> None:
    """Take nothing that anybody else wants, and end with the parent, however that ends."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they go to the whole group, and the parent decides
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICEST)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        with contextlib.suppress(
            OSError
        ):  # it reads and writes files as idle as it computes, too: ionice's class follows
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):  # where memory runs out it is the first to go
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if os.getppid() != parent:
        os._exit(1)


def _audit(engine: Engine, header: dict[str, Any], pixels: bytes, mask: bytes) -> dict[str, Any]:
    """Compute a frame, and compare."""
    import numpy as np

    from pipeline.frames.frame import Frame

    array = np.frombuffer(pixels, np.dtype(header["dtype"])).reshape(header["shape"])
    mask_hw = np.frombuffer(mask, np.uint8).reshape(header["size_hw"])
    frame = Frame(array, header["index"], 0.0, header["source"], "", format=header["format"])
    engine.submit(frame.as_pixels(engine.pixels)[None])
    masks_nhw, _, not_finite = engine.collect_all()
    if header["not_finite"] or (not_finite is not None and not_finite.any()):
        return {"iou": 0.0, "mae": 1.0, "empty": False, "judged": True}
    return compare(mask_hw, masks_nhw[0], engine.bundle.manifest.task)


def compare(mask_hw: Image, reference_hw: Image, task: Task) -> dict[str, Any]:
    """How far a mask agrees with the reference's: iou, mae, empty and judged, as ``pipeline.frames.audited.Audited`` has them."""
    from pipeline.frames.iou import (
        LEAST_COVERED,
        MOST_UNDECIDED,
        covered_share,
        iou,
        mean_absolute_error,
        undecided_share,
    )

    classes = task == "classes"
    covered = [covered_share(mask, task) for mask in (mask_hw, reference_hw)]
    # Of the larger one: a mask that is full where it should be empty is to be judged.
    is_clear = classes or undecided_share(reference_hw) <= MOST_UNDECIDED * max(covered)
    least = 1 if classes else 128
    mae = mean_absolute_error(mask_hw, reference_hw, task)
    return {
        "iou": iou(mask_hw, reference_hw, task),
        "mae": mae,
        "empty": bool((mask_hw >= least).any() != (reference_hw >= least).any()),
        # Two maps of one class each cover nothing, and may be of different ones.
        "judged": bool(max(covered) >= LEAST_COVERED and is_clear) or (classes and mae >= LEAST_COVERED),
    }


if __name__ == "__main__":
    main()
