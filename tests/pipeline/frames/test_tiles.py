"""Tiles and their masks put together, written a second time tile by tile."""

import numpy as np
import pytest

from pipeline.frames.tiles import Mosaic, Tiles

SIZES_HW = [(40, 60), (41, 61), (64, 96), (100, 100), (33, 250), (20, 30), (80, 7), (65, 97), (191, 192)]


def begins(side, size, overlap):
    """Where tiles begin, counted on until one ends at the end."""
    at = [0]
    while at[-1] + size < side:
        at.append(min(at[-1] + size - overlap, side - size))
    return at


def blended(masks, side_hw, size_hw, overlap):
    """Tiles laid over each other one by one, each with a ramp over what it overlaps of the one before: columns within rows of tiles."""

    def over(parts, starts, side, size, axis):
        parts = [np.moveaxis(part, axis, 0) for part in parts]
        whole = np.zeros((max(side, size), *parts[0].shape[1:]))
        end = 0
        for part, start in zip(parts, starts, strict=True):
            for k in range(size):
                share = min(1.0, (k + 1) / (end - start + 1)) if start + k < end else 1.0
                whole[start + k] = (1 - share) * whole[start + k] + share * part[k]
            end = start + size
        return np.moveaxis(whole[:side], 0, axis)

    tops, lefts = (begins(side, size, overlap) for side, size in zip(side_hw, size_hw, strict=True))
    rows = [
        over([masks[row, column] for column in range(len(lefts))], lefts, side_hw[1], size_hw[1], 1)
        for row in range(len(tops))
    ]
    return over(rows, tops, side_hw[0], size_hw[0], 0)


@pytest.mark.parametrize("overlap", [0, 1, 7, 20])
@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_a_picture_is_cut_and_put_together(size_hw, overlap):
    tiles = Tiles((40, 60), overlap)
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    mosaic, seen, found = Mosaic(tiles, size_hw, classes=False), {}, np.zeros(size_hw, bool)
    random = np.random.default_rng(1)
    for place, tile in tiles.cut(image):
        assert tile.shape == (40, 60, 3)
        there = image[place.top : place.top + 40, place.left : place.left + 60]
        np.testing.assert_array_equal(tile[: there.shape[0], : there.shape[1]], there)
        found[place.top : place.top + 40, place.left : place.left + 60] = True
        seen[place.row, place.column] = mask = random.integers(0, 256, (40, 60), dtype=np.uint8)
        mosaic.add(place, mask)
    assert found.all()
    expected = blended(seen, size_hw, (40, 60), overlap)
    np.testing.assert_allclose(mosaic.mask(), expected, atol=0.51)
    assert mosaic.mask().dtype == np.uint8


def test_the_picture_s_edge_goes_on_where_it_is_smaller():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    ((place, tile),) = Tiles((6, 8), 2).cut(image)
    assert place == (0, 0, 0, 0)
    np.testing.assert_array_equal(tile, image[np.minimum(np.arange(6), 2)][:, np.minimum(np.arange(8), 4)])


@pytest.mark.parametrize("side", [40, 41, 59, 60, 61, 79, 100, 199])
def test_weights_add_up_and_rise_in_a_line(side):
    weights = Tiles((40, 40), 20).weights(side, 0)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    assert (weights >= 0).all()
    if side == 60:
        np.testing.assert_allclose(weights[1, 20:40], np.arange(1, 21) / 21, atol=1e-6)


def test_classes_are_those_of_the_tile_that_counts_most():
    tiles, size_hw = Tiles((4, 4), 2), (4, 8)
    mosaic = Mosaic(tiles, size_hw, classes=True)
    for place, _ in tiles.cut(np.zeros((*size_hw, 3), np.uint8)):
        mosaic.add(place, np.full((4, 4), 10 + place.column, np.uint8))
    # Three tiles that begin at 0, 2 and 4: the overlap of two pixels is shared out in its middle.
    assert mosaic.mask().tolist() == [[10, 10, 10, 11, 11, 12, 12, 12]] * 4


@pytest.mark.parametrize("entry", [[[4, 4], 3], [[4, 4], -1], [[0, 4], 0], [4, 1], "tiles", [[4, 4]], [["a", 4], 1]])
def test_what_is_no_tiling_is_refused(entry):
    with pytest.raises((ValueError, TypeError)):
        Tiles.from_contract({"tile": entry})
    assert Tiles.from_contract({}) is None
