import numpy as np
import pytest

from calibration.metrics.flicker import FlickerMeter
from pipeline.errors import ShapeError

SIZE_HW = (40, 50)


def picture(left, right):
    """Two halves of two greys."""
    image = np.full((*SIZE_HW, 3), left, np.uint8)
    image[:, 25:] = right
    return image


def mask(left, right):
    values = np.full(SIZE_HW, left, np.uint8)
    values[:, 25:] = right
    return values


def test_the_change_of_the_mask_counts_where_the_picture_is_still():
    meter = FlickerMeter()
    assert meter.flicker == 0
    assert meter.add(picture(50, 100), mask(0, 0)) is None
    # The right half changes; the blur carries it 2 pixels to the left.
    assert meter.add(picture(50, 200), mask(51, 255)) == pytest.approx(51 / 255)
    assert meter.add(picture(50, 200), mask(51, 0)) == pytest.approx(0.5)
    assert meter.add(picture(50, 200), mask(51, 0)) == 0
    assert meter.pairs == 3
    assert meter.flicker == pytest.approx((0.2 + 0.5) / 3)
    near = mask(51, 0)
    near[:, 23:25] = 255
    assert meter.add(picture(50, 100), near) == 0


@pytest.mark.parametrize(("change", "flicker"), [(2, 1.0), (3, None)])
def test_still_is_what_changes_by_less_than_3_levels(change, flicker):
    meter = FlickerMeter()
    meter.add(picture(50, 50), mask(0, 0))
    assert meter.add(picture(50 + change, 50 + change), mask(255, 255)) == flicker


def test_a_cut_and_a_change_of_size_are_not_counted():
    meter = FlickerMeter()
    meter.add(picture(50, 100), mask(0, 0))
    assert meter.add(picture(150, 10), mask(255, 255)) is None
    assert meter.add(picture(150, 10)[:20], mask(0, 0)[:20]) is None
    assert meter.add(picture(150, 10)[:20], mask(0, 0)[:20]) == 0
    assert (meter.flicker, meter.pairs) == (0, 1)


def test_noise_of_a_camera_does_not_make_a_still_picture_move():
    random, meter = np.random.default_rng(0), FlickerMeter()
    for index in range(4):
        noise = random.standard_normal((*SIZE_HW, 3)) * 6
        flicker = meter.add(np.clip(picture(80, 120) + noise, 0, 255).astype(np.uint8), mask(51 * (index % 2), 0))
    assert flicker == pytest.approx(0.1, rel=0.05)


def test_classes_count_by_whether_they_differ():
    meter = FlickerMeter("classes")
    meter.add(picture(50, 100), mask(1, 2))
    assert meter.add(picture(50, 100), mask(1, 200)) == pytest.approx(0.5)


def test_arrays_belong_to_the_caller():
    meter, image, values = FlickerMeter(), picture(50, 100), mask(0, 0)
    meter.add(image, values)
    image[:], values[:] = 0, 255
    assert meter.add(picture(50, 100), mask(0, 0)) == 0


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (picture(0, 0), mask(0, 0)[:9]),
        (picture(0, 0), mask(0, 0) > 0),
        (picture(0, 0)[..., 0], mask(0, 0)),
        (picture(0, 0)[:0], mask(0, 0)[:0]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, values):
    with pytest.raises(ShapeError, match=r"frame: expected \(H, W, 3\) and \(H, W\) uint8 of one size"):
        FlickerMeter().add(image, values)
