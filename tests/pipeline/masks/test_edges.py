import cv2
import numpy as np
import pytest

from calibration.metrics.agreement import boundary_iou, iou
from pipeline.errors import ShapeError
from pipeline.masks.edges import refine_edges


def star(size_hw):
    """(H, W) uint8, 0 or 255: a shape with corners."""
    height, width = size_hw
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.2, 0.42) * min(size_hw)
    points = np.stack([width / 2 + radii * np.cos(angles), height / 2 + radii * np.sin(angles)], axis=1)
    return cv2.fillPoly(np.zeros(size_hw, np.uint8), [points.astype(np.int32)], 255)


def picture_of(shape, seed=0):
    noise = np.random.default_rng(seed).standard_normal((*shape.shape, 3)) * 4
    return np.clip(np.where(shape[..., None] > 0, 190, 70) + noise, 0, 255).astype(np.uint8)


def coarse(shape, factor):
    """The mask as a network of fewer pixels gives it."""
    height, width = shape.shape
    small = cv2.resize(shape, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("size_hw", [(240, 320), (607, 909), (1080, 1920)])
def test_a_coarse_edge_comes_to_lie_on_that_of_the_picture(size_hw):
    shape = star(size_hw)
    mask = coarse(shape, max(4, size_hw[0] // 60))
    refined = refine_edges(picture_of(shape), mask)
    assert iou(refined, shape) > iou(mask, shape)
    before, after = (boundary_iou(values, shape, dilation_ratio=0.005) for values in (mask, refined))
    assert after > before + 0.02
    assert np.abs(refined.astype(int) - shape).mean() < np.abs(mask.astype(int) - shape).mean()


def test_a_flat_picture_leaves_the_mask_nearly_as_it_is():
    mask = coarse(star((240, 320)), 4)
    refined = refine_edges(np.full((240, 320, 3), 90, np.uint8), mask)
    assert iou(refined, mask) > 0.97


def test_what_is_sure_stays():
    shape = star((240, 320))
    mask = coarse(shape, 8)
    mask[mask > 248] = 250
    refined = refine_edges(picture_of(shape), mask)
    sure = (mask <= 6) | (mask >= 249)
    np.testing.assert_array_equal(refined[sure], mask[sure])
    assert (refined[~sure] != mask[~sure]).any()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (9, 1), (5, 3), (31, 1000), (1000, 3)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_every_size_passes_and_constant_masks_stay(size_hw, value):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    mask = np.full(size_hw, value, np.uint8)
    refined = refine_edges(image, mask)
    assert refined.shape == size_hw
    np.testing.assert_allclose(refined.astype(int), value, atol=1)
    assert not np.shares_memory(refined, mask)


def test_what_is_far_away_makes_no_difference():
    shape = star((240, 320))
    image, mask = picture_of(shape), coarse(shape, 4)
    refined = refine_edges(image, mask)
    mask[0, 0] = mask[-1, -1] = 128
    np.testing.assert_array_equal(refine_edges(image, mask)[20:-20, 20:-20], refined[20:-20, 20:-20])


@pytest.mark.parametrize("side_px", [60, 61, 62])
def test_an_edge_in_the_last_rows_and_columns_is_refined_too(side_px):
    # 1082 × 1922 leaves two rows and columns past the last whole block.
    image, mask = np.full((1082, 1922, 3), 60, np.uint8), np.zeros((1082, 1922), np.uint8)
    image[-side_px:, -side_px:] = 200
    mask[-side_px:, -side_px:] = 255
    mask = cv2.GaussianBlur(mask, (0, 0), 4)
    refined = refine_edges(image, mask)
    truth = (image[..., 0] == 200).astype(np.uint8) * 255
    for part in (np.s_[-2:, -120:], np.s_[-120:, -2:]):
        of_refined, of_mask = (
            np.count_nonzero((values[part] >= 128) != (truth[part] >= 128)) for values in (refined, mask)
        )
        assert of_refined <= of_mask
        error, before = (np.abs(values[part].astype(int) - truth[part]).mean() for values in (refined, mask))
        assert error < 0.8 * before


def test_inputs_are_not_changed_and_need_no_order_in_memory():
    shape = star((120, 160))
    image, mask = picture_of(shape), coarse(shape, 4)
    image_before, mask_before = image.copy(), mask.copy()
    image.setflags(write=False)
    mask.setflags(write=False)
    refined = refine_edges(image, mask)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(mask, mask_before)
    np.testing.assert_array_equal(refined, refine_edges(np.asfortranarray(image), np.asfortranarray(mask)))
    refined[:] = 0


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32)),
        (np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)),
        (np.zeros((0, 6, 3), np.uint8), np.zeros((0, 6), np.uint8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, mask):
    with pytest.raises(ShapeError, match=r"mask edges: expected \(H, W, 3\) and \(H, W\) uint8 of one size"):
        refine_edges(image, mask)
