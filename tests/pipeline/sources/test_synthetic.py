from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import open_source


def test_defaults_are_ten_seconds_of_720p():
    info = open_source("test://").info
    assert (info.size_hw, info.fps, info.frame_count, info.live, info.paths) == ((720, 1280), 30, 300, False, ())
    assert info.time_base == Fraction(1, 30)
    assert info.description == "synthetic, 1280×720, 30 FPS"


def test_every_part_can_be_given():
    source = open_source("test://?size=64x48&fps=29.97&frames=3")
    frames = list(source)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 3
    assert [frame.pts_s for frame in frames] == pytest.approx([0, 1 / 29.97, 2 / 29.97])
    assert [(frame.index, frame.name, frame.source) for frame in frames][2] == (2, "000002", "test")
    assert source.info.fps == Fraction("29.97")


def test_a_fraction_is_a_rate():
    assert open_source("test://?fps=30000/1001").info.fps == Fraction(30000, 1001)


def test_the_same_address_gives_the_same_frames_which_differ_from_each_other():
    address = "test://?size=320x240&frames=4"
    first, second = (np.stack([frame.image for frame in open_source(address)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all((first[number] != first[number + 1]).any() for number in range(3))


def test_step_shows_every_nth_frame():
    all_frames = [frame.image for frame in open_source("test://?size=64x48&frames=10")]
    thirds = [frame.image for frame in open_source("test://?size=64x48&frames=4&step=3")]
    np.testing.assert_array_equal(thirds, all_frames[::3])


def test_the_disc_is_where_it_says():
    source = open_source("test://?size=160x90&frames=150&step=1")
    for frame in list(source)[::25]:
        (x, y), radius = source.disc(frame.index)
        assert frame.image[y, x, 2] == 220
        assert frame.image[y, x + radius - 2, 2] == 250
        assert frame.image[..., 2][np.hypot(*np.ogrid[-y : 90 - y, -x : 160 - x]) > radius + 2].max() < 130


def test_frames_have_memory_of_their_own():
    first, second = open_source("test://?size=8x8&frames=2")
    kept = second.image.copy()
    first.image[:] = 0
    np.testing.assert_array_equal(second.image, kept)


@pytest.mark.parametrize("size", ["1x1", "1x31", "17x31"])
def test_small_and_odd_sizes(size):
    width, height = map(int, size.split("x"))
    (frame,) = open_source(f"test://?size={size}&frames=1")
    assert frame.size_hw == (height, width)


@pytest.mark.parametrize(
    "query",
    [
        *("size=64", "size=64x48x3", "size=ax48", "size=0x48", "size=64x-1", "size=99999x1", "size="),
        *(
            "fps=0",
            "fps=-1",
            "fps=fast",
            "fps=1/0",
            "fps=nan",
            "fps=1001",
            "frames=0",
            "frames=1.5",
            "step=0",
            "frames=",
        ),
    ],
)
def test_wrong_values_show_the_form(query):
    with pytest.raises(SourceError, match=r"expected a form such as test://\?size=1280x720&fps=30&frames=300$"):
        open_source(f"test://?{query}")


def test_an_unknown_part_is_named():
    with pytest.raises(SourceError, match="expected size, fps, frames, step after the question mark, got 'colour'"):
        open_source("test://?colour=red")


@pytest.mark.parametrize(
    "spec", ["test:a.mp4", "test://size=64x48", "test:///?frames=3", "test://cam?frames=3", "test://#a"]
)
def test_text_in_another_place_is_not_ignored(spec):
    with pytest.raises(SourceError, match="got other text before or after the question mark"):
        open_source(spec)
