"""A mask that follows its subjects through pictures."""

import itertools

import cv2
import numpy as np
import pytest

from pipeline.masks.motion import Track

SIZE_WH = (320, 180)


def texture(seed, size_wh, low, high):
    """Blotches of a few pixels, and finer ones."""
    random = np.random.default_rng(seed)
    layers = []
    for cell in (4, 12):
        coarse = random.integers(0, 256, (size_wh[1] // cell + 2, size_wh[0] // cell + 2), dtype=np.uint8)
        layers.append(cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC).astype(np.float32))
    return low + (high - low) * np.mean(layers, axis=0) / 255


def figure(seed, size_wh=(60, 90)):
    """A picture and its mask, of no simple shape."""
    mask = np.zeros(size_wh[::-1], np.uint8)
    width, height = size_wh
    cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 2 - 4), 0, 0, 360, 255, -1)
    cv2.rectangle(mask, (width // 2, height // 4), (width - 3, height // 2), 255, -1)
    return texture(seed, size_wh, 60, 250), mask


def scene(*placed, seed=0):
    """Figures over a texture that stands still: picture and mask; each is (figure, x, y, scale, degrees)."""
    picture, mask = texture(seed, SIZE_WH, 20, 180), np.zeros(SIZE_WH[::-1], np.uint8)
    for (image, shape), x, y, scale, degrees in placed:
        height, width = shape.shape
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)
        matrix[:, 2] += (x - width / 2, y - height / 2)
        alpha = cv2.warpAffine(shape, matrix, SIZE_WH)
        picture = np.where(alpha >= 128, cv2.warpAffine(image, matrix, SIZE_WH, borderMode=cv2.BORDER_REFLECT), picture)
        mask = np.maximum(mask, alpha)
    noise = np.random.default_rng([seed, int(mask.sum())]).normal(0, 2, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8), mask


def iou(mask, other):
    one, two = mask >= 128, other >= 128
    return (one & two).sum() / (one | two).sum()


def followed(scenes, task="binary"):
    """The track of the first scene's mask, at the last one."""
    (first, mask), *others = scenes
    track = Track(first, mask, task)
    for picture, _ in others:
        track.follow(picture)
    return track


ONE, OTHER = figure(1), figure(2, (40, 60))
PATHS = {
    "fast": [((ONE, 50 + 16 * step, 90, 1, 0),) for step in range(10)],
    "turning": [((ONE, 160, 90, 1, 4 * step),) for step in range(10)],
    "coming nearer": [((ONE, 160, 90, 0.7 + 0.04 * step, 0),) for step in range(10)],
    "two, in opposite directions": [
        ((ONE, 60 + 7 * step, 60, 1, 0), (OTHER, 250 - 5 * step, 130, 1, 0)) for step in range(10)
    ],
    "two who meet at first": [
        ((ONE, 160 - 6 * step, 90, 1, 0), (OTHER, 195 + 5 * step, 100, 1, 0)) for step in range(10)
    ],
}


@pytest.mark.parametrize("path", PATHS)
def test_a_mask_follows_what_it_is_of(path):
    scenes = [scene(*placed) for placed in PATHS[path]]
    track = followed(scenes)
    assert iou(track.moved(), scenes[-1][1]) > 0.93
    assert iou(scenes[0][1], scenes[-1][1]) < 0.85
    assert track.sure > 0.5


def test_it_follows_what_moves_in_front_of_what_moves():
    wide = texture(5, (900, 180), 20, 180)
    scenes = []
    for step in range(10):  # a camera that turns after someone
        picture, mask = scene((ONE, 160 + 2 * step, 90, 1, 0))
        behind = wide[:, 14 * step : 14 * step + SIZE_WH[0]]
        scenes.append((np.where(mask >= 128, picture, behind).astype(np.uint8), mask))
    assert iou(followed(scenes).moved(), scenes[-1][1]) > 0.93


def test_what_has_no_texture_is_followed_by_its_outline():
    plain = (np.full((90, 60), 120.0), ONE[1])
    scenes = [scene((plain, 60 + 9 * step, 90 + step, 1, 0)) for step in range(10)]
    track = followed(scenes)
    assert iou(track.moved(), scenes[-1][1]) > 0.95
    assert track.sure > 0.9
    track.follow(texture(0, SIZE_WH, 20, 180).astype(np.uint8))
    assert track.sure < 0.1  # it has gone


def test_what_the_edge_cuts_off_comes_in():
    bar = np.full((180, 60), 255, np.uint8)
    image = texture(7, (60, 180), 60, 250)
    scenes = [scene(((image, bar), x, 150, 1, 0)) for x in range(160, 190, 3)]  # it ends below the picture
    up = [scene(((image, bar), 160, y, 1, 0)) for y in range(210, 150, -6)]
    for each in (scenes, up):
        moved = followed(each).moved()
        assert iou(moved, each[-1][1]) > 0.93
        assert moved[-1].any()


def test_where_its_subject_went_is_not_known_when_it_jumps():
    scenes = [scene((ONE, 60, 90, 1, 0)), scene((ONE, 250, 90, 1, 0))]
    assert followed(scenes).sure < 0.1


def test_classes_stay_what_they_are_and_move_on_their_own():
    def classes(step):
        picture, _ = scene((ONE, 70 + 6 * step, 90, 1, 0), (OTHER, 250 - 6 * step, 60, 1, 0))
        _, one = scene((ONE, 70 + 6 * step, 90, 1, 0))
        _, other = scene((OTHER, 250 - 6 * step, 60, 1, 0))
        return picture, np.where(other >= 128, 9, np.where(one >= 128, 7, 3)).astype(np.uint8)

    scenes = [classes(step) for step in range(8)]
    moved = followed(scenes, "classes").moved()
    assert set(np.unique(moved)) == {3, 7, 9}
    for value in (7, 9):
        assert iou(255 * np.uint8(moved == value), 255 * np.uint8(scenes[-1][1] == value)) > 0.9


def test_a_moved_mask_has_the_size_of_its_own_and_is_new():
    (first, mask), (second, truth) = scene((ONE, 100, 90, 1, 0)), scene((ONE, 106, 90, 1, 0))
    large = cv2.resize(mask, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    before = large.copy()
    track = Track(first, large, "binary")
    track.follow(second)
    moved = track.moved()
    assert moved.shape == large.shape
    assert iou(moved, cv2.resize(truth, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)) > 0.95
    moved[:] = 7
    np.testing.assert_array_equal(large, before)
    np.testing.assert_array_equal(track.mask, before)
    assert not (track.moved() == 7).all()


@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("size_hw", [(16, 16), (16, 640), (180, 320)])
def test_nothing_and_everything_and_no_texture(task, value, size_hw):
    grey, mask = np.full(size_hw, 90, np.uint8), np.full(size_hw, value, np.uint8)
    track = Track(grey, mask, task)
    track.follow(grey)
    np.testing.assert_array_equal(track.moved(), mask)


def test_hundreds_of_specks():
    mask = np.zeros(SIZE_WH[::-1], np.uint8)
    for x, y in itertools.product(range(4, 310, 8), range(4, 170, 8)):
        mask[y : y + 4, x : x + 4] = 255
    picture = texture(3, SIZE_WH, 20, 200).astype(np.uint8)
    track = Track(picture, mask, "binary")
    track.follow(picture)
    assert iou(track.moved(), mask) > 0.9
