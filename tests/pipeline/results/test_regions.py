"""Parts of a mask are the same, whichever way they are found."""

import cv2
import numpy as np
import pytest

from pipeline.results import regions as module
from pipeline.results.regions import Reading, classes_of


def parts(found):
    return sorted((part.xywh, part.pixels, part.its.tobytes()) for part in found)


@pytest.mark.parametrize("seed", range(200))
def test_walking_around_parts_finds_what_labels_find(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    mask = ((rng.random((height, width)) < rng.random()) * 255).astype(np.uint8)
    if seed % 3 == 0 and min(height, width) > 8:  # larger parts, with holes and parts in them
        mask = cv2.medianBlur(mask, 3)
    least = rng.integers(0, 9)
    assert parts(module._outlined(mask, least)) == parts(module._labeled(mask, least))


@pytest.mark.parametrize("share", [0.0005, 0.3])
def test_parts_are_those_that_labels_have(share):
    """The way is chosen by how much there is to walk around; what comes out is not."""
    rng = np.random.default_rng(3)
    mask = ((rng.random((300, 400)) < share) * 255).astype(np.uint8)
    if share < 0.1:
        mask = cv2.dilate(mask, np.ones((9, 9), np.uint8))
    probability = np.where(mask > 0, rng.integers(128, 256, mask.shape), rng.integers(0, 128, mask.shape)).astype(
        np.uint8
    )
    assert module._is_speckled(mask) == (share > 0.1)
    found = classes_of(probability, Reading(min_share=0, max_regions=10**6))[0]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    assert len(found.regions) == count - 1
    for region in found.regions:
        left, top, width, height = region.xywh
        row, column = np.argwhere(region.inside)[0]
        label = labels[top + row, left + column]
        assert stats[label].tolist() == [left, top, width, height, region.pixels]
        np.testing.assert_array_equal(region.mask() == 1, labels == label)
        assert region.mean_probability == pytest.approx(probability[labels == label].mean() / 255)
    assert found.mean_probability == pytest.approx(probability[mask > 0].mean() / 255)
    sizes = [region.pixels for region in found.regions]
    assert sizes == sorted(sizes, reverse=True)
