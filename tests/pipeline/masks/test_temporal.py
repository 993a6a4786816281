import cv2
import numpy as np
import pytest

from calibration.metrics.agreement import iou
from calibration.metrics.flicker import FlickerMeter
from pipeline.errors import OptionError, ShapeError
from pipeline.masks.temporal import Smoothing

SIZE_HW = (120, 160)


def textured(seed=0, size_hw=SIZE_HW, low=40, high=216):
    """A picture with contrast at every scale from 8 pixels up."""
    random = np.random.default_rng(seed)
    coarse = random.integers(low, high, (max(1, size_hw[0] // 8), max(1, size_hw[1] // 8), 3), dtype=np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def flat(value, size_hw=SIZE_HW):
    return np.full(size_hw, value, np.uint8)


def beside_a_subject(value):
    """The value everywhere but in a corner, where there is a subject: the scene is not empty."""
    mask = flat(value)
    mask[:30, :30] = 255
    return mask


def disc(x, y=60, radius=25, size_hw=SIZE_HW):
    """(H, W) bool."""
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def noisy_mask(inside, random, deviation=30):
    """What an unsteady network says of a subject: sure of the inside, less so of a blurred edge, each frame another noise."""
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 2) * 255
    coarse = random.standard_normal((inside.shape[0] // 8, inside.shape[1] // 8)).astype(np.float32) * deviation
    return np.clip(soft + cv2.resize(coarse, inside.shape[::-1]), 0, 255).astype(np.uint8)


def scene(x):
    """A bright disc over a dark textured background."""
    image = textured(3, low=30, high=90)
    image[disc(x)] = (180, 200, 220)
    return image


@pytest.mark.parametrize("speed_px", [0, 3])
def test_flicker_is_halved_and_a_moving_subject_is_not_smeared(speed_px):
    random = np.random.default_rng(1)
    smoothing, raw_meter, meter = Smoothing(), FlickerMeter(), FlickerMeter()
    raw_ious, ious = [], []
    for index in range(30):
        x = 35 + speed_px * index
        image, truth = scene(x), disc(x).astype(np.uint8) * 255
        mask = noisy_mask(disc(x), random)
        steady = smoothing(image, mask, index / 25)
        raw_meter.add(image, mask)
        meter.add(image, steady)
        raw_ious.append(iou(mask, truth))
        ious.append(iou(steady, truth))
    assert raw_meter.flicker > 0.01
    assert meter.flicker <= raw_meter.flicker / 2
    assert np.mean(ious) >= np.mean(raw_ious) - 0.001  # both take the moving edge as the network sees it
    assert smoothing.cuts == 0


def test_nothing_trails_behind_a_moving_subject():
    smoothing = Smoothing(time_constant_s=5)
    for index in range(20):
        x = 30 + 5 * index
        mask = cv2.GaussianBlur(disc(x).astype(np.uint8) * 255, (0, 0), 2)
        steady = smoothing(scene(x), mask, index / 25)
    surely_outside = (mask == 0) & ~disc(x, radius=35)
    assert steady[surely_outside].max() <= 6


def test_slow_motion_adds_up_until_it_is_seen():
    # 2 levels a frame are still; a long time constant would hold the mask for ever.
    smoothing = Smoothing(time_constant_s=60)
    for index in range(10):
        image = np.full((*SIZE_HW, 3), 100 + 2 * index, np.uint8)
        steady = smoothing(image, flat(0 if index == 0 else 200), index / 25)
        if index == 5:
            assert steady.max() < 10
    assert steady.min() == 200
    for index in range(10, 16):  # the picture stands still again
        steady = smoothing(image, flat(150), index / 25)
    assert steady.min() > 195


def test_a_small_step_of_the_picture_is_motion():
    smoothing = Smoothing(time_constant_s=60)
    smoothing(np.full((*SIZE_HW, 3), 100, np.uint8), flat(200), 0.0)
    smoothing(np.full((*SIZE_HW, 3), 102, np.uint8), flat(150), 0.04)
    np.testing.assert_array_equal(smoothing(np.full((*SIZE_HW, 3), 105, np.uint8), flat(150), 0.08), flat(150))


def test_a_hard_cut_leaves_no_ghost_from_its_first_frame_on():
    smoothing = Smoothing()
    first, second = flat(0), flat(0)
    first[20:60, 20:60], second[70:110, 90:150] = 255, 255
    dark, light = textured(1, low=0, high=120), textured(2, low=120, high=255)
    for index in range(10):
        smoothing(dark, first, index / 25)
    for index in range(10, 14):
        np.testing.assert_array_equal(smoothing(light, second, index / 25), second)
    assert smoothing.cuts == 1
    # A pixel whose grey is the same on both sides of the cut would keep its mask, were it not seen as one.
    light[20:60, 20:60] = dark[20:60, 20:60]
    np.testing.assert_array_equal(smoothing(dark, first, 14 / 25), first)
    assert smoothing.cuts == 2
    np.testing.assert_array_equal(smoothing(light, second, 15 / 25), second)
    assert smoothing.cuts == 3


def test_normal_motion_is_no_cut():
    wide = cv2.resize(textured(5, (30, 200)), (800, 120), interpolation=cv2.INTER_CUBIC)
    smoothing = Smoothing()
    for index in range(60):
        left = 10 * index
        smoothing(wide[:, left : left + 160], flat(0), index / 25)
    assert smoothing.cuts == 0


def test_a_scene_that_empties_keeps_no_ghost():
    # The picture does not change at all, so that only the empty scene can tell.
    image, subject = textured(), disc(80).astype(np.uint8) * 200
    smoothing = Smoothing(time_constant_s=10)
    for index in range(10):
        smoothing(image, subject, index / 25)
    assert (smoothing(image, flat(20), 10 / 25) >= 128).any()  # one frame without a subject is held
    np.testing.assert_array_equal(smoothing(image, subject, 11 / 25) >= 128, disc(80))
    for index in range(12, 17):
        smoothing(image, flat(20), index / 25)
    np.testing.assert_array_equal(smoothing(image, flat(20), 17 / 25), flat(20))  # 0.2 s after 12 / 25


def empty_scene():
    smoothing = Smoothing()
    for index in range(10):
        smoothing(textured(), flat(0), index / 25)
    return smoothing


def with_speck(x, y, side=8):
    """A picture and a mask with something small in it; the picture changes there."""
    image, mask = textured(), flat(0)
    image[y : y + side, x : x + side] = 255
    mask[y : y + side, x : x + side] = 255
    return image, mask


def test_specks_that_flash_in_an_empty_scene_are_not_shown():
    smoothing = empty_scene()
    for index, (x, y) in enumerate([(10, 10), (100, 80), (30, 60), (140, 20)]):
        steady = smoothing(*with_speck(x, y), (10 + index) / 25)
        assert steady.max() < 128 - 20


def test_a_small_subject_is_shown_from_its_second_frame_on_and_a_large_one_at_once():
    smoothing = empty_scene()
    image, mask = with_speck(60, 60)
    assert smoothing(image, mask, 10 / 25).max() < 128
    np.testing.assert_array_equal(smoothing(image, mask, 11 / 25), mask)
    image, mask = with_speck(60, 60, side=30)
    np.testing.assert_array_equal(empty_scene()(image, mask, 10 / 25), mask)


def test_specks_that_jump_about_do_not_keep_a_ghost():
    image, subject = textured(), disc(40).astype(np.uint8) * 255
    smoothing = Smoothing(time_constant_s=10)
    for index in range(5):
        smoothing(image, subject, index / 25)
    for index in range(5, 12):
        mask = flat(0)
        mask[110:114, 20 * index - 80 : 20 * index - 76] = 255
        steady = smoothing(image, mask, index / 25)
    assert steady.max() < 128


@pytest.mark.parametrize("fps", [5, 25, 240])
@pytest.mark.parametrize(("before", "after"), [(60, 100), (140, 230), (200, 150), (100, 30)])
def test_what_is_shown_depends_on_time_and_not_on_the_frame_rate(fps, before, after):
    image = textured()
    smoothing = Smoothing(time_constant_s=0.5)
    smoothing(image, beside_a_subject(before), 0.0)
    for index in range(1, fps + 1):
        steady = smoothing(image, beside_a_subject(after), index / fps)
        if index * 5 == fps * 2:
            assert steady[-1, -1] == pytest.approx(after + (before - after) * np.exp(-0.4 / 0.5), abs=2)
    assert steady[-1, -1] == pytest.approx(after + (before - after) * np.exp(-1 / 0.5), abs=2)
    for index in range(1, 20 * fps):
        steady = smoothing(image, beside_a_subject(after), 1 + index / fps)
        if steady[-1, -1] == after:
            break
    np.testing.assert_array_equal(steady, beside_a_subject(after))  # nothing is left by rounding


def test_a_borderline_pixel_of_a_still_picture_keeps_its_side():
    image = textured()
    smoothing, loose = Smoothing(time_constant_s=0.04), Smoothing(time_constant_s=0.04, band=0)
    sides, loose_sides = set(), set()
    for index in range(40):
        mask = beside_a_subject(140 if index % 2 == 0 else 116)
        sides.add(bool((smoothing(image, mask, index / 25) >= 128).all()))
        loose_sides.add(bool((loose(image, mask, index / 25) >= 128).all()))
    assert sides == {True}
    assert loose_sides == {True, False}
    for start, value, shown in ((40, 90, 90), (60, 140, 127), (80, 160, 160), (100, 105, 128), (120, 100, 100)):
        for index in range(start, start + 20):
            steady = smoothing(image, beside_a_subject(value), index / 25)
        np.testing.assert_array_equal(steady, beside_a_subject(shown))


def test_what_is_held_within_the_band_is_no_empty_scene():
    smoothing = Smoothing()
    for index in range(60):
        steady = smoothing(textured(), flat(180 if index < 5 else 110), index / 25)
    np.testing.assert_array_equal(steady, flat(128))


def test_the_threshold_may_change_between_frames():
    image = textured()
    smoothing = Smoothing()
    for index in range(5):
        smoothing(image, flat(100), index / 25)
    smoothing.threshold = 0.3
    for index in range(5, 9):
        np.testing.assert_array_equal(smoothing(image, flat(100), index / 25), flat(100))
    for index in range(9, 60):
        steady = smoothing(image, flat(70), index / 25)
    np.testing.assert_array_equal(steady, flat(77))  # subject from 77 on; 70 is within the band


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_ends_of_the_threshold_pass(threshold):
    smoothing = Smoothing(threshold=threshold)
    for index, value in enumerate([0, 255, 255, 0, 128, 128]):
        smoothing(textured(), flat(value), index / 25)


@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (5, 1), (4, 4), (33, 47), (259, 17)])
def test_constant_masks_are_a_fixed_point_at_every_size(task, size_hw):
    random = np.random.default_rng(0)
    mask = random.integers(0, 256, size_hw, dtype=np.uint8)
    mask[0, 0] = 255
    image = textured(1, size_hw)
    smoothing = Smoothing(task)
    for index in range(8):
        steady = smoothing(image, mask, index / 25)
        np.testing.assert_array_equal(steady, mask)
        assert steady.dtype == np.uint8
        assert steady is not mask


def test_rounding_moves_nothing_that_is_at_rest():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    smoothing = Smoothing(time_constant_s=0.7)
    for index in range(400):
        np.testing.assert_array_equal(smoothing(textured(1, (16, 16)), mask, index / 57), mask)


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_inputs_are_not_changed_and_results_belong_to_the_caller(task):
    random = np.random.default_rng(0)
    smoothing, other = Smoothing(task), Smoothing(task)
    for index in range(6):
        image = textured()
        mask = random.integers(0, 256, SIZE_HW, dtype=np.uint8)
        image_before, mask_before = image.copy(), mask.copy()
        image.setflags(write=False)
        mask.setflags(write=False)
        steady = smoothing(image, mask, index / 25)
        np.testing.assert_array_equal(image, image_before)
        np.testing.assert_array_equal(mask, mask_before)
        np.testing.assert_array_equal(steady, other(image[:, ::-1][:, ::-1], mask[::-1][::-1], index / 25))
        steady[:] = 77  # what the caller does with it changes nothing


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_another_size_begins_anew(task):
    smoothing = Smoothing(task)
    for index in range(5):
        smoothing(textured(), flat(200), index / 25)
    small = flat(60, (50, 70))
    np.testing.assert_array_equal(smoothing(textured(0, (50, 70)), small, 5 / 25), small)
    np.testing.assert_array_equal(smoothing(textured(), flat(3), 6 / 25), flat(3))
    grey = np.full((*SIZE_HW, 3), 90, np.uint8)  # no cut can be seen in it
    smoothing = Smoothing(task)
    smoothing(grey, flat(200), 0.0)
    np.testing.assert_array_equal(smoothing(grey[:50, :70], small, 1 / 25), small)
    assert smoothing.cuts == 0


@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("pts_s", [0.1, 1.6, float("nan")])
def test_time_that_goes_back_or_leaps_begins_anew(task, pts_s):
    smoothing = Smoothing(task)
    for index in range(5):
        smoothing(textured(), flat(200), 0.4 + index / 25)
    np.testing.assert_array_equal(smoothing(textured(), flat(150), pts_s), flat(150))


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_time_that_stands_still_does_not_hold_a_mask_for_ever(task):
    smoothing = Smoothing(task)
    smoothing(textured(), flat(200), 1.0)
    assert smoothing(textured(), flat(150), 1.0).min() > 150
    for _ in range(200):
        steady = smoothing(textured(), flat(150), 1.0)
    np.testing.assert_array_equal(steady, flat(150))


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_reset_forgets(task):
    smoothing = Smoothing(task)
    smoothing(textured(), flat(200), 0.0)
    smoothing.reset()
    np.testing.assert_array_equal(smoothing(textured(), flat(150), 0.04), flat(150))


@pytest.mark.parametrize(("fps", "frames"), [(25, 5), (85, 17)])
def test_a_class_changes_once_it_lasted(fps, frames):
    image = textured()
    smoothing = Smoothing("classes", time_constant_s=0.2)
    shown = [int(smoothing(image, flat(1 if index < 10 else 7), index / fps)[0, 0]) for index in range(40)]
    assert shown == [1] * (9 + frames) + [7] * (31 - frames)


def test_classes_are_never_averaged_and_flashes_are_not_shown():
    image, random = textured(), np.random.default_rng(2)
    smoothing, meter, raw_meter = Smoothing("classes"), FlickerMeter("classes"), FlickerMeter("classes")
    truth = flat(2)
    truth[:, 80:] = 20
    for index in range(60):
        mask = truth.copy()
        mask[random.random(SIZE_HW) < 0.2] = 9
        steady = smoothing(image, mask, index / 25)
        raw_meter.add(image, mask)
        meter.add(image, steady)
        assert set(np.unique(steady)) <= {2, 9, 20}
    assert meter.flicker < raw_meter.flicker / 10
    assert np.mean(steady == truth) > 0.99


def test_two_rivals_do_not_add_up():
    smoothing = Smoothing("classes", time_constant_s=0.2)
    smoothing(textured(), flat(0), 0.0)
    for index in range(1, 40):
        steady = smoothing(textured(), flat(1 + index % 2), index / 25)
    assert steady.max() == 0


def test_a_class_is_taken_at_once_where_the_picture_changed():
    smoothing = Smoothing("classes", time_constant_s=10)
    for index in range(5):
        smoothing(scene(60), disc(60).astype(np.uint8) * 3, index / 25)
    steady = smoothing(scene(72), disc(72).astype(np.uint8) * 3, 5 / 25)
    assert smoothing.cuts == 0
    for now, before, value in ((72, 60, 3), (60, 72, 0)):
        region = disc(now, radius=23) & ~disc(before, radius=28)
        assert region.sum() > 50
        assert (steady[region] == value).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_constant_s": 0}, "smoothing: expected a time constant above 0 s, at most 60 s, got 0"),
        ({"time_constant_s": float("nan")}, "above 0 s"),
        ({"time_constant_s": 61}, "at most 60 s, got 61"),
        ({"band": -0.1}, "band: expected 0 to 1, got -0.1"),
        ({"threshold": float("nan")}, "threshold: expected 0 to 1, got nan"),
        ({"task": "depth"}, "task: expected binary or classes, got 'depth'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Smoothing(**options)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)),
        (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32)),
        (np.zeros((0, 6, 3), np.uint8), np.zeros((0, 6), np.uint8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, mask):
    with pytest.raises(ShapeError, match=r"smoothing: expected \(H, W, 3\) and \(H, W\) uint8 of one size"):
        Smoothing()(image, mask, 0.0)


@pytest.mark.parametrize(("before", "now"), [(0, 255), (255, 0), (0, 235), (255, 20)])
def test_what_kept_its_grey_by_chance_amid_motion_is_no_hole(before, now):
    image = textured()
    moved = image + np.uint8(8)
    middle = np.s_[20:30, 30:40]
    moved[middle] = image[middle]
    smoothing = Smoothing(time_constant_s=10)
    for index in range(10):
        smoothing(image, flat(before), index / 25)
    steady = smoothing(moved, flat(now), 10 / 25)
    assert smoothing.cuts == 0
    assert (steady == now).all()


def test_what_is_not_clear_is_held_also_amid_motion():
    image = textured()
    moved = image + np.uint8(8)
    moved[20:30, 30:40] = image[20:30, 30:40]
    smoothing = Smoothing(time_constant_s=10)
    for index in range(10):
        smoothing(image, flat(200), index / 25)
    steady = smoothing(moved, flat(110), 10 / 25)
    assert steady[25, 35] >= 128
    assert steady[5, 5] == 110
