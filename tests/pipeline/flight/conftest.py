"""What the tests of the flight recorder share."""

import os
import time

import pytest

from pipeline.flight.options import FlightOptions
from pipeline.flight.recorder import About, FlightRecorder
from pipeline.frames.frame import SourceInfo
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer

WAIT_S = 60  # only a broken test waits so long


class Camera(Source):
    """A source whose frames the test makes."""

    def __init__(self, name, *, live=True):
        self.info = SourceInfo(name, f"camera {name}", live=live)

    def __iter__(self):
        return iter(())


class Idle:
    """What the recorder looks at of an engine."""

    description, in_flight, batch, keeps_state = "test", 1, 1, False

    def __init__(self, bundle):
        self.bundle = bundle


@pytest.fixture
def recorder_of(tmp_path, red_bundle):
    """``recorder_of(sources=("door",), size_bytes=…)``: a recorder into ``tmp_path / "flight"``, closed at the end."""
    made = []

    def make(sources=("door",), *, live=True, about=None, **options):
        cameras = [Camera(name, live=live) for name in sources]
        options = FlightOptions(str(tmp_path / "flight"), **options)
        recorder = FlightRecorder(options, Idle(red_bundle), cameras, about or About(), StageTimer())
        recorder.cameras = cameras
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.close()


@pytest.fixture
def files_in(tmp_path):
    """``files_in(count)``: the recordings, once there are so many."""

    def wait(count):
        folder = tmp_path / "flight"
        due_s = time.monotonic() + WAIT_S
        while len(found := sorted(folder.glob("*.zip"))) < count:
            assert time.monotonic() < due_s, os.listdir(folder)
            time.sleep(0.01)
        return found

    return wait
