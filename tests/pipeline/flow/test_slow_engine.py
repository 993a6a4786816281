"""An engine that is slower than its camera, for half a minute: nothing grows, nothing gets old, every frame is accounted for."""

import gc
import os
import threading
import time

import numpy as np

from pipeline.engines.base import Computed
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source
from pipeline.stages.telemetry import NEWER, STOPPED

SECONDS, FPS, ENGINE_S = 30, 60, 0.1


class Camera(Source):
    """Frames at their own time, with new memory for each, as a decoder gives them."""

    info = SourceInfo("camera", "", live=True)

    def __init__(self):
        self.made_ns = []

    def __iter__(self):
        start_s = time.monotonic()
        for index in range(SECONDS * FPS):
            time.sleep(max(0.0, start_s + index / FPS - time.monotonic()))
            image = np.full((360, 640, 3), index % 256, np.uint8)
            self.made_ns.append(time.monotonic_ns())
            yield Frame(image, index, index / FPS, "camera", str(index), captured_ns=self.made_ns[-1])


class Sleeper:
    """Takes a tenth of a second for each frame; keeps how long it really was."""

    in_flight = batch = 1
    pixels = "bgr"
    keeps_state = False

    def __init__(self):
        self.took_ns = []

    def renew(self):
        pass

    def submit(self, frames_nhwc, look=None, state=None):
        self.begun_ns = time.monotonic_ns()
        self.masks_nhw = frames_nhwc[..., 2].copy()

    def collect_all(self):
        time.sleep(ENGINE_S)
        self.took_ns.append(time.monotonic_ns() - self.begun_ns)
        return Computed(self.masks_nhw)


class Ages(Sink):
    def __init__(self):
        self.ages_ns, self.indices, self.resident = [], [], []

    def write(self, frame):
        self.ages_ns.append(time.monotonic_ns() - frame.captured_ns)
        self.indices.append(frame.index)
        assert (frame.mask == frame.index % 256).all()
        with open("/proc/self/statm") as file:
            self.resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def test_a_slow_engine_under_a_fast_camera():
    camera, engine, sink = Camera(), Sleeper(), Ages()
    gc.collect()
    threads = threading.active_count()
    result = run(camera, engine, Views(lambda image, mask: image), [sink])
    snapshot = camera.telemetry.snapshot()
    # Every frame that was read is written, or dropped for a reason that is told.
    assert snapshot.frames_in == SECONDS * FPS
    assert snapshot.frames_in == snapshot.frames_out + sum(snapshot.dropped.values())
    assert snapshot.frames_out == result.frames == len(sink.indices)
    assert snapshot.dropped[NEWER] == result.dropped
    assert set(snapshot.dropped) <= {NEWER, STOPPED}
    assert sink.indices == sorted(set(sink.indices))
    # The engine never waits for long: half of what it could do at least, on a machine that is busy with other things.
    assert result.frames > SECONDS / ENGINE_S / 2
    # As old as one pass of the engine and two frames; all three as they were in this run.
    frame_ns = percentile(np.diff(camera.made_ns).tolist(), 0.99)
    assert percentile(sink.ages_ns, 0.99) <= percentile(engine.took_ns, 0.99) + 2 * frame_ns
    # Memory: the last seconds against those after the first five.
    tenth = len(sink.resident) // 6
    assert max(sink.resident[-tenth:]) - max(sink.resident[tenth : 2 * tenth]) < 4_000_000
    assert threading.active_count() == threads
