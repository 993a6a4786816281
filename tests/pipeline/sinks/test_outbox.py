import threading
import time

import pytest

from pipeline.sinks.outbox import Outbox


def test_everything_comes_out_in_order():
    box = Outbox(2, drop_oldest=False)
    came = []
    thread = threading.Thread(target=lambda: came.extend(box))
    thread.start()
    for number in range(100):
        box.put(number)
    box.close()
    thread.join()
    assert (came, box.dropped) == (list(range(100)), 0)


def test_the_newest_wins():
    box = Outbox(1, drop_oldest=True)
    for number in range(10):
        box.put(number)
    box.close()
    assert (list(box), box.dropped) == ([9], 9)


@pytest.mark.parametrize("clear", [True, False])
def test_a_closed_queue_takes_nothing(clear):
    box = Outbox(2, drop_oldest=False)
    box.put(1)
    box.close(clear=clear)
    box.put(2)
    assert list(box) == ([] if clear else [1])


def test_put_waits_for_room_until_it_is_closed():
    box = Outbox(1, drop_oldest=False)
    box.put(1)
    thread = threading.Thread(target=box.put, args=(2,))
    thread.start()
    while not box._changed._waiters:
        time.sleep(0.001)
    box.close()
    thread.join()
    assert list(box) == [1]
