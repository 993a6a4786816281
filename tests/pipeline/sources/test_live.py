import itertools
import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import OptionError, SourceError
from pipeline.frames.frame import SourceInfo
from pipeline.sources import live
from pipeline.sources.live import Connection, LiveSource, LostError, Picture, StreamClock
from pipeline.sources.options import LiveOptions
from pipeline.stages.telemetry import CORRUPT, State

WAIT_S = 10  # only a broken test waits so long


def picture(value=0, **facts):
    return Picture(np.full((4, 6, 3), value, np.uint8), **facts)


class Script(Connection):
    """A connection that does what it is told: gives pictures, raises errors, waits for events or until it is cancelled."""

    def __init__(self, steps):
        self.steps, self.cancelled, self.ended = steps, threading.Event(), threading.Event()

    def __iter__(self):
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if step == "hang":
                    self.cancelled.wait(WAIT_S)
                    return
                if isinstance(step, threading.Event):
                    step.wait(WAIT_S)
                else:
                    yield step
        finally:
            self.ended.set()

    def cancel(self):
        self.cancelled.set()


@pytest.fixture
def make():
    """``make([steps], [steps], …, stall_s=…)``: a source whose connections do these steps one after the other; the last repeats."""
    sources = []

    def call(*scripts, **options):
        made = []
        quick = {"stall_s": 0.15, "reconnect_s": 0.15, "connect_s": 5.0, "backoff_s": 0.001, "backoff_max_s": 0.01}

        def connect():
            steps = scripts[min(len(made), len(scripts) - 1)]
            made.append(Script(steps() if callable(steps) else steps))
            return made[-1]

        info = SourceInfo("cam/1", "a camera", live=True)
        source = LiveSource(info, connect, LiveOptions(**{**quick, **options}))
        source.made = made
        sources.append(source)
        return source

    yield call
    for source in sources:
        source.close()


def wait_until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_opening_neither_connects_nor_waits(make):
    source = make(["hang"])
    assert (source.made, source.telemetry.state) == ([], State.CONNECTING)
    source.close()
    assert list(source) == []
    assert (source.made, source.telemetry.state) == ([], State.ENDED)


def test_the_end_of_a_connection_is_not_the_end(make, said):
    source = make([picture(1), picture(2)], [picture(3)])
    frames = list(itertools.islice(source, 4))
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2, 3, 3]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.name for frame in frames[:2]] == ["cam_1_000000", "cam_1_000001"]
    times_s = [frame.pts_s for frame in frames]
    assert times_s[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times_s))
    assert source.telemetry.snapshot().reconnects == 2
    assert said[0] == "cam/1: running"
    assert said[1] == "cam/1: reconnecting: the stream ended"
    assert said[2].startswith("cam/1: running again after 0.")


def test_a_break_is_told_and_mended(make, said):
    source = make(
        [picture(), LostError("connection refused")], [LostError("no route")], [LostError("no route")], [picture()]
    )
    assert len(list(itertools.islice(source, 2))) == 2
    assert said[1] == "cam/1: reconnecting: connection refused"
    assert len(said) == 3  # a state is told once, however many attempts it takes
    assert source.telemetry.snapshot().reconnects == 1


def test_a_peer_that_is_not_there_yet_is_waited_for(make, said):
    source = make([LostError("connection refused")], [LostError("connection refused")], [picture()])
    assert next(iter(source)).index == 0
    assert said[0] == "cam/1: reconnecting: connection refused"


def test_a_stall_is_told_once_and_ends_by_itself(make, said):
    go_on = threading.Event()
    source = make([picture(1), go_on, picture(2), "hang"], reconnect_s=WAIT_S)
    frames = iter(source)
    next(frames)
    threading.Thread(
        target=lambda: (wait_until(lambda: source.telemetry.state is State.STALLED), go_on.set()), daemon=True
    ).start()
    assert next(frames).image[0, 0, 0] == 2
    assert source.telemetry.state is State.RUNNING
    assert said == ["cam/1: running", "cam/1: stalled: no frame for 0.15 s", "cam/1: running"]
    assert (len(source.made), source.telemetry.snapshot().reconnects) == (1, 0)


def test_a_stall_that_lasts_is_left_behind(make, said):
    source = make([picture(1), "hang"], [picture(2)])
    frames = list(itertools.islice(source, 2))
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2]
    assert said[1:3] == [
        "cam/1: stalled: no frame for 0.15 s",
        "cam/1: reconnecting: nothing came for 0.3 s",
    ]
    assert source.made[0].cancelled.is_set()
    assert source.made[0].ended.wait(WAIT_S)


def test_a_connection_that_stays_silent_is_left_behind(make, said):
    source = make(["hang"], [picture()], connect_s=0.1)
    assert next(iter(source)).index == 0
    assert said[0] == "cam/1: reconnecting: nothing came for 0.1 s"


def test_signs_of_life_keep_a_connection_but_are_no_frames(make, said):
    def signs():
        for _ in range(6):
            time.sleep(0.05)
            yield Picture(None)
        yield picture()

    source = make(signs, stall_s=0.1, reconnect_s=0.1, connect_s=0.2)
    assert next(iter(source)).index == 0
    assert (len(source.made), said, source.telemetry.snapshot().frames_in) == (1, ["cam/1: running"], 0)


@pytest.mark.parametrize("where", ["stalled", "backing off", "connecting", "held by the consumer"])
def test_closing_from_another_thread_ends_it_at_once(make, where):
    steps = {
        "stalled": [[picture(), "hang"]],
        "connecting": [["hang"]],
        "backing off": [[picture(), LostError("gone")]],
        "held by the consumer": [[picture()] * 3],
    }[where]
    source = make(*steps, stall_s=0.05, reconnect_s=WAIT_S, connect_s=WAIT_S, backoff_s=1000, backoff_max_s=1000)
    ended = threading.Event()
    taken = []

    def consume():
        for frame in source:
            taken.append(frame)
            if where == "held by the consumer":
                ended.wait(0.2)
        ended.set()

    threading.Thread(target=consume, daemon=True).start()
    state = {"stalled": State.STALLED, "backing off": State.RECONNECTING, "connecting": State.CONNECTING}
    wait_until(lambda: source.telemetry.state is state.get(where, State.RUNNING) and source.made)
    start_s = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - start_s < 1
    assert ended.wait(1)
    assert source.telemetry.state is State.ENDED


def test_leaving_the_iterator_ends_the_connection(make):
    source = make([picture(), "hang"])
    frames = iter(source)
    next(frames)
    frames.close()
    assert source.made[0].ended.wait(WAIT_S)
    assert source.telemetry.state is State.ENDED


def test_what_can_never_work_fails_at_once(make, said):
    source = make([SourceError("cam/1: expected to be let in, got 401 unauthorized: check user and password")])
    with pytest.raises(SourceError, match=r"^cam/1: expected to be let in"):
        next(iter(source))
    assert source.telemetry.state is State.FAILED
    assert "401" in source.telemetry.snapshot().problem
    assert (len(source.made), said) == (1, [])


def test_what_is_refused_at_first_is_tried_again_for_so_long_as_is_said(make, said, monkeypatch):
    refusal = SourceError("cam/1: expected to be let in, got 401")
    assert next(iter(make([refusal], [refusal], [picture()], refused_s=math.inf))).index == 0
    assert said[0] == "cam/1: reconnecting: expected to be let in, got 401"
    source = make([refusal], refused_s=100.0)
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def at(number):
        now_s[0] = 40.0 * number
        return iter([refusal])

    source._connect = lambda: Script(at(next(attempts)))
    attempts = itertools.count(1)
    with pytest.raises(SourceError, match=r"^cam/1: expected to be let in, got 401$"):
        list(source)
    assert next(attempts) == 4  # after 40, 80 and 120 seconds


def test_a_source_that_is_given_up_ends_whatever_it_waits_for(make):
    source = make([picture(), "hang"], stall_s=WAIT_S, reconnect_s=WAIT_S)
    frames = iter(source)
    next(frames)
    threading.Timer(0.1, source.give_up, ["cam/1: takes too much"]).start()
    with pytest.raises(SourceError, match=r"^cam/1: takes too much$"):
        next(frames)
    assert source.telemetry.state is State.FAILED
    assert source.made[0].ended.wait(WAIT_S)
    given_up_s = time.monotonic()
    while source.telemetry.threads:  # the reader is waited for a moment only, and ends by itself
        assert time.monotonic() < given_up_s + WAIT_S
        time.sleep(0.01)


def test_what_worked_before_may_work_again(make):
    source = make([picture(), LostError("gone")], [SourceError("401")], [picture()])
    assert len(list(itertools.islice(source, 2))) == 2


def test_a_mistake_in_a_connection_is_not_swallowed(make):
    source = make([picture(), ZeroDivisionError("a bug")])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(source)
    assert source.telemetry.state is State.FAILED


@pytest.mark.parametrize("most", [0, 3])
def test_it_gives_up_where_that_is_asked_for(make, most):
    source = make([LostError("no route")], max_reconnects=most)
    with pytest.raises(SourceError, match=rf"^cam/1: no route; gave up after {most} reconnections$"):
        list(source)
    assert len(source.made) == most + 1
    assert source.telemetry.state is State.FAILED


@pytest.mark.parametrize("steady_s", [1e-6, 1000])
def test_attempts_are_counted_anew_once_frames_have_come_for_a_while(make, steady_s):
    source = make([picture(), picture(), LostError("gone")], max_reconnects=2, steady_s=steady_s)
    if steady_s < 1:
        assert len(list(itertools.islice(source, 20))) == 20
    else:
        with pytest.raises(SourceError, match="gave up after 2 reconnections"):
            list(source)


def test_waits_double_up_to_a_limit_and_are_random(make, monkeypatch):
    asked = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: asked.append((low, high)) or 0.0)
    source = make([LostError("no route")], max_reconnects=8, backoff_s=0.5, backoff_max_s=30)
    with pytest.raises(SourceError):
        list(source)
    assert asked == [(0, high) for high in (0.5, 1, 2, 4, 8, 16, 30, 30)]


def test_damaged_frames_are_counted_and_never_shown(make):
    source = make([picture(1), picture(2, corrupt=True), Picture(None, corrupt=True), picture(3), "hang"])
    frames = list(itertools.islice(source, 2))
    assert [(frame.index, frame.image[0, 0, 0]) for frame in frames] == [(0, 1), (3, 3)]
    snapshot = source.telemetry.snapshot()
    assert (snapshot.frames_in, snapshot.dropped, snapshot.in_flight) == (2, {CORRUPT: 2}, 0)


def test_damaged_frames_are_passed_on_where_that_is_asked_for(make):
    source = make([picture(1), picture(2, corrupt=True), Picture(None, corrupt=True), picture(3)], on_corrupt="pass")
    assert [frame.image[0, 0, 0] for frame in itertools.islice(source, 3)] == [1, 2, 3]
    assert source.telemetry.snapshot().dropped == {CORRUPT: 1}  # there is nothing of it to show


def test_nothing_but_damaged_frames_is_a_stall(make):
    def damaged():
        yield picture()
        while True:
            time.sleep(0.01)
            yield picture(corrupt=True)

    source = make(damaged, stall_s=0.1, reconnect_s=WAIT_S)
    frames = iter(source)
    next(frames)
    threading.Thread(target=lambda: list(frames), daemon=True).start()
    wait_until(lambda: source.telemetry.state is State.STALLED)
    assert len(source.made) == 1


def test_a_size_that_changes_goes_on(make):
    sizes = [(4, 6), (8, 2), (4, 6)]
    source = make([Picture(np.zeros((*size, 3), np.uint8)) for size in sizes])
    assert [frame.size_hw for frame in itertools.islice(source, 3)] == sizes


def test_a_hundred_breaks_leave_nothing_behind(make):
    source = make([picture(), LostError("gone")], backoff_s=1e-6, backoff_max_s=1e-6)
    frames = iter(source)
    list(itertools.islice(frames, 10))
    before = threading.active_count()
    list(itertools.islice(frames, 100))
    assert threading.active_count() <= before + 1
    assert len(source._left) <= 2


def test_readers_that_hang_for_good_do_not_pile_up(make):
    release = threading.Event()
    hanging = [picture(), release]
    source = make(hanging, stall_s=0.02, reconnect_s=0.02, connect_s=1)
    thread = threading.Thread(target=lambda: list(source), daemon=True)
    thread.start()
    wait_until(lambda: len(source.made) == live.MAX_ABANDONED)
    time.sleep(0.5)  # ten times what another attempt would take
    assert len(source.made) <= live.MAX_ABANDONED
    release.set()
    wait_until(lambda: len(source.made) > live.MAX_ABANDONED)
    source.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stall_s": 0}, "stall_s: expected seconds above 0, got 0"),
        ({"reconnect_s": math.nan}, "reconnect_s: expected seconds above 0, got nan"),
        ({"connect_s": math.inf}, "connect_s: expected"),
        ({"max_reconnects": -1}, "max_reconnects: expected a number from 0, got -1"),
        ({"on_corrupt": "mend"}, "on_corrupt: expected drop or pass, got mend"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        LiveOptions(**options)


SECOND_NS = 1_000_000_000


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20 * SECOND_NS),
            st.one_of(st.none(), st.floats(), st.floats(-1e5, 1e5)),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_times_increase_whatever_the_peer_says(arrivals):
    clock, now_ns, times_s = StreamClock(), 7 * SECOND_NS, []
    for wait_ns, stamp_s, reconnected in arrivals:
        now_ns += wait_ns
        if reconnected:
            clock.restart()
        times_s.append(clock(now_ns, stamp_s))
    assert times_s[0] == 0
    assert all(math.isfinite(time_s) for time_s in times_s)
    assert all(later > earlier for earlier, later in itertools.pairwise(times_s))


def test_times_are_the_peers_free_of_the_networks_jitter_and_held_to_the_wall():
    clock, rng = StreamClock(), np.random.default_rng(3)
    drift = 1.001  # the camera's clock is fast
    count = 30 * 120
    times_s = [clock(int((i / 30 + rng.uniform(0, 0.1)) * 1e9), 500 + drift * i / 30) for i in range(count)]
    steps_s = np.diff(times_s[300:])
    assert np.abs(steps_s - 1 / 30).max() < 0.004
    assert times_s[-1] == pytest.approx(count / 30, abs=0.15)


def test_times_follow_the_wall_over_a_gap():
    clock = StreamClock()
    assert clock(0, 10.0) == 0
    assert clock(40_000_000, 10.04) == pytest.approx(0.04)
    assert clock(5 * SECOND_NS, 10.08) == pytest.approx(5.0)  # stopped, and its clock with it
    assert clock(5_040_000_000, 3.0) == pytest.approx(5.04)  # jumped back
    clock.restart()
    assert clock(9 * SECOND_NS, 0.0) == pytest.approx(9.0)
