import dataclasses
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.base import Computed, Engine, State
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import ShapeError
from pipeline.flow.inference import infer
from pipeline.frames.frame import Frame
from pipeline.masks.memory import Memories
from pipeline.stages.stage_timer import StageTimer

WAIT_S = 20  # only a broken test waits so long


class Numbered(Engine):
    """Its masks are the frames' numbers plus its own; counts what it was asked and when it was closed."""

    def __init__(self, own=0, in_flight=1, batch=1, keeps_state=False):
        manifest = SimpleNamespace(frame_size_hw=None, pixels="bgr", composes=False)
        super().__init__(SimpleNamespace(manifest=manifest))
        self.own, self.in_flight, self.batch, self.keeps_state = own, in_flight, batch, keeps_state
        self.one_at_a_time = batch == 1
        self.description = f"number {own}"
        self.pending, self.submitted, self.states, self.closed_on = [], 0, [], None

    def _submit(self, frames_nhwc):
        assert len(frames_nhwc) <= self.batch
        self.states.append(self._state)
        self.submitted += len(frames_nhwc)
        self.pending.append(frames_nhwc[..., 2] + self.own)

    def _collect(self):
        return Computed(self.pending.pop(0))

    def _close(self):
        assert not self.pending
        self.closed_on = threading.current_thread()


def frames(count):
    for index in range(count):
        yield Frame(np.full((2, 2, 3), index, np.uint8), index, index / 25, "yard", str(index))


def replaced(engine, other):
    """Have an engine replaced from a thread of its own, and wait until it is announced."""
    thread = threading.Thread(target=engine.replace, args=(other,), daemon=True)
    thread.start()
    announced(engine, other)
    return thread


def announced(engine, other):
    deadline_s = time.monotonic() + WAIT_S
    while engine._next is not other:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=2, max_size=5),
    gaps=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_every_frame_is_computed_once_and_in_order_whatever_takes_over(kinds, gaps):
    engines = [Numbered(100 + 10 * at, *kind) for at, kind in enumerate(kinds)]
    engine, used, threads = ReplaceableEngine(engines[0]), engines[:1], []

    def coming():
        due = set(np.cumsum([gap + 1 for gap in gaps]))
        for frame in frames(30):
            is_free = not threads or not threads[-1].is_alive()
            if frame.index in due and is_free and len(used) < len(engines):
                used.append(engines[len(used)])
                threads.append(replaced(engine, used[-1]))
            yield frame

    with engine:
        done = list(infer(coming(), engine, StageTimer()))
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
    assert [frame.index for frame in done] == list(range(30))
    owns = [int(frame.mask[0, 0]) - frame.index for frame in done]
    assert owns == sorted(owns)  # nobody computes again who was replaced
    assert set(owns) == {one.own for one in used}
    assert sum(one.submitted for one in used) == 30
    assert all(one._closed for one in used)
    assert [one.closed_on for one in used[:-1]] == threads  # not on the thread of the frames


def test_what_is_in_flight_is_collected_from_whom_it_was_given_to():
    old, new = Numbered(0, in_flight=3), Numbered(100, in_flight=2)
    with ReplaceableEngine(old) as engine:
        engine.submit(np.full((1, 2, 2, 3), 1, np.uint8))
        engine.submit(np.full((1, 2, 2, 3), 2, np.uint8))
        thread = replaced(engine, new)
        assert engine.description == "number 0"  # until it is asked for
        engine.renew()
        assert (engine.description, engine.in_flight, engine.bundle) == ("number 100", 2, new.bundle)
        engine.submit(np.full((1, 2, 2, 3), 3, np.uint8))
        assert not old._closed
        assert [int(engine.collect()[0, 0, 0]) for _ in range(3)] == [1, 2, 103]
        thread.join(WAIT_S)
        assert (old._closed, new._closed) == (True, False)
    assert new._closed


def test_one_that_was_never_taken_is_closed_with_the_run():
    old, new, results = Numbered(), Numbered(100), []
    engine = ReplaceableEngine(old)
    thread = threading.Thread(target=lambda: results.append(engine.replace(new)), daemon=True)
    thread.start()
    announced(engine, new)
    engine.close()
    thread.join(WAIT_S)
    assert (results, old._closed, new._closed) == ([False], True, True)
    engine.renew()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(np.zeros((1, 2, 2, 3), np.uint8))


def test_who_listens_hears_of_it_before_the_first_frame():
    engine, other, seen = ReplaceableEngine(Numbered()), Numbered(7), []
    thread = threading.Thread(
        target=lambda: engine.replace(other, lambda: seen.append(engine.description)), daemon=True
    )
    thread.start()
    announced(engine, other)
    assert seen == []
    engine.renew()
    assert seen == ["number 7"]
    thread.join(WAIT_S)


def test_an_error_of_the_old_one_is_told_and_the_new_one_is_not_asked_for_it():
    class Fails(Numbered):
        def _collect(self):
            self.pending.pop(0)
            raise ShapeError("gone")

    old, new = Fails(in_flight=2), Numbered(100)
    with ReplaceableEngine(old) as engine:
        engine.submit(np.zeros((1, 2, 2, 3), np.uint8))
        thread = replaced(engine, new)
        engine.renew()
        with pytest.raises(ShapeError, match="gone"):
            engine.collect()
        thread.join(WAIT_S)
        assert old._closed
        assert engine(np.zeros((1, 2, 2, 3), np.uint8)).max() == 100


def test_a_new_engine_begins_with_states_of_its_own():
    old, new = Numbered(keeps_state=True), Numbered(keeps_state=True)
    with ReplaceableEngine(old) as engine:
        memories = Memories(engine)
        first, second, third, fourth = (dataclasses.replace(frame, pts_s=frame.index / 25) for frame in frames(4))
        state = memories.of(first)
        assert isinstance(state, State)
        assert memories.of(second) is state
        thread = replaced(engine, new)
        engine.renew()
        begun = memories.of(third)
        assert begun is not state
        assert memories.of(fourth) is begun
        thread.join(WAIT_S)
