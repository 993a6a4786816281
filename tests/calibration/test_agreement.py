import numpy as np
import pytest

from calibration.agreement import iou, mean_absolute_error
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


def test_nothing_is_changed():
    first, second = mask([0, 200]), mask([255, 100])
    for task in ("binary", "classes"):
        iou(first, second, task)
        mean_absolute_error(first, second, task)
    assert (first.tolist(), second.tolist()) == ([[0, 200]], [[255, 100]])


@pytest.mark.parametrize("measure", [iou, mean_absolute_error])
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
