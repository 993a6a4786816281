"""Several sources before one engine: fair, lossless where asked for, and one that fails does not end the others."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from pipeline.engines.base import Computed
from pipeline.errors import SinkError, SourceError
from pipeline.flow.events import Events
from pipeline.flow.inference import grouped, infer
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import NEWER, STOPPED, State

WAIT_S = 20


def wait_until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


class Numbers(Source):
    def __init__(self, name, count, error=None, live=False, size=(2, 3), hold=None):
        self.info = SourceInfo(name, "", live=live)
        self.count, self.error, self.size, self.hold = count, error, size, hold
        self.closed = threading.Event()

    def __iter__(self):
        for index in range(self.count):
            yield Frame(
                np.full((*self.size, 3), index % 256, np.uint8), index, float(index), self.info.name, str(index)
            )
        if self.hold is not None:
            self.hold.wait(WAIT_S)
        if self.error is not None:
            raise self.error

    def close(self):
        self.closed.set()
        if self.hold is not None:
            self.hold.set()


class Red:
    """An engine whose mask is the red channel; keeps the sizes of what it was given."""

    in_flight = 1
    pixels = "bgr"
    keeps_state = False

    def __init__(self, batch=1, before=lambda: None):
        self.batch, self.before, self.shapes, self._masks = batch, before, [], None

    def renew(self):
        pass

    def submit(self, frames_nhwc, look=None, state=None):
        self.before()
        self.shapes.append(frames_nhwc.shape)
        self._masks = frames_nhwc[..., 2].copy()

    def collect_all(self):
        return Computed(self._masks)


class Kept(Sink):
    def __init__(self, fail_at=None):
        self.frames, self.fail_at, self.ended, self.idled = [], fail_at, 0, 0

    def write(self, frame):
        if len(self.frames) == self.fail_at:
            raise SinkError("disk full")
        self.frames.append(frame)

    def idle(self):
        self.idled += 1
        self.stopped = True

    def close(self):
        self.ended += 1


view = Views(lambda image, mask: image.copy())


class Told(Events):
    def __init__(self):
        super().__init__()
        self.pulses, self.errors = 0, []

    def pulse(self):
        self.pulses += 1

    def lost(self, error):
        self.errors.append(error)


def test_files_are_lossless_and_in_order():
    sink = Kept()
    result = run([Numbers("a", 30), Numbers("b", 7), Numbers("c", 0)], Red(), view, [sink])
    assert (result.frames, result.dropped) == (37, 0)
    for name, count in (("a", 30), ("b", 7)):
        assert [frame.index for frame in sink.frames if frame.source == name] == list(range(count))
    assert all((frame.mask == frame.index).all() for frame in sink.frames)


def test_turns_are_fair_while_both_have_frames():
    sink = Kept()
    engine = Red(before=lambda: time.sleep(0.003))  # slower than both, so that both have frames
    run([Numbers("a", 40), Numbers("b", 40)], engine, view, [sink])
    first = Counter(frame.source for frame in sink.frames[:40])
    assert abs(first["a"] - first["b"]) <= 6  # what was decoded before the other had begun


def test_a_source_that_fails_is_told_and_the_others_go_on():
    told, sink = Told(), Kept()
    sources = [Numbers("a", 3, SourceError("a: unplugged")), Numbers("b", 20)]
    result = run(sources, Red(), view, [sink], events=told)
    assert Counter(frame.source for frame in sink.frames) == {"a": 3, "b": 20}
    assert [str(error) for error in told.errors] == ["a: unplugged"]
    assert result.lost == tuple(told.errors)


def test_when_the_last_one_fails_it_is_an_error():
    with pytest.raises(SourceError, match="second"):
        run([Numbers("a", 2, SourceError("first")), Numbers("b", 200, SourceError("second"))], Red(), view, [Kept()])


def test_a_bug_in_one_of_them_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run([Numbers("a", 2, ZeroDivisionError()), Numbers("b", 5)], Red(), view, [Kept()])


def test_frames_of_one_size_go_into_the_engine_together():
    engine, sink = Red(batch=4), Kept()
    run([Numbers("a", 9), Numbers("b", 9)], engine, view, [sink])
    assert len(sink.frames) == 18
    assert max(shape[0] for shape in engine.shapes) > 1
    assert all((frame.mask == frame.index).all() for frame in sink.frames)


def test_sizes_are_not_mixed_and_nothing_waits_for_a_full_batch():
    frames = [Frame(np.zeros((2, width, 3), np.uint8), 0, 0.0, "", "") for width in (3, 3, 4, 4, 4, 3)]
    assert [len(group) for group in grouped(frames, Red(batch=2), lambda: True)] == [2, 2, 1, 1]
    assert [len(group) for group in grouped(frames, Red(batch=8), lambda: True)] == [2, 3, 1]
    assert [len(group) for group in grouped(frames, Red(batch=8), lambda: False)] == [1] * 6


@pytest.mark.parametrize("batch", [1, 3])
def test_an_error_comes_after_the_frames_before_it_also_in_a_batch(batch):
    frames = infer(Numbers("a", 5, SourceError("cut off")), Red(batch), StageTimer())
    assert [next(frames).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(SourceError, match="cut off"):
        next(frames)


def test_every_frame_of_live_sources_is_accounted_for():
    sources = [Numbers("a", 50, live=True), Numbers("b", 90, live=True)]
    engine = Red(before=lambda: wait_until(lambda: all(s.telemetry.snapshot().frames_in == s.count for s in sources)))
    sink = Kept()
    run(sources, engine, view, [sink])
    for source in sources:
        told = source.telemetry.snapshot()
        written = sum(frame.source == source.info.name for frame in sink.frames)
        assert told.frames_in == source.count
        assert told.frames_out == written
        assert told.frames_in == told.frames_out + sum(told.dropped.values())
        assert told.dropped[NEWER] > 0
        assert told.in_flight == 0
        assert told.age_ms > 0


def test_what_was_on_its_way_at_the_end_is_counted_as_stopped():
    class One(Kept):
        def write(self, frame):
            self.stopped = True

    source = Numbers("a", 500)
    run(source, Red(), view, [One()])
    told = source.telemetry.snapshot()
    assert told.frames_out == 1
    assert told.dropped[STOPPED] == told.frames_in - 1
    assert told.frames_in < 20


def test_a_file_has_ended_with_its_last_frame():
    source = Numbers("a", 3)
    run(source, Red(), view, [Kept()])
    assert source.telemetry.state is State.ENDED


def test_outputs_and_the_watchdog_are_looked_after_while_no_frame_comes():
    source, sink, told = Numbers("a", 1, live=True, hold=threading.Event()), Kept(), Told()
    result = run(source, Red(), view, [sink], events=told)
    assert result.frames == 1
    assert sink.idled == 1  # which stopped the run
    assert told.pulses >= 2
    assert source.closed.is_set()


def test_a_recording_that_fails_does_not_end_a_live_run():
    told, recording, page = Told(), Kept(fail_at=2), Kept()
    result = run(Numbers("a", 10, live=True), Red(), view, [recording, page], drop_oldest=False, events=told)
    assert (len(recording.frames), len(page.frames)) == (2, 10)
    assert recording.ended == 1
    assert [str(error) for error in result.lost] == ["disk full"] == [str(error) for error in told.errors]


def test_the_last_output_that_fails_ends_it():
    with pytest.raises(SinkError, match="disk full"):
        run(Numbers("a", 10, live=True), Red(), view, [Kept(fail_at=2)], drop_oldest=False)


def test_an_output_of_one_source_gets_its_frames_alone():
    inner = Kept()
    sink = OfSource("b", inner)
    run([Numbers("a", 4), Numbers("b", 5)], Red(), view, [sink])
    assert [frame.source for frame in inner.frames] == ["b"] * 5
    sink.close()
    assert inner.ended == 1
    inner.stopped, inner.written = True, "out.mp4"
    assert sink.stopped
    assert sink.written == "out.mp4"
