import dataclasses
import time

import numpy as np
import pytest

from pipeline.errors import ShapeError
from pipeline.frames.frame import Frame, SourceInfo, describe


def picture(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (picture(4, 6, 1), r"\(4, 6, 1\) uint8"),
        (picture(4, 6, 4), r"\(4, 6, 4\) uint8"),
        (picture(1, 4, 6, 3), r"\(1, 4, 6, 3\) uint8"),
        (picture(4, 6, 3, dtype=np.uint16), r"\(4, 6, 3\) uint16"),
        (picture(4, 6, 3, dtype=np.float32), r"\(4, 6, 3\) float32"),
        (picture(0, 6, 3), r"\(0, 6, 3\) uint8"),
        (picture(4, 0, 3), r"\(4, 0, 3\) uint8"),
    ],
)
def test_what_is_no_bgr_picture_is_refused(image, got):
    with pytest.raises(ShapeError, match=rf"^frame 7 of cam: expected \(H, W, 3\) uint8, got {got}$"):
        Frame(image, 7, 0.0, "cam", "cam_000007")


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])  # the second could be NV12
def test_a_grey_picture_is_not_taken_for_nv12(shape):
    with pytest.raises(
        ShapeError, match=r"expected \(H, W, 3\) uint8, got \(., .\) uint8: .*COLOR_GRAY2BGR.*format='nv12'"
    ):
        Frame(picture(*shape), 7, 0.0, "cam", "a")
    assert Frame(picture(6, 4), 7, 0.0, "cam", "a", format="nv12").size_hw == (4, 4)


def test_size_is_height_then_width():
    assert Frame(picture(4, 6, 3), 0, 0.0, "cam", "a").size_hw == (4, 6)


def test_its_text_is_one_short_line():
    frame = Frame(picture(4, 6, 3), 7, 1.25, "cam", "a")
    assert repr(frame) == "Frame(cam#7, pts_s=1.250, pixels=(4, 6, 3) uint8)"
    frame.mask, frame.view = picture(4, 6), picture(4, 12, 3)
    assert repr(frame).endswith("mask=(4, 6) uint8, view=(4, 12, 3) uint8)")


def test_age_counts_from_the_capture():
    frame = Frame(picture(4, 6, 3), 0, 0.0, "cam", "a", captured_ns=time.monotonic_ns() - 2_000_000_000)
    assert 2000 <= frame.age_ms < 60_000
    assert 0 <= Frame(picture(4, 6, 3), 0, 0.0, "cam", "a").age_ms < 60_000


def test_frames_have_no_dict_to_hang_things_on():
    with pytest.raises(AttributeError):
        Frame(picture(4, 6, 3), 0, 0.0, "cam", "a").extra = 1


def test_source_info_is_frozen():
    info = SourceInfo("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "c"
    assert (info.fps, info.frame_count, info.size_hw, info.live, info.paths) == (None, None, None, False, ())


def test_describe():
    assert describe(picture(2, 3, dtype=np.float16)) == "(2, 3) float16"
