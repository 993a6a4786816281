import threading
import time

import pytest

from pipeline.stages.prefetch import Prefetch

WAIT_S = 10  # only a broken test waits so long


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_order_is_kept_and_every_item_comes_once():
    with Prefetch(range(1000), 3) as items:
        assert list(items) == list(range(1000))
    assert items.dropped == 0


def test_an_empty_iterable_ends_at_once():
    with Prefetch([], 1) as items:
        assert list(items) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_runs_at_most_depth_items_ahead(depth):
    started = []
    full = threading.Event()

    def numbers():
        for number in range(20):
            started.append(number)
            if number == depth + 1:  # one that waits for room, and `depth` that wait to be taken after the first
                full.set()
            yield number

    with Prefetch(numbers(), depth) as items:
        iterator = iter(items)
        assert next(iterator) == 0
        assert full.wait(WAIT_S)
        assert started == list(range(depth + 2))
        assert list(iterator) == list(range(1, 20))


def test_an_error_comes_after_the_items_before_it_with_its_traceback():
    def numbers():
        yield 1
        yield 2
        raise OSError("unplugged")

    got = []
    with Prefetch(numbers(), 5) as items, pytest.raises(OSError, match=r"^unplugged$") as caught:
        got.extend(items)
    assert got == [1, 2]
    assert "numbers" in [entry.name for entry in caught.traceback]


def test_an_error_is_raised_once():
    def numbers():
        raise OSError("unplugged")
        yield

    with Prefetch(numbers(), 1) as items:
        with pytest.raises(OSError, match="unplugged"):
            list(items)
        assert list(items) == []


def test_an_error_of_iter_reaches_the_consumer():
    class Broken:
        def __iter__(self):
            raise OSError("no device")

    with Prefetch(Broken(), 1) as items, pytest.raises(OSError, match="no device"):
        list(items)


def test_an_error_while_the_items_close_reaches_the_consumer():
    class Closing:
        def __init__(self):
            self.left = 2

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return self.left

        def close(self):
            raise OSError("cannot close")

    got = []
    with Prefetch(Closing(), 5) as items, pytest.raises(OSError, match="cannot close"):
        got.extend(items)
    assert got == [1, 0]


def test_leaving_early_stops_the_thread_and_closes_the_items():
    closed = threading.Event()

    def numbers():
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    with Prefetch(numbers(), 2, name="left-early") as items:
        assert next(iter(items)) == 0
    assert closed.wait(WAIT_S)
    assert named("left-early") == []


def test_an_error_in_the_body_stops_the_thread():
    with pytest.raises(ZeroDivisionError), Prefetch(iter(int, 1), 2, name="body-error"):
        raise ZeroDivisionError
    assert named("body-error") == []


def test_close_while_the_thread_waits_for_room_and_twice():
    filled = threading.Event()

    def numbers():
        yield 1
        filled.set()
        yield 2

    items = Prefetch(numbers(), 1, name="no-room")
    assert filled.wait(WAIT_S)
    items.close()
    items.close()
    assert named("no-room") == []
    assert list(items) == []


def test_close_does_not_wait_for_a_source_that_is_stuck():
    stuck, go_on = threading.Event(), threading.Event()

    def numbers():
        stuck.set()
        go_on.wait(WAIT_S)
        yield 1

    items = Prefetch(numbers(), 1, name="stuck", join_s=0.01)
    assert stuck.wait(WAIT_S)
    items.close()
    assert len(named("stuck")) == 1
    go_on.set()
    for thread in named("stuck"):
        thread.join(WAIT_S)
    assert named("stuck") == []


def test_close_waits_for_what_is_computed():
    started, finished = threading.Event(), threading.Event()

    def numbers():
        started.set()
        time.sleep(0.05)
        finished.set()
        yield 1

    items = Prefetch(numbers(), 1, name="computing", join_s=None)
    assert started.wait(WAIT_S)
    items.close()
    assert finished.is_set()
    assert named("computing") == []


def test_close_ends_a_consumer_that_waits():
    go_on, consumed = threading.Event(), []

    def numbers():
        yield 1
        go_on.wait(WAIT_S)
        yield 2

    items = Prefetch(numbers(), 1, join_s=0.01)
    first = threading.Event()

    def consume():
        for item in items:
            consumed.append(item)
            first.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert first.wait(WAIT_S)
    items.close()
    consumer.join(WAIT_S)
    assert not consumer.is_alive()
    assert consumed == [1]
    go_on.set()


@pytest.mark.parametrize(("depth", "left"), [(1, [9]), (3, [7, 8, 9])])
def test_drop_oldest_keeps_the_newest_and_counts_the_rest(depth, left):
    ended = threading.Event()

    def numbers():
        yield from range(10)
        ended.set()

    with Prefetch(numbers(), depth, drop_oldest=True) as items:
        assert ended.wait(WAIT_S)
        assert list(items) == left
        assert items.dropped == 10 - len(left)


def test_drop_oldest_loses_nothing_when_the_consumer_keeps_up():
    taken = threading.Semaphore(1)

    def numbers():
        for number in range(50):
            assert taken.acquire(timeout=WAIT_S)
            yield number

    got = []
    with Prefetch(numbers(), 1, drop_oldest=True) as items:
        for item in items:
            got.append(item)
            taken.release()
    assert got == list(range(50))
    assert items.dropped == 0


def test_the_thread_never_keeps_a_process_alive():
    with Prefetch(iter(int, 1), 1, name="daemon"):
        assert [thread.daemon for thread in named("daemon")] == [True]


def test_ready_says_whether_the_next_item_is_there():
    go_on, started = threading.Event(), threading.Event()

    def numbers():
        started.set()
        go_on.wait(WAIT_S)
        yield 1

    with Prefetch(numbers(), 1) as items:
        assert started.wait(WAIT_S)
        assert not items.ready()
        go_on.set()
        assert list(items) == [1]
        assert items.ready()  # the end, which no one waits for
