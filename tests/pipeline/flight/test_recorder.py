"""The recorder: what it keeps, when it writes, and that it stays out of the way."""

import json
import os
import threading
import time
import zipfile

import numpy as np
import pytest

from pipeline.flight import recorder as recorder_module
from pipeline.flight.recorder import About
from pipeline.flight.recording import Recording
from pipeline.stages.telemetry import State
from tests.fakes.computed_frames import computed, noise
from tests.pipeline.flight.conftest import WAIT_S


def facts_of(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("flight.json"))


@pytest.fixture
def clock(monkeypatch):
    """The recorder's clock, which the test moves."""

    class Clock:
        now_s = 100.0

        def monotonic(self):
            return self.now_s

        def monotonic_ns(self):
            return round(self.now_s * 1e9)

        def time(self):
            return 1_700_000_000 + self.now_s

    clock = Clock()
    monkeypatch.setattr(recorder_module, "time", clock)
    return clock


def written(recorder):
    """Wait until the thread that writes has nothing to do."""
    due_s = time.monotonic() + WAIT_S
    while recorder._is_writing:
        assert time.monotonic() < due_s
        time.sleep(0.01)


def run(recorder, clock, seconds, first=0, fps=10, source="door", **facts):
    """Frames of so many seconds."""
    for index in range(first, first + round(seconds * fps)):
        clock.now_s += 1 / fps
        frame = computed(index, source=source, captured_ns=clock.monotonic_ns(), **facts)
        recorder.computed(frame)
        recorder.pulse()
    return first + round(seconds * fps)


def test_the_seconds_before_and_a_little_after_are_in_it(recorder_of, clock, files_in, said):
    recorder = recorder_of(before_s=2.0)
    run(recorder, clock, 10)
    clock.now_s += 0.05
    assert recorder.event("audit", "IoU 0.8", "door") == ""
    run(recorder, clock, 5, first=100)
    (path,) = files_in(1)
    with Recording(path) as recording:
        frames = list(recording)
        assert [frame.index for frame in frames] == list(range(81, 111))
        np.testing.assert_array_equal(frames[-1].pixels, noise(110))
        assert recording.facts["events"][0] == {
            "kind": "audit",
            "text": "IoU 0.8",
            "source": "door",
            "time": recording.facts["events"][0]["time"],
        }
    recorder.close()
    lines = [line for line in said if line.startswith("flight:")]
    assert len(lines) == 1
    assert f"{path}: audit of door: IoU 0.8; 30 frames, 3.0 s" in lines[0]


def test_what_happens_meanwhile_is_in_the_same_file(recorder_of, clock, files_in):
    recorder = recorder_of()
    run(recorder, clock, 1)
    recorder.event("audit", "one", "door")
    run(recorder, clock, 0.5, first=10)
    recorder.event("signal", "two")
    run(recorder, clock, 3, first=15)
    (path,) = files_in(1)
    assert [event["kind"] for event in facts_of(path)["events"]] == ["audit", "signal"]


def test_one_of_a_kind_a_minute_and_ten_an_hour(recorder_of, clock, files_in):
    recorder = recorder_of()
    index = run(recorder, clock, 1)
    count = 0
    for _ in range(30):
        for kind in ("audit", "empty"):
            if not recorder.event(kind, "again"):
                assert "60 s between two" in recorder.event(kind, "at once")
                index = run(recorder, clock, 2, first=index)
                count += 1
                files_in(count)
                written(recorder)
        clock.now_s += 61
    assert count == 10
    assert "within an hour" in recorder.event("flicker", "more")
    assert recorder.event("signal", "somebody wants it") == ""
    clock.now_s += 3600
    assert recorder.event("flicker", "an hour later") == ""


def test_frames_take_no_more_memory_than_they_may(recorder_of, clock, files_in):
    frame = computed(0)
    one = frame.pixels.nbytes + frame.mask.nbytes
    recorder = recorder_of(("door", "yard"), about=About(memory_bytes=2 * 10 * one), before_s=100.0)
    for index in range(40):
        clock.now_s += 0.1
        recorder.computed(computed(index, source=("door", "yard")[index % 2]))
    recorder.event("audit", "now")
    clock.now_s += 2
    recorder.pulse()
    (path,) = files_in(1)
    with Recording(path) as recording:
        assert [frame.index for frame in recording] == list(range(30, 40))


def test_pixels_are_kept_and_masks_copied(recorder_of, clock, files_in):
    recorder = recorder_of()
    frame = computed(0)
    recorder.computed(frame)
    frame.mask[:] = 7  # as smoothing does
    assert recorder._rings["door"][0].frame.pixels is frame.pixels
    recorder.event("audit", "now")
    recorder.close()
    with Recording(files_in(1)[0]) as recording:
        (got,) = recording
    assert set(np.unique(got.mask)) == {200}


def test_stalls_are_told_once_for_live_sources(recorder_of, clock, files_in):
    recorder = recorder_of(("door", "yard"))
    run(recorder, clock, 1)
    recorder.cameras[0].telemetry.enter(State.STALLED, "no frame for 3 s")
    for _ in range(10):
        clock.now_s += 1
        recorder.pulse()
    (path,) = files_in(1)
    facts = facts_of(path)
    assert [(event["kind"], event["source"]) for event in facts["events"]] == [("stall", "door")]
    assert "stalled: no frame for 3 s" in facts["events"][0]["text"]
    assert {row["state"] for row in facts["telemetry"] if row["name"] == "door"} == {"running", "stalled"}


def test_a_file_does_not_stall(recorder_of, clock):
    recorder = recorder_of(live=False)
    recorder.cameras[0].telemetry.enter(State.STALLED, "")
    clock.now_s += 10
    recorder.pulse()
    assert recorder.state()["last"] == ""


def test_a_signal_is_taken_up_by_the_next_round(recorder_of, clock, files_in):
    recorder = recorder_of()
    run(recorder, clock, 1)
    recorder.asked_by_signal()
    run(recorder, clock, 2, first=10)
    assert facts_of(files_in(1)[0])["events"][0]["kind"] == "signal"


def test_the_state_for_the_page(recorder_of, clock, files_in):
    recorder = recorder_of()
    assert recorder.state() == {"files": 0, "last": "", "last_s": None}
    run(recorder, clock, 1)
    assert recorder.on_page()["take_flight"]("page") == ""
    assert "5 s between two" in recorder.on_page()["take_flight"]("page")
    run(recorder, clock, 2, first=10)
    files_in(1)
    recorder.close()
    assert recorder.state() == {"files": 1, "last": "page: asked for on the page", "last_s": 2.0}


def test_the_end_of_a_run_writes_what_is_pending(recorder_of, files_in):
    recorder = recorder_of()
    recorder.computed(computed(0))
    recorder.event("audit", "at the end")
    recorder.close()
    assert len(files_in(1)) == 1
    assert recorder.event("audit", "later") == "flight: the run is ending"
    assert "flight" not in {thread.name for thread in threading.enumerate()}


def test_a_full_disk_is_told_and_nothing_else(recorder_of, files_in, said, small_disk):
    recorder = recorder_of()
    recorder._folder.folder = small_disk
    for index in range(400):
        recorder.computed(computed(index))
    recorder.event("audit", "too much for the disk")
    recorder.close()
    assert [line for line in said if "audit was not recorded (No space left on device)" in line]
    assert os.listdir(small_disk) == []


def test_recurrent_networks_are_told(recorder_of, files_in):
    recorder = recorder_of()
    recorder._engine.keeps_state = True
    recorder.event("audit", "now")
    recorder.close()
    assert "keeps state between frames" in facts_of(files_in(1)[0])["note"]
