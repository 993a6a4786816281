"""Regions keep their number while they move, meet, go and come back."""

import cv2
import numpy as np

from pipeline.results.regions import regions
from pipeline.results.tracker import GAP_S, Tracker

SIZE_HW = (120, 320)


def discs(*places):
    """A mask with a disc of radius r at each (x, y, r)."""
    mask = np.zeros(SIZE_HW, np.uint8)
    for x, y, radius in places:
        cv2.circle(mask, (round(x), round(y)), radius, 255, cv2.FILLED)
    return regions(mask, min_share=0)


def ids_by_place(found):
    """Ids from left to right."""
    return [region.id for region in sorted(found, key=lambda region: region.xywh[0])]


def test_what_moves_keeps_its_number():
    tracker = Tracker()
    for step in range(40):
        found = tracker.update(discs((30 + 6 * step, 30, 15), (290 - 6 * step, 90, 12)), step / 25)
        assert len(found) == 2
        assert {region.id: region.xywh[1] < 50 for region in found} == {1: True, 2: False}


def test_what_moves_further_than_its_size_is_foreseen():
    tracker = Tracker()
    # Faster and faster: in the end no pixel of one frame is a pixel of the next.
    places = np.cumsum([4, 8, 12, 16, 20, 24, 26, 28, 28, 28])
    ids = [tracker.update(discs((20 + x, 60, 12)), step / 10)[0].id for step, x in enumerate(places.tolist())]
    assert ids == [1] * len(places)


def test_a_short_gap_is_bridged_and_a_long_one_is_not():
    tracker = Tracker()
    assert tracker.update(discs((50, 50, 20)), 0.0)[0].id == 1
    for step in range(1, 9):
        assert tracker.update([], step / 10) == []
    assert tracker.update(discs((52, 50, 20)), 0.9)[0].id == 1
    assert tracker.update(discs((52, 50, 20)), 0.9 + GAP_S + 0.1)[0].id == 2


def test_of_two_that_become_one_the_larger_keeps_its_number():
    tracker = Tracker()
    assert ids_by_place(tracker.update(discs((100, 60, 30), (160, 60, 20)), 0.0)) == [1, 2]
    joined = discs((100, 60, 30), (145, 60, 20))
    assert len(joined) == 1
    assert tracker.update(joined, 0.1)[0].id == 1
    assert ids_by_place(tracker.update(discs((100, 60, 30), (160, 60, 20)), 0.2)) == [1, 2]


def test_classes_are_followed_by_themselves():
    tracker = Tracker()
    mask = np.zeros(SIZE_HW, np.uint8)
    mask[20:60, 20:60] = 1
    first = tracker.update(regions(mask, task="classes"), 0.0)
    second = tracker.update(regions(mask * 2, task="classes"), 0.1)
    assert [(region.number, region.id) for region in (*first, *second)] == [(1, 1), (2, 2)]


def test_time_that_goes_back_and_a_new_size_begin_anew():
    tracker = Tracker()
    assert tracker.update(discs((50, 50, 20)), 5.0)[0].id == 1
    assert tracker.update(discs((50, 50, 20)), 1.0)[0].id == 2
    assert tracker.update(regions(np.full((40, 40), 255, np.uint8)), 1.1)[0].id == 3
