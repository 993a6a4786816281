"""Outlines, run lengths and label lines, read by programs that nobody here wrote."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.results.regions import regions
from pipeline.shapes.outlines import outlines_of
from pipeline.shapes.run_lengths import compressed, counts_of

# pycocotools 2.0 and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def made_masks():
    """Masks as (H, W) uint8 of 0 and 1: empty and full ones, lone pixels, holes in holes, borders, noise."""
    rng = np.random.default_rng(7)
    empty = np.zeros((30, 40), np.uint8)
    yield "empty", empty
    yield "full", empty + 1
    yield "one pixel of one", np.ones((1, 1), np.uint8)
    for y, x in ((0, 0), (29, 39), (0, 39), (14, 7)):
        mask = empty.copy()
        mask[y, x] = 1
        yield f"pixel at {y}, {x}", mask
    mask = empty.copy()
    mask[:, 5:9] = 1  # runs that go on in the next column
    yield "columns", mask
    mask = empty.copy()
    mask[3, 2:30] = mask[8:20, 33] = 1
    mask[[10, 11, 12], [4, 5, 6]] = 1
    yield "lines", mask
    mask = empty + 1
    mask[2:28, 2:38] = 0
    mask[4:26, 4:36] = 1
    mask[6:10, 6:10] = mask[7:20, 12:20] = mask[21:24, 6:30] = mask[12, 30] = 0
    mask[9:12, 14:16] = 1
    yield "holes in holes", mask
    mask = empty + 1
    mask[::2, ::2] = 0
    yield "grid", mask
    for number in range(12):
        noise = rng.random((int(rng.integers(1, 50)), int(rng.integers(1, 50))))
        noise = cv2.GaussianBlur(noise, (5, 5), 1.2) if number % 2 else noise
        yield f"noise {number}", (noise > np.median(noise)).astype(np.uint8)


MADE = [pytest.param(mask, id=name) for name, mask in made_masks()]


def by_opencv(outlines, shape):
    """What ``cv2.fillPoly`` makes of outlines, their points taken as pixels, each line by itself."""
    canvas = np.zeros(shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [outline.astype(np.int32)], 1)
    return canvas


def by_opencv_itself(mask):
    """The same of OpenCV's own contours, with holes."""
    canvas = np.zeros_like(mask)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if contours:
        cv2.drawContours(canvas, contours, -1, 1, cv2.FILLED, hierarchy=hierarchy)
    return canvas


def check(mask, coco):
    reference = coco.encode(np.asfortranarray(mask))["counts"].decode()
    counts = counts_of(mask, 0, 0, mask.shape)
    assert compressed(counts) == reference
    assert coco.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)["counts"].decode() == reference
    outlines = outlines_of(mask)
    assert np.array_equal(by_opencv(outlines, mask.shape), by_opencv_itself(mask))
    assert np.array_equal(by_opencv(outlines, mask.shape), mask)
    if outlines:
        polygons = [outline.ravel().tolist() for outline in outlines]
        assert np.array_equal(coco.decode(coco.merge(coco.frPyObjects(polygons, *mask.shape))), mask)


@pytest.fixture(scope="module")
def coco():
    return pytest.importorskip("pycocotools.mask", reason="pycocotools is not here: pip install pycocotools")


@pytest.mark.needs("pycocotools")
@pytest.mark.parametrize("mask", MADE)
def test_made_masks_are_equal_to_pycocotools_and_opencv(mask, coco):
    check(mask, coco)


@pytest.mark.needs("pycocotools")
def test_200_masks_are_equal_to_pycocotools_and_opencv(coco, ecssd):
    paths = sorted((ecssd / "masks").iterdir())[:200]
    assert len(paths) == 200
    for path in paths:
        check((cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127).astype(np.uint8), coco)


@pytest.mark.needs("pycocotools")
@settings(max_examples=60, deadline=None)
@given(mask=arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)))
def test_any_mask_is_equal_to_pycocotools_and_opencv(mask):
    import pycocotools.mask

    check(mask, pycocotools.mask)


def test_run_lengths_of_a_part_are_those_of_the_frame():
    mask = np.zeros((9, 7), np.uint8)
    mask[2:9, 1:3] = 1
    mask[0, 3] = 1  # goes on where the column before ends
    assert counts_of(mask, 0, 0, mask.shape) == [11, 7, 2, 8, 35]
    assert counts_of(mask[:, 1:4], 1, 0, mask.shape) == [11, 7, 2, 8, 35]


def test_outlines_have_four_points_or_more():
    for _, mask in made_masks():
        assert all(len(outline) >= 4 for outline in outlines_of(mask))


@pytest.mark.needs("pycocotools")
@pytest.mark.parametrize("mask", MADE)
def test_regions_are_whole_in_each_form(mask, coco):
    found = regions(mask * 255, min_share=0, max_regions=10_000)
    together = np.zeros_like(mask)
    for region in found:
        own = region.mask()
        assert own.sum() == region.pixels
        assert not (together & own).any()
        together |= own
        assert np.array_equal(coco.decode(region.rle()), own)
        assert np.array_equal(coco.decode(coco.frPyObjects(region.rle_counts(), *mask.shape)), own)
        assert json.loads(json.dumps(region.rle())) == region.rle()
        number, *shares = region.yolo().split()
        assert number == "0"
        corners = np.array(shares, float).reshape(-1, 2) * mask.shape[::-1]
        assert np.array_equal(by_opencv([corners], mask.shape), own)  # as Ultralytics does: cut to integers, filled
        left, top, width, height = region.xywh
        assert own[top : top + height, left : left + width].sum() == region.pixels
    assert np.array_equal(together, mask)


def test_a_polygon_as_people_check_it():
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 255
    (region,) = regions(mask, min_share=0)
    assert (region.xywh, region.pixels, region.area) == ((2, 1, 3, 2), 6, 0.25)
    assert region.polygon().tolist() == [[2.25, 1.25], [2.25, 2.75], [4.75, 2.75], [4.75, 1.25]]
    assert region.rle_counts() == {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
