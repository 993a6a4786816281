import cv2
import numpy as np
import pytest

from pipeline.masks.backdrop import DIFFERS, SAME, SHADOW, UNKNOWN, Backdrop
from pipeline.masks.motion import Track

SIZE_HW = (120, 200)


def street(seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(90, 160, (12, 20), dtype=np.uint8)
    return cv2.resize(coarse, SIZE_HW[::-1], interpolation=cv2.INTER_LINEAR)


def walker(x, leg=0, seed=0):
    """A picture and its mask: someone with two bright legs, of which one is stretched out by some pixels."""
    random = np.random.default_rng(seed)
    mask = np.zeros(SIZE_HW, np.uint8)
    mask[30:60, x : x + 24] = 255
    mask[60:90, x : x + 8] = 255
    mask[60:90, x + 16 + leg : x + 24 + leg] = 255
    texture = random.integers(190, 255, (120, 60), dtype=np.uint8)
    image = np.where(mask > 0, np.roll(np.tile(texture, 4)[:, : SIZE_HW[1]], x, axis=1), street())
    return image.astype(np.uint8), mask


def test_what_was_behind_a_subject_is_known_once_it_has_left():
    backdrop = Backdrop()
    image, mask = walker(20)
    assert backdrop.learn(image, mask) is None
    assert (backdrop.states(image)[mask > 0] == UNKNOWN).all()
    image, mask = walker(100)
    states = backdrop.learn(image, mask)
    assert (states[mask > 0] == DIFFERS).mean() > 0.95
    after = backdrop.states(street())
    assert (after == SAME).all()


def test_what_is_darker_may_be_a_shadow_until_it_has_stayed():
    backdrop, nothing = Backdrop(), np.zeros(SIZE_HW, np.uint8)
    backdrop.learn(street(), nothing)
    dark = street()
    dark[40:60, 40:60] = dark[40:60, 40:60] * 0.7
    assert (backdrop.learn(dark, nothing)[42:58, 42:58] == SHADOW).all()
    assert (backdrop.states(street()) == SAME).all()  # it has not been learned
    backdrop.learn(dark, nothing)
    assert (backdrop.states(dark) == SAME).all()


def test_a_camera_that_moves_has_no_backdrop():
    backdrop, nothing = Backdrop(), np.zeros(SIZE_HW, np.uint8)
    for seed in range(3):
        assert backdrop.learn(street(seed), nothing) is None
    assert (backdrop.states(street(2)) == SAME).all()


def test_nothing_is_learned_where_all_is_subject():
    backdrop, everything = Backdrop(), np.ones(SIZE_HW, np.uint8)
    for seed in range(3):
        backdrop.learn(street(seed), everything)
    assert (backdrop.states(street()) == UNKNOWN).all()


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_a_leg_that_swings_is_where_the_street_is_hidden(task):
    def moved(backdrop):
        value = 255 if task == "binary" else 7
        for x in (20, 150):
            image, mask = walker(x)
            track = Track(image, np.where(mask > 0, value, 0).astype(np.uint8), task, backdrop)
        for step in range(1, 5):
            image, mask = walker(150 - 3 * step, leg=step)
            track.follow(image)
        found = track.moved() > value // 2
        return np.sum(found & (mask > 0)) / np.sum(found | (mask > 0))

    without, with_backdrop = moved(None), moved(Backdrop())
    assert with_backdrop > 0.97
    assert with_backdrop > without + 0.03
