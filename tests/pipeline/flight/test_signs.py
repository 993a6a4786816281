"""What counts as an event in a source's own pictures and masks, and what does not."""

import numpy as np
import pytest

from pipeline.flight.signs import Signs
from tests.fakes.computed_frames import computed, noise

SIZE_HW = 96, 128
STILL = noise(0, (*SIZE_HW, 3))
S = 1_000_000_000


def masked(share, rows=None):
    mask = np.zeros(SIZE_HW, np.uint8)
    mask[: round(SIZE_HW[0] * share) if rows is None else rows] = 255
    return mask


def kinds(signs, masks, *, pictures=None, fps=10, **facts):
    """The kinds of events of frames with these masks, with the number of the frame."""
    found = []
    for index, mask in enumerate(masks):
        picture = STILL if pictures is None else pictures[index]
        frame = computed(index, picture, mask, captured_ns=index * S // fps, **facts)
        found += [(index, kind) for kind, _ in signs.of(frame)]
    return found


def test_a_mask_that_is_gone_is_told_once():
    masks = [masked(0.3)] * 5 + [masked(0)] * 30
    assert kinds(Signs("binary"), masks) == [(10, "empty")]


def test_a_subject_that_leaves_is_none():
    leaving = [masked(0, rows) for rows in range(30, 0, -1)]  # the last one has a hundredth of the picture
    leaving[-1] = np.zeros(SIZE_HW, np.uint8)
    leaving[-1][0, :20] = 255
    pictures = [np.roll(STILL, index, axis=0) for index in range(60)]
    assert kinds(Signs("binary"), leaving + [masked(0)] * 30, pictures=pictures) == []


def test_one_empty_mask_is_none():
    masks = ([masked(0.3)] * 5 + [masked(0)] * 2) * 5
    assert "empty" not in [kind for _, kind in kinds(Signs("binary"), masks)]


def test_a_picture_without_a_subject_is_none():
    assert kinds(Signs("binary"), [masked(0)] * 30) == []


def test_classes_are_gone_when_all_is_background():
    masks = [np.ones(SIZE_HW, np.uint8)] * 3 + [np.zeros(SIZE_HW, np.uint8)] * 10
    assert (8, "empty") in kinds(Signs("classes"), masks)


def test_masks_flicker_where_the_picture_stands_still():
    masks = [masked(0.2), masked(0.8)] * 6
    assert kinds(Signs("binary"), masks)[0] == (3, "flicker")


def test_a_lamp_is_no_flicker():
    masks = [masked(0.2)] * 10 + [masked(0.8)] * 10
    assert kinds(Signs("binary"), masks) == []


def test_masks_may_change_with_the_picture():
    pictures = [np.full((*SIZE_HW, 3), 20 * index % 200, np.uint8) for index in range(12)]
    assert kinds(Signs("binary"), [masked(0.2), masked(0.8)] * 6, pictures=pictures) == []


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [
        ("nv12", noise(1, (SIZE_HW[0] * 3 // 2, SIZE_HW[1]))),
        ("4x16", noise(1, (*SIZE_HW, 4), np.uint16)),
        ("1x8", noise(1, (*SIZE_HW, 1))),
    ],
)
def test_of_all_kinds_of_frames(kind, pixels):
    masks = [masked(0.2), masked(0.8)] * 3
    assert kinds(Signs("binary"), masks, pictures=[pixels] * 6, kind=kind)[0] == (3, "flicker")


def test_scores_that_are_not_finite_are_told():
    assert kinds(Signs("binary"), [masked(0.3)], not_finite=3) == [(0, "not-finite")]


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 700, 3), (700, 1, 3), (9, 9, 16)])
def test_of_all_sizes(shape):
    kind = "bgr" if shape[2] == 3 else "16x8"
    masks = [np.full(shape[:2], 255 * (index % 2), np.uint8) for index in range(12)]
    found = kinds(Signs("binary"), masks, pictures=[noise(0, shape)] * 12, kind=kind)
    assert [kind for _, kind in found] == ["flicker"] * 3
