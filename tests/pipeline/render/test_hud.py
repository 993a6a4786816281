import numpy as np
import pytest

from pipeline.errors import ShapeError
from pipeline.render.hud import (
    LEGEND_LENGTH,
    LegendEntry,
    area_percent,
    ascii_text,
    draw_help,
    draw_hud,
    draw_legend,
    legend_entries,
)
from pipeline.render.look import Look, subject_level
from pipeline.render.overlay import Renderer
from pipeline.render.palette import DEFAULT_PALETTE, load_palette

LINES = ["live  camera 0  1920x1080", "30.0 fps in  29.8 out", "age 61 ms"]
ENTRIES = [LegendEntry("person", (0, 0, 255), 20.04), LegendEntry("+3 more", None, 0.02)]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def changed_box(view: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what was drawn, the ends excluded."""
    rows, columns = np.nonzero((view != 200).any(2))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


# Areas


@pytest.mark.parametrize("threshold", [0, 0.2, 0.5, 0.6, 1])
def test_area_of_a_binary_mask_counts_from_the_threshold(threshold):
    mask = np.random.default_rng(1).integers(0, 256, (37, 53), dtype=np.uint8)
    percent = area_percent(mask, "binary", threshold, 1)
    assert percent.shape == (1,)
    assert percent.dtype == np.float64
    np.testing.assert_allclose(percent[0], 100 * np.mean(mask >= subject_level(threshold)))


def test_area_of_classes():
    mask = np.array([[0, 0, 1, 3], [0, 1, 1, 3]], np.uint8)
    percent = area_percent(mask, "classes", 0.5, 6)
    assert percent.tolist() == [37.5, 37.5, 0, 25, 0, 0]


def test_area_reports_classes_past_the_last():
    percent = area_percent(np.array([[0, 255]], np.uint8), "classes", 0.5, 2)
    assert percent.shape == (256,)
    assert percent[255] == 50


def test_area_takes_any_memory_layout_and_changes_nothing():
    mask = np.random.default_rng(1).integers(0, 4, (30, 40), dtype=np.uint8)
    before = mask.copy()
    np.testing.assert_array_equal(
        area_percent(mask[::2, ::-1], "classes", 0.5, 4), area_percent(mask[::2, ::-1].copy(), "classes", 0.5, 4)
    )
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), bool), np.zeros((4, 4, 1), np.uint8), np.zeros((0, 4), np.uint8)])
def test_area_refuses_other_arrays(mask):
    with pytest.raises(ShapeError, match=r"mask: expected \(H, W\) uint8, got"):
        area_percent(mask, "binary", 0.5, 1)


# Legends


def test_a_legend_has_the_classes_present_largest_first():
    percent = [50, 10, 0, 30, 10]
    entries = legend_entries(percent, ["background", "person", "cat", "dog", "car"], DEFAULT_PALETTE, "classes")
    assert entries == [
        LegendEntry("dog", DEFAULT_PALETTE.color(3), 30),
        LegendEntry("person", DEFAULT_PALETTE.color(1), 10),
        LegendEntry("car", DEFAULT_PALETTE.color(4), 10),
    ]


def test_a_legend_names_class_0_where_it_is_no_background():
    palette = load_palette("cityscapes")
    entries = legend_entries([70, 30], ["road", "sidewalk"], palette, "classes")
    assert entries == [LegendEntry("road", palette.color(0), 70), LegendEntry("sidewalk", palette.color(1), 30)]


def test_a_binary_legend_has_the_colour_of_the_overlay():
    mask = np.zeros((10, 10), np.uint8)
    mask[:2] = 255
    (entry,) = legend_entries(area_percent(mask, "binary", 0.5, 1), ["person"], DEFAULT_PALETTE, "binary")
    view = Renderer(Look(alpha=1), "binary")(np.zeros((10, 10, 3), np.uint8), mask)
    assert entry == LegendEntry("person", tuple(view[0, 0].tolist()), 20)


def test_a_legend_without_subject_is_empty():
    assert legend_entries([0.0], ["person"], DEFAULT_PALETTE, "binary") == []
    assert legend_entries([100.0, 0.0], ["background", "person"], DEFAULT_PALETTE, "classes") == []


@pytest.mark.parametrize(("present", "last"), [(12, "class 12"), (13, "+1 more"), (20, "+8 more")])
def test_a_long_legend_counts_the_rest(present, last):
    percent = [0.0, *range(present, 0, -1)]
    entries = legend_entries(percent, [], DEFAULT_PALETTE, "classes")
    assert len(entries) == min(present, LEGEND_LENGTH + 1)
    assert [entry.name for entry in entries[:LEGEND_LENGTH]] == [f"class {index}" for index in range(1, 13)]
    assert entries[-1].name == last
    np.testing.assert_allclose(sum(entry.percent for entry in entries), sum(percent))
    if present > LEGEND_LENGTH:
        assert entries[-1].color is None


def test_names_that_cannot_be_drawn_become_numbers():
    entries = legend_entries([0, 4, 3, 2], ["", "Straße", "人"], DEFAULT_PALETTE, "classes")
    assert [entry.name for entry in entries] == ["Strasse", "class 2", "class 3"]


# Letters


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain ~!?", "plain ~!?"),
        ("voiture à côté", "voiture a cote"),
        ("Łódź Größe Ærø", "Lodz Grosse AEro"),
        ("5 µs × 20 °C ½ …", "5 us x 20 degC 1/2 ..."),
        ("U²-Net · fp16 – Orin", "U2-Net - fp16 - Orin"),
        ("人 and 人人", "_ and _"),
        ("two\nlines\ttab", "two lines tab"),
        ("bell\x07", "bell_"),
        ("", ""),
    ],
)
def test_ascii_text(text, plain):
    assert ascii_text(text) == plain
    assert plain.isascii()


def test_texts_are_drawn_in_ascii():
    accented, plain = grey(200, 300), grey(200, 300)
    draw_hud(accented, ["Größe"])
    draw_hud(plain, ["Grosse"])
    np.testing.assert_array_equal(accented, plain)


# Drawing


@pytest.mark.parametrize("size_hw", [(240, 426), (720, 1280), (2160, 3840)])
def test_the_hud_is_a_dark_box_with_light_text_in_the_top_left(size_hw):
    view = grey(*size_hw)
    draw_hud(view, LINES)
    top, bottom, left, right = changed_box(view)
    assert 0 < top == left < size_hw[0] / 50
    assert bottom < size_hw[0] / 2
    assert right < size_hw[1] * 0.7
    assert view[top, left].tolist() == [70, 70, 70]  # the picture shines through
    assert view.max() > 240


def test_text_grows_with_the_view():
    heights = []
    for height in (240, 720, 1080, 2160):
        view = grey(height, height * 16 // 9)
        draw_hud(view, LINES)
        top, bottom, _, _ = changed_box(view)
        heights.append(bottom - top)
    assert heights == sorted(heights)
    assert heights[0] > 3 * 12  # still readable
    np.testing.assert_allclose(heights[3], 2 * heights[2], rtol=0.1)


def test_long_lines_become_smaller():
    view = grey(1080, 1920)
    draw_hud(view, ["x" * 220])
    top, bottom, left, right = changed_box(view)
    assert (view[top:bottom, right - 5 : right] <= 70).all(), "the box must end inside the view, behind the text"
    assert right <= 1920
    assert left > 0
    once = grey(1080, 1920)
    draw_hud(once, ["x"])
    assert bottom - top < changed_box(once)[1] - changed_box(once)[0]


def test_the_legend_is_in_the_bottom_left_with_its_colours():
    view = grey(400, 600)
    draw_legend(view, ENTRIES)
    top, bottom, left, right = changed_box(view)
    assert top > 300
    assert 380 < bottom < 400
    assert left < 20
    assert right < 300
    red = (view == (0, 0, 255)).all(2)
    rows, columns = np.nonzero(red)
    assert red.sum() > 40
    assert rows.max() < (top + bottom) / 2  # the first of two lines
    assert columns.max() < left + 30


def test_the_help_is_in_the_middle():
    view = grey(401, 601)
    draw_help(view, ["q quit", "space pause"])
    top, bottom, left, right = changed_box(view)
    assert abs((top + bottom) / 2 - 200) <= 1
    assert abs((left + right) / 2 - 300) <= 1


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (50, 1), (2, 3), (16, 16), (40, 30)])
def test_tiny_views_are_no_failure(size_hw):
    view = grey(*size_hw)
    draw_hud(view, LINES)
    draw_legend(view, ENTRIES * 5)
    draw_help(view, LINES * 5)
    assert view.shape == (*size_hw, 3)
    assert (view != 200).any()


def test_no_lines_draw_nothing():
    view = grey(50, 50)
    draw_hud(view, [])
    draw_legend(view, [])
    draw_help(view, [])
    assert (view == 200).all()


def test_views_of_any_memory_layout_are_drawn_in_place():
    expected = grey(100, 200)
    draw_hud(expected, LINES)
    canvas = grey(200, 400)
    draw_hud(canvas[::-2, ::2], LINES)
    np.testing.assert_array_equal(canvas[::-2, ::2], expected)
    assert (canvas[::-2, 1::2] == 200).all()


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"view: expected a writable \(H, W, 3\) uint8 array, got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.broadcast_to(np.uint8(1), (4, 4, 3)), r"\(4, 4, 3\) uint8, read-only: copy it first"),
    ],
)
def test_other_views_are_refused(view, message):
    for draw, lines in ((draw_hud, LINES), (draw_help, LINES), (draw_legend, ENTRIES)):
        with pytest.raises(ShapeError, match=message):
            draw(view, lines)
