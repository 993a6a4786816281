import cv2
import numpy as np
import pytest

from pipeline.drift.figures import FIGURES, SPREADS, WORDS, figures_of, thumbnail
from pipeline.frames.frame import Frame
from pipeline.frames.nv12 import to_bgr, to_nv12


@pytest.fixture(scope="module")
def picture():
    return cv2.imread("samples/pictures/cat.jpg")


def moved(picture, changed):
    """By how many of a photograph's usual deviations each figure moves."""
    return dict(zip(FIGURES, (figures_of(changed) - figures_of(picture)) / SPREADS, strict=True))


def test_every_figure_has_a_spread_and_words():
    assert len(FIGURES) == len(SPREADS) == len(WORDS)
    assert tuple(WORDS) == FIGURES
    assert all(below != above for below, above in WORDS.values())


def test_what_changes_a_figure(picture):
    dark = moved(picture, (picture * 0.3).astype(np.uint8))
    assert dark["brightness"] < -1
    assert dark["highlights"] < -1
    fog = moved(picture, cv2.addWeighted(picture, 0.3, np.full_like(picture, 215), 0.7, 0))
    assert fog["haze"] > 1
    assert fog["contrast"] < -1
    blurred = moved(picture, cv2.GaussianBlur(picture, (0, 0), picture.shape[1] / 50))
    assert blurred["sharpness"] < -1
    assert abs(blurred["brightness"]) < 0.1
    grey = moved(picture, cv2.merge([cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)] * 3))
    assert grey["color"] < -1
    red = moved(picture, np.clip(picture + np.array([0, 0, 40]), 0, 255).astype(np.uint8))
    assert red["red"] > 1


def test_what_does_not_matter(picture):
    """Not the size, nor which way round it hangs."""
    for changed in (cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), picture[:, ::-1].copy()):
        assert max(map(abs, moved(picture, changed).values())) < 0.3


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 500), (128, 128), (129, 257), (1080, 1920)])
@pytest.mark.parametrize("value", [0, 255])
def test_any_size_and_one_color_have_finite_figures(size_hw, value):
    figures = figures_of(np.full((*size_hw, 3), value, np.uint8))
    assert figures.shape == (len(FIGURES),)
    assert np.isfinite(figures).all()
    assert figures[0] == pytest.approx(value / 255, abs=1e-3)


def test_nv12_is_measured_without_being_converted_whole(picture):
    even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    frame = Frame(to_nv12(even), 0, 0.0, "x", "x", "nv12")
    small = thumbnail(frame)
    assert small.shape == (128, 128, 3)
    assert frame._bgr is None
    assert np.abs((figures_of(small) - figures_of(to_bgr(frame.pixels))) / SPREADS).max() < 0.3
