import gc
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.command.service import Health
from pipeline.engines.base import Computed, Engine
from pipeline.errors import ServerAwayError, ShapeError, SinkError, SourceError
from pipeline.flow.events import Events
from pipeline.flow.inference import infer
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer

WAIT_S = 10  # only a broken test waits so long


class Numbers(Source):
    """Frames whose red channel is their number; raises ``error`` after the last."""

    def __init__(self, count, error=None, live=False):
        self.info = SourceInfo("numbers", "numbers", frame_count=count, live=live)
        self.count, self.error = count, error
        self.read = 0
        self.all_read = threading.Event()

    def __iter__(self):
        for number in range(self.count):
            self.read += 1
            yield Frame(np.full((2, 3, 3), (0, 0, number), np.uint8), number, number / 25, "numbers", f"{number}")
        self.all_read.set()
        if self.error:
            raise self.error


class Red(Engine):
    """The red channel as the mask, with several submissions in flight; fails at the given submission or collection."""

    description = "red"

    def __init__(self, in_flight=1, fail_submit=None, fail_collect=None, wait_for=None):
        super().__init__(SimpleNamespace(manifest=SimpleNamespace(frame_size_hw=None, pixels="bgr")))
        self.in_flight = in_flight
        self.fail_submit, self.fail_collect, self.wait_for = fail_submit, fail_collect, wait_for
        self.pending, self.submitted, self.collected, self.most = [], 0, 0, 0

    def _submit(self, frames_nhwc):
        if self.wait_for is not None:
            assert self.wait_for.wait(WAIT_S)
        if self.submitted == self.fail_submit:
            raise ShapeError("cannot submit")
        self.submitted += 1
        self.pending.append(frames_nhwc[..., 2].copy())
        self.most = max(self.most, len(self.pending))

    def _collect(self):
        if self.collected == self.fail_collect:
            raise ShapeError("cannot collect")
        self.collected += 1
        return Computed(self.pending.pop(0))

    def _close(self):
        pass


class Kept(Sink):
    """Keeps what is written; fails or asks to stop at a given frame."""

    def __init__(self, fail_at=None, stop_at=None):
        self.frames, self.fail_at, self.stop_at, self.threads = [], fail_at, stop_at, set()
        self.ended = []

    def write(self, frame):
        if frame.index == self.fail_at:
            raise SinkError("disk full")
        self.frames.append(frame)
        self.threads.add(threading.current_thread())
        self.stopped = frame.index == self.stop_at

    def close(self):
        self.ended.append("close")

    def discard(self):
        self.ended.append("discard")

    @property
    def numbers(self):
        return [frame.index for frame in self.frames]


def draw(image, mask):
    return np.dstack([mask, mask, mask])


view = Views(draw)


def extra_threads():
    return [thread.name for thread in threading.enumerate() if thread.name in ("decode", "engine")]


@pytest.mark.parametrize("in_flight", [1, 2, 3, 50])
def test_every_frame_comes_once_in_order_with_its_own_mask(in_flight):
    sink, engine = Kept(), Red(in_flight)
    result = run(Numbers(20), engine, view, [sink])
    assert sink.numbers == list(range(20))
    for frame in sink.frames:
        assert frame.mask.shape == (2, 3)
        assert (frame.mask == frame.index).all()
        assert (frame.view == frame.index).all()
    assert (result.frames, result.dropped) == (20, 0)
    assert engine.most == min(in_flight, 20)
    assert extra_threads() == []


def test_every_sink_gets_every_frame_on_the_callers_thread():
    sinks = [Kept(), Kept(), Kept()]
    run(Numbers(5), Red(), view, sinks)
    for sink in sinks:
        assert sink.numbers == [0, 1, 2, 3, 4]
        assert sink.threads == {threading.current_thread()}
        assert sink.ended == []


def test_without_frames_there_is_nothing():
    assert run(Numbers(0), Red(3), view, []).frames == 0


def test_stages_are_timed_in_the_order_of_the_data_path():
    result = run(Numbers(5), Red(), view, [Kept()])
    assert [stage.name for stage in result.stages] == ["decode", "engine", "render", "write"]
    assert [stage.count for stage in result.stages][1:] == [5, 5, 5]


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_an_error_of_the_source_comes_after_all_frames_before_it(in_flight, count):
    sink = Kept()
    with pytest.raises(SourceError, match="unplugged"):
        run(Numbers(count, SourceError("unplugged")), Red(in_flight), view, [sink])
    assert sink.numbers == list(range(count))
    assert all((frame.mask == frame.index).all() for frame in sink.frames)
    assert extra_threads() == []


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_an_error_of_the_engine_comes_after_all_frames_before_it(in_flight, at):
    for engine in (Red(in_flight, fail_submit=at), Red(in_flight, fail_collect=at)):
        sink = Kept()
        with pytest.raises(ShapeError, match="cannot"):
            run(Numbers(9), engine, view, [sink])
        assert sink.numbers == list(range(at))
        assert extra_threads() == []


@pytest.mark.parametrize("in_flight", [1, 3])
def test_frames_that_no_server_computed_go_on_with_an_empty_mask_and_say_so(in_flight):
    class Away(Red):
        def _collect(self):
            mask = super()._collect()
            if self.collected in (3, 4, 7):
                raise ServerAwayError("no server")
            return mask

    frames = list(infer(Numbers(10), Away(in_flight), StageTimer()))
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.index for frame in frames if frame.stale] == [2, 3, 6]
    assert [int(frame.mask[0, 0]) for frame in frames] == [0, 1, 0, 0, 4, 5, 0, 7, 8, 9]


def test_an_error_of_a_sink_ends_the_run_at_once():
    first, second, source = Kept(), Kept(fail_at=3), Numbers(10_000)
    with pytest.raises(SinkError, match="disk full"):
        run(source, Red(), view, [first, second])
    assert (first.numbers, second.numbers) == ([0, 1, 2, 3], [0, 1, 2])
    assert source.read < 20
    assert extra_threads() == []


@pytest.mark.parametrize("broken", ["render", "refine", "annotate"])
def test_errors_of_the_other_steps_come_out_too(broken):
    def fail(*_):
        raise ZeroDivisionError(broken)

    with pytest.raises(ZeroDivisionError, match=broken):
        run(Numbers(100), Red(), Views(**{"render": draw, broken: fail}), [Kept()])
    assert extra_threads() == []


@pytest.mark.parametrize("broken", ["written", "pulse"])
def test_errors_of_who_is_told_come_out_too(broken):
    def fail(*_):
        raise ZeroDivisionError(broken)

    events = Events()
    setattr(events, broken, fail)
    with pytest.raises(ZeroDivisionError, match=broken):
        run(Numbers(100), Red(), view, [Kept()], events=events)
    assert extra_threads() == []


def test_a_bug_in_the_source_is_not_hidden():
    with pytest.raises(ZeroDivisionError, match="bug"):
        run(Numbers(2, ZeroDivisionError("bug")), Red(3), view, [Kept()])


def test_a_sink_that_was_stopped_ends_the_run_after_the_others_got_the_frame():
    sinks = [Kept(stop_at=4), Kept()]
    result = run(Numbers(10_000), Red(3), view, sinks)
    assert [sink.numbers for sink in sinks] == [[0, 1, 2, 3, 4]] * 2
    assert result.frames == 5
    assert extra_threads() == []


@pytest.mark.parametrize(("max_frames", "written"), [(1, 1), (4, 4), (10, 10), (99, 10), (None, 10)])
def test_max_frames(max_frames, written):
    source, sink = Numbers(10), Kept()
    assert run(source, Red(3), view, [sink], max_frames=max_frames).frames == written
    assert sink.numbers == list(range(written))
    assert source.read == written


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize(("live", "drop_oldest"), [(True, None), (False, True)])
def test_dropped_and_written_frames_add_up(live, drop_oldest, in_flight):
    source, sink = Numbers(100, live=live), Kept()
    engine = Red(in_flight, wait_for=source.all_read)
    result = run(source, engine, view, [sink], drop_oldest=drop_oldest)
    assert result.frames + result.dropped == source.read == 100
    assert result.frames == len(sink.frames)
    assert result.frames <= 2  # what the engine had taken before it was held up, and the newest
    assert sink.numbers[-1] == 99
    assert sink.numbers == sorted(set(sink.numbers))
    assert all((frame.mask == frame.index).all() for frame in sink.frames)


@pytest.mark.parametrize(("live", "drop_oldest"), [(False, None), (True, False)])
def test_nothing_is_dropped_unless_asked_for(live, drop_oldest):
    sink = Kept()
    result = run(Numbers(50, live=live), Red(), view, [sink], drop_oldest=drop_oldest)
    assert (result.frames, result.dropped) == (50, 0)
    assert sink.numbers == list(range(50))


def test_each_written_frame_and_the_drops_are_told():
    class Heard(Events):
        def written(self, frame, dropped):
            heard.append((frame.index, dropped))

    source, heard = Numbers(100, live=True), []
    engine = Red(wait_for=source.all_read)
    result = run(source, engine, view, [Kept()], events=Heard())
    assert [index for index, _ in heard][-1] == 99
    assert heard[-1][1] == result.dropped
    assert len(heard) == result.frames


def test_annotate_draws_onto_the_view_before_it_is_written():
    def annotate(frame, timer):
        assert isinstance(timer, StageTimer)
        frame.view[0, 0] = 255

    sink = Kept()
    run(Numbers(3), Red(), Views(draw, annotate=annotate), [sink])
    assert all((frame.view[0, 0] == 255).all() for frame in sink.frames)
    assert all((frame.image[0, 0, :2] == 0).all() for frame in sink.frames)


def test_a_source_that_is_stuck_does_not_hold_up_an_error():
    go_on = threading.Event()

    class Stuck(Numbers):
        def __iter__(self):
            yield from super().__iter__()
            go_on.wait(WAIT_S)

    with pytest.raises(SinkError, match="disk full"):
        run(Stuck(1, live=True), Red(), view, [Kept(fail_at=0)])
    go_on.set()
    for thread in threading.enumerate():
        if thread.name in ("decode", "engine"):
            thread.join(WAIT_S)
    assert extra_threads() == []


def test_no_mask_is_held_back_while_the_next_frame_is_awaited():
    asked = []

    def frames():
        for frame in Numbers(2):
            asked.append(frame.index)
            yield frame

    masked = infer(frames(), Red(in_flight=1), StageTimer())
    assert next(masked).index == 0
    assert asked == [0]


def test_no_mask_of_a_camera_waits_for_frames_that_are_not_there():
    asked = []

    def frames():
        for frame in Numbers(6):
            asked.append(frame.index)
            yield frame

    masked = infer(frames(), Red(in_flight=3), StageTimer(), lambda: len(asked) != 2)
    # After the second frame none is there: both masks come before the third is asked for.
    assert [next(masked).index for _ in range(2)] == [0, 1]
    assert asked == [0, 1]
    assert [frame.index for frame in masked] == [2, 3, 4, 5]


def test_the_engines_time_is_counted_once_for_each_frame():
    timer = StageTimer()
    assert len(list(infer(Numbers(7), Red(in_flight=3), timer))) == 7
    assert [(stage.name, stage.count) for stage in timer.result()] == [("engine", 7)]


def test_of_frames_that_are_computed_at_once_each_has_its_share_of_the_wait(monkeypatch):
    now_ms = [0]
    clock = SimpleNamespace(perf_counter_ns=lambda: now_ms[0] * 1_000_000)
    monkeypatch.setattr(sys.modules[infer.__module__], "time", clock)

    class Pairs(Red):
        """Two are computed together: after the first of them was waited for, the second one is there."""

        def _collect(self):
            now_ms[0] += 520 if self.collected % 2 == 0 else 0
            return super()._collect()

    timer = StageTimer()
    assert len(list(infer(Numbers(40), Pairs(in_flight=2), timer))) == 40
    (stage,) = timer.result()
    assert stage.p50_ms == pytest.approx(260, rel=0.01)
    assert stage.p95_ms == pytest.approx(260, rel=0.01)


class ComesBack(Kept):
    """Cannot be written at first, as a disk that is full at the start; keeps no frame of that time."""

    comes_back = True

    def __init__(self, until):
        super().__init__()
        self.until, self.seen = until, []

    def write(self, frame):
        if frame.index < self.until:
            self.seen.append(weakref.ref(frame.pixels))
            raise SinkError("disk full")
        super().write(frame)

    def again(self):
        assert self.problem == "disk full"
        return True


def test_a_disk_that_is_full_at_the_start_ends_no_live_run(monkeypatch):
    monkeypatch.setattr("pipeline.flow.run.AGAIN_S", 0.0)
    sink = ComesBack(until=5)
    result = run(Numbers(20, live=True), Red(), view, [sink], drop_oldest=False)
    assert sink.numbers == list(range(5, 20))
    assert sink.problem == ""
    assert len(result.lost) == 5
    gc.collect()
    assert [kept() for kept in sink.seen] == [None] * 5, "an error must not keep its frame for the rest of the run"


def test_errors_of_a_disk_that_is_full_a_thousand_times_are_not_all_kept(monkeypatch):
    monkeypatch.setattr("pipeline.flow.run.AGAIN_S", 0.0)
    result = run(Numbers(200, live=True), Red(), view, [ComesBack(until=150)], drop_oldest=False)
    assert (result.frames, len(result.lost)) == (200, 100)


def test_an_output_that_does_not_come_back_says_so_for_as_long_as_the_run_lasts():
    class Gone(Kept):
        def write(self, frame):
            raise SinkError("its window is gone")

    gone, kept = Gone(), Kept()
    assert Health([], [gone, kept]).outputs() == []
    run(Numbers(5, live=True), Red(), view, [gone, kept], drop_oldest=False)
    assert kept.numbers == list(range(5))
    assert Health([], [gone, kept]).outputs() == ["its window is gone"]
    assert Health([], [OfSource("numbers", gone)]).outputs() == ["its window is gone"]


def test_who_listens_hears_of_each_computed_mask_before_it_is_changed():
    heard = []

    class Ears(Events):
        def computed(self, frame):
            heard.append((frame.index, int(frame.mask.max()), frame.view))

    def clear(frame):
        frame.mask = np.zeros_like(frame.mask)

    sink = Kept()
    run(Numbers(5), Red(in_flight=2), Views(draw, refine=clear), [sink], events=Ears())
    assert heard == [(index, index, None) for index in range(5)]
