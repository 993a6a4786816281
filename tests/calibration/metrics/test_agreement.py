import numpy as np
import pytest

from calibration.metrics.agreement import boundary_iou, iou, mean_absolute_error
from pipeline.errors import ShapeError


def mask(*rows):
    return np.array(rows, np.uint8)


def test_iou_of_a_binary_mask():
    first, second = mask([255, 255, 0, 0]), mask([255, 0, 255, 0])
    assert iou(first, second) == pytest.approx(1 / 3)
    assert iou(second, first) == pytest.approx(1 / 3)
    assert iou(first, first) == 1
    assert iou(first, 255 - first) == 0


def test_iou_of_empty_masks():
    empty, full = np.zeros((4, 5), np.uint8), np.full((4, 5), 255, np.uint8)
    assert iou(empty, empty) == 1
    assert iou(empty, full) == 0


@pytest.mark.parametrize(("threshold", "counts"), [(0.5, 128), (0.25, 64), (1.0, 255), (0.0, 0)])
def test_iou_counts_pixels_from_the_threshold_on(threshold, counts):
    every = np.arange(256, dtype=np.uint8)[None]
    full = np.full_like(every, 255)
    assert iou(every, full, threshold=threshold) == (256 - counts) / 256


def test_iou_of_classes_is_the_mean_over_those_that_either_has():
    first, second = mask([0, 0, 1, 1], [7, 7, 7, 7]), mask([0, 0, 0, 1], [7, 7, 7, 9])
    # 0: 2 of 3, 1: 1 of 2, 7: 3 of 4, 9: 0 of 1
    assert iou(first, second, "classes") == pytest.approx((2 / 3 + 1 / 2 + 3 / 4 + 0) / 4)
    assert iou(second, first, "classes") == iou(first, second, "classes")
    assert iou(first, first, "classes") == 1


def test_a_class_index_is_no_probability():
    first, second = mask([1, 2]), mask([2, 1])
    assert iou(first, second) == 1
    assert iou(first, second, "classes") == 0


def test_mean_absolute_error():
    assert mean_absolute_error(mask([0, 255]), mask([0, 0])) == 0.5
    assert mean_absolute_error(mask([10, 0]), mask([0, 10])) == pytest.approx(10 / 255)
    assert mean_absolute_error(mask([0, 255]), mask([255, 0])) == 1
    assert mean_absolute_error(mask([3]), mask([3])) == 0


def test_mean_absolute_error_of_classes_is_the_share_that_differs():
    assert mean_absolute_error(mask([0, 1, 2, 200]), mask([0, 1, 3, 0]), "classes") == 0.5


def boundary_of(inside, distance):
    """The pixels from which a pixel that is not inside, or not in the picture, is at most so many steps away."""
    rows, columns = np.nonzero(np.pad(~inside, distance + 1, constant_values=True))
    near = [
        np.maximum(np.abs(rows - row - distance - 1), np.abs(columns - column - distance - 1)).min() <= distance
        for row, column in np.ndindex(inside.shape)
    ]
    return inside & np.reshape(near, inside.shape)


def boundary_overlap(first, second, distance):
    """Boundary IoU of two bool masks as its definition has it, slowly; None when neither has a boundary."""
    first, second = boundary_of(first, distance), boundary_of(second, distance)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else None


def blobs(random, shape, labels=2):
    """Labels that lie in areas of a few pixels and run out of the picture."""
    coarse = random.integers(0, labels, (shape[0] // 6 + 1, shape[1] // 7 + 1), np.uint8)
    return np.kron(coarse, np.ones((6, 7), np.uint8))[: shape[0], : shape[1]]


def shifted(labels, by=1):
    """The same labels a little off, and clear of the other's contours in most places."""
    return np.roll(labels, (by, -by), (0, 1))


@pytest.mark.parametrize(
    ("shape", "ratio", "distance"),
    [
        ((40, 30), 0.02, 1),
        ((37, 61), 0.02, 1),
        ((30, 40), 0.05, 2),
        ((45, 45), 0.055, 4),
        ((5, 60), 0.05, 3),
        ((1, 9), 0.02, 1),
        ((20, 14), 0.02, 1),  # never 0
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_equals_its_definition(shape, ratio, distance, seed):
    random = np.random.default_rng(seed)
    first = blobs(random, shape)
    second = blobs(random, shape) if seed else shifted(first)
    expected = boundary_overlap(first > 0, second > 0, distance)
    assert boundary_iou(first * 255, second * 255, dilation_ratio=ratio) == pytest.approx(
        1.0 if expected is None else expected
    )


@pytest.mark.parametrize(("shape", "ratio", "distance"), [((31, 40), 0.02, 1), ((30, 40), 0.05, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_of_classes_is_the_mean_over_those_that_either_has(shape, ratio, distance, seed):
    random = np.random.default_rng(seed)
    names = np.array([0, 3, 200, 255, 9], np.uint8)
    first = names[blobs(random, shape, 4)]
    second = shifted(first)
    second[10:14, 20:26] = 9  # in one of the two only
    each = [boundary_overlap(first == name, second == name, distance) for name in names]
    assert 0 in each
    assert boundary_iou(first, second, "classes", dilation_ratio=ratio) == pytest.approx(np.mean(each))


def test_boundary_iou_by_hand():
    first, second = np.zeros((2, 30, 40), np.uint8)  # a diagonal of 50 pixels: 0.02 of it is 1
    first[5:15, 5:15] = 255  # a ring of 36 pixels
    second[5:15, 5:16] = 255  # a ring of 38, of which 10 + 9 + 9 are of the other too
    assert boundary_iou(first, second) == pytest.approx(28 / (36 + 38 - 28))
    assert boundary_iou(second, first) == boundary_iou(first, second)
    assert boundary_iou(first, first) == 1
    assert boundary_iou(first, 255 - first) == 0
    assert boundary_iou(first, second) < iou(first, second)


def test_a_hole_has_a_boundary_in_the_boundary_iou_only():
    whole, pierced = np.full((2, 100, 100), 255, np.uint8)  # a diagonal of 141 pixels: 3
    pierced[50, 50] = 0
    ends = 100 * 100 - 94 * 94  # where the picture ends, so does the mask
    assert boundary_iou(whole, pierced) == pytest.approx(ends / (ends + 7 * 7 - 1))
    assert iou(whole, pierced) == pytest.approx(0.9999)


def test_boundary_iou_of_empty_masks():
    empty, full = np.zeros((4, 5), np.uint8), np.full((4, 5), 255, np.uint8)
    assert boundary_iou(empty, empty) == 1
    assert boundary_iou(empty, full) == 0
    assert boundary_iou(empty, empty, "classes") == 1
    assert boundary_iou(empty, full, "classes") == 0


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 1), (0.8, 0), (0.9, 1)])
def test_boundary_iou_counts_pixels_from_the_threshold_on(threshold, expected):
    assert boundary_iou(np.full((5, 5), 200, np.uint8), np.full((5, 5), 220, np.uint8), threshold=threshold) == expected


def test_nothing_is_changed():
    first, second = mask([0, 200]), mask([255, 100])
    for task in ("binary", "classes"):
        iou(first, second, task)
        mean_absolute_error(first, second, task)
        boundary_iou(first, second, task)
    assert (first.tolist(), second.tolist()) == ([[0, 200]], [[255, 100]])


@pytest.mark.parametrize("measure", [iou, mean_absolute_error, boundary_iou])
@pytest.mark.parametrize(
    ("first", "second", "got"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), r"\(2, 3\) uint8 and \(3, 2\) uint8"),
        (np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8), r"\(1, 2, 3\) uint8 and"),
        (np.zeros(3, np.uint8), np.zeros(3, np.uint8), r"\(3,\) uint8 and"),
        (np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), r"\(0, 3\) uint8 and"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), r"\(2, 3\) bool and"),
        (np.ones((2, 3), np.uint8), np.ones((2, 3), np.float32), r"\(2, 3\) uint8 and \(2, 3\) float32"),
    ],
)
def test_what_is_no_pair_of_masks_is_refused(measure, first, second, got):
    with pytest.raises(ShapeError, match=rf"masks: expected two \(H, W\) uint8 of one size, got {got}"):
        measure(first, second)
