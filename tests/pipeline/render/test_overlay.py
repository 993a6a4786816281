import gc
import threading
from dataclasses import FrozenInstanceError, replace

import cv2
import numpy as np
import pytest

from pipeline.errors import OptionError, ShapeError
from pipeline.render.look import GREEN_SCREEN, Look, soft_edge, subject_level
from pipeline.render.modes import MODES
from pipeline.render.modes.blur import blurred_background
from pipeline.render.modes.cutout import cutout_bgra
from pipeline.render.overlay import Renderer
from pipeline.render.palette import Palette, load_palette

RED = load_palette("#ff0000")
# Rows: background, just below the edge, the threshold, just above the edge, subject. One grey for each column.
STEPS_MASK = np.array([0, 101, 128, 154, 255], dtype=np.uint8).repeat(4).reshape(5, 4)
STEPS_IMAGE = np.array([0, 100, 200, 255], dtype=np.uint8)[np.newaxis, :, np.newaxis].repeat(5, 0).repeat(3, 2)


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    """A picture and a mask that hold every value of the one against every value of the other."""
    image = np.arange(256, dtype=np.uint8)[np.newaxis, :, np.newaxis].repeat(256, 0).repeat(3, 2)
    mask = np.arange(256, dtype=np.uint8)[:, np.newaxis].repeat(256, 1)
    return image, mask


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def disc(size: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), radius, 255, cv2.FILLED)


def blend(base, over, weight_hw):
    weight = weight_hw[..., np.newaxis]
    return np.rint(base * (1 - weight) + np.asarray(over, dtype=float) * weight)


def assert_within_one(view: np.ndarray, expected: np.ndarray) -> None:
    assert view.dtype == np.uint8
    assert np.abs(view.astype(int) - expected).max() <= 1


# What every mode promises


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (7, 1), (2, 3), (33, 65), (64, 64), (131, 97)])
def test_any_size_gives_a_new_picture_and_leaves_its_inputs_alone(mode, task, size_hw):
    height, width = size_hw
    image, mask = noise(1, height, width, 3), noise(2, height, width)
    image_before, mask_before = image.copy(), mask.copy()
    image.setflags(write=False)
    mask.setflags(write=False)

    view = Renderer(Look(mode=mode), task)(image, mask)

    assert view.shape == (height, 2 * width if mode == "side" else width, 3)
    assert view.dtype == np.uint8
    assert view.flags.writeable
    assert not np.shares_memory(view, image)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(mask, mask_before)


@pytest.mark.parametrize("mode", MODES)
def test_memory_layout_changes_nothing(mode):
    renderer = Renderer(Look(mode=mode), "binary")
    image, mask = noise(1, 40, 60, 3), noise(2, 40, 60)
    # Channels reversed, mirrored, every second row, Fortran order: views that OpenCV does not take as they are.
    odd_image = np.asfortranarray(image)[::2, ::-1, ::-1]
    odd_mask = np.asfortranarray(mask)[::2, ::-1]
    view = renderer(odd_image, odd_mask)
    np.testing.assert_array_equal(view, renderer(odd_image.copy("C"), odd_mask.copy("C")))
    assert view.flags.c_contiguous


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["binary", "classes"])
def test_two_frames_do_not_share_memory(mode, task):
    renderer = Renderer(Look(mode=mode, background=noise(3, 5, 5, 3)), task)
    first = renderer(noise(1, 20, 20, 3), noise(2, 20, 20))
    kept = first.copy()
    second = renderer(noise(4, 20, 20, 3), noise(5, 20, 20))
    second[:] = 0
    np.testing.assert_array_equal(first, kept)


# The memory of views


@pytest.mark.parametrize(
    "hold", [lambda view: view, lambda view: view[3:5, 7:], lambda view: view.reshape(-1)[::2], memoryview]
)
def test_a_view_is_not_drawn_over_while_anything_refers_to_it(hold):
    renderer = Renderer(Look(), "binary")
    image = noise(1, 20, 30, 3)
    held = [hold(renderer(image, noise(seed, 20, 30))) for seed in range(4)]
    kept = [np.array(part) for part in held]
    for seed in range(4, 12):
        renderer(noise(seed, 20, 30, 3), noise(seed, 20, 30))
    for part, before in zip(held, kept, strict=True):
        np.testing.assert_array_equal(np.array(part), before)


def test_the_memory_of_a_view_is_used_again():
    renderer = Renderer(Look(), "binary")
    image, mask = noise(1, 20, 30, 3), noise(2, 20, 30)

    def address() -> int:
        return renderer(image, mask).__array_interface__["data"][0]

    first = address()
    assert [address() for _ in range(3)] == [first] * 3
    renderer.look = replace(renderer.look, mode="side")
    assert renderer(image, mask).shape == (20, 60, 3)
    renderer.look = replace(renderer.look, mode="heatmap")
    assert address() == first


def test_a_view_may_go_on_another_thread_and_after_its_renderer():
    renderer = Renderer(Look(), "binary")
    views = [renderer(noise(1, 20, 30, 3), noise(2, 20, 30))]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    view = renderer(noise(1, 20, 30, 3), noise(2, 20, 30))
    kept = view.copy()
    del renderer
    gc.collect()
    np.testing.assert_array_equal(view, kept)


def test_spare_memory_is_bounded():
    renderer = Renderer(Look(), "binary")
    views = [renderer(noise(1, 20, width, 3), noise(2, 20, width)) for width in range(10, 22) for _ in range(5)]
    views.clear()
    spare = renderer._views._spare
    assert len(spare) == 4
    assert all(len(memory) == 2 for memory in spare.values())


@pytest.mark.parametrize("mode", ["overlay", "contour", "side"])
@pytest.mark.parametrize("task", ["binary", "classes"])
def test_an_empty_mask_shows_the_picture(mode, task):
    image = noise(1, 30, 20, 3)
    view = Renderer(Look(mode=mode), task)(image, np.zeros((30, 20), np.uint8))
    np.testing.assert_array_equal(view, np.hstack([image, image]) if mode == "side" else image)


# The formula, against real numbers


@pytest.mark.parametrize("threshold", [0, 0.04, 0.5, 0.93, 1])
@pytest.mark.parametrize("alpha", [0, 0.31, 0.5, 1])
@pytest.mark.parametrize("spec", ["#ff0080", "#56b4e9", "#000000"])
def test_overlay_equals_the_formula(threshold, alpha, spec):
    image, mask = every_pair()
    look = Look("overlay", alpha=alpha, threshold=threshold, palette=load_palette(spec))
    expected = blend(image, look.palette.color(1), alpha * soft_edge(threshold)[mask])
    assert_within_one(Renderer(look, "binary")(image, mask), expected)


@pytest.mark.parametrize("threshold", [0, 0.5, 0.93, 1])
@pytest.mark.parametrize("mode", ["cutout", "replace"])
@pytest.mark.parametrize("background", [(0, 0, 0), (10, 200, 255), "picture"])
def test_a_new_background_equals_the_formula(threshold, mode, background):
    image, mask = every_pair()
    if background == "picture":
        background = noise(3, 256, 256, 3)
    look = Look(mode, threshold=threshold, background=background)
    expected = blend(np.broadcast_to(background, image.shape), image, soft_edge(threshold)[mask])
    assert_within_one(Renderer(look, "binary")(image, mask), expected)


def two_subjects() -> tuple[np.ndarray, np.ndarray]:
    """A picture of several strips, and a mask with soft edges, wide runs of one value, a hole, a thin line and a lone pixel."""
    mask = np.zeros((500, 700), np.uint8)
    cv2.circle(mask, (200, 250), 150, 255, cv2.FILLED)
    cv2.circle(mask, (220, 260), 30, 0, cv2.FILLED)
    cv2.rectangle(mask, (560, 100), (699, 420), 255, cv2.FILLED)
    cv2.line(mask, (400, 0), (500, 499), 200, 3)
    mask = cv2.GaussianBlur(mask, (0, 0), 4)
    mask[499, 0] = 255
    return noise(1, 500, 700, 3), mask


@pytest.mark.parametrize("threshold", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("alpha", [0.31, 1])
def test_overlay_of_a_large_frame_equals_the_formula(threshold, alpha):
    image, mask = two_subjects()
    look = Look("overlay", alpha=alpha, threshold=threshold, palette=load_palette("#ff2080"))
    expected = blend(image, look.palette.color(1), alpha * soft_edge(threshold)[mask])
    assert_within_one(Renderer(look, "binary")(image, mask), expected)
    side = Renderer(replace(look, mode="side"), "binary")(image, mask)
    np.testing.assert_array_equal(side[:, :700], image)
    assert_within_one(side[:, 700:], expected)


@pytest.mark.parametrize("background", [(10, 200, 255), "picture", "blur"])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_subject_of_a_large_frame_equals_the_formula(background, threshold):
    image, mask = two_subjects()
    weight = soft_edge(threshold)[mask]
    if background == "blur":
        look = Look("blur", threshold=threshold)
        behind = blurred_background(image, np.rint(255 * weight).astype(np.uint8))
    else:
        behind = (
            noise(3, 500, 700, 3) if background == "picture" else np.broadcast_to(np.uint8(background), image.shape)
        )
        look = Look("replace", threshold=threshold, background=behind if background == "picture" else background)
    assert_within_one(Renderer(look, "binary")(image, mask), blend(behind, image, weight))


@pytest.mark.parametrize("palette", ["default", "cityscapes"])
def test_class_overlay_of_a_large_frame_equals_the_formula(palette):
    image, mask = two_subjects()
    mask //= 40
    look = Look("overlay", alpha=0.4, palette=load_palette(palette))
    colours = np.array([look.palette.color(index) for index in range(256)])[mask]
    drawn = mask >= 0 if palette == "cityscapes" else mask > 0
    assert_within_one(Renderer(look, "classes")(image, mask), blend(image, colours, 0.4 * drawn))


def test_a_frame_wider_than_a_strip_is_drawn():
    image, mask = noise(1, 3, 140_000, 3), np.zeros((3, 140_000), np.uint8)
    mask[1, 70_000:] = 255
    look = Look("overlay", alpha=0.5, palette=RED)
    assert_within_one(
        Renderer(look, "binary")(image, mask), blend(image, look.palette.color(1), 0.5 * soft_edge(0.5)[mask])
    )


def test_blur_equals_the_formula_over_the_blurred_background():
    image, mask = noise(1, 256, 256, 3), every_pair()[1]
    weight = soft_edge(0.5)[mask]
    background = blurred_background(image, np.rint(255 * weight).astype(np.uint8))
    assert_within_one(Renderer(Look("blur"), "binary")(image, mask), blend(background, image, weight))


@pytest.mark.parametrize("alpha", [0, 0.31, 0.5, 1])
def test_heatmap_equals_the_formula(alpha):
    image, mask = every_pair()
    heat = cv2.applyColorMap(mask, cv2.COLORMAP_INFERNO)
    expected = np.rint((1 - alpha) * image + alpha * heat.astype(float))
    assert_within_one(Renderer(Look("heatmap", alpha=alpha), "binary")(image, mask), expected)


@pytest.mark.parametrize("alpha", [0, 0.31, 0.5, 1])
@pytest.mark.parametrize("palette", ["default", "cityscapes"])
def test_class_overlay_equals_the_formula(alpha, palette):
    image, mask = every_pair()
    look = Look("overlay", alpha=alpha, palette=load_palette(palette))
    colours = np.array([look.palette.color(index) for index in range(256)])[mask]
    drawn = mask >= 0 if palette == "cityscapes" else mask > 0
    assert_within_one(Renderer(look, "classes")(image, mask), blend(image, colours, alpha * drawn))


# Each mode by its pixels


def test_overlay_colours_the_subject_and_fades_at_the_edge():
    view = Renderer(Look("overlay", alpha=0.5, palette=RED), "binary")(STEPS_IMAGE, STEPS_MASK)
    np.testing.assert_array_equal(view[:2], STEPS_IMAGE[:2])
    np.testing.assert_allclose(view[2, 1], [75, 75, 139], atol=1)  # a quarter of red at the threshold
    np.testing.assert_allclose(view[3, 1], [50, 50, 178], atol=1)
    np.testing.assert_allclose(view[4, 1], [50, 50, 178], atol=1)


def test_overlay_finds_a_single_pixel_in_the_last_corner():
    image, mask = np.full((70, 90, 3), 100, np.uint8), np.zeros((70, 90), np.uint8)
    mask[69, 89] = 255
    view = Renderer(Look(alpha=1, palette=RED), "binary")(image, mask)
    assert view[69, 89].tolist() == [0, 0, 255]
    assert (view != image).any(2).sum() == 1


def test_mask_of_probabilities_is_grey():
    view = Renderer(Look("mask", threshold=0.9), "binary")(STEPS_IMAGE, STEPS_MASK)
    np.testing.assert_array_equal(view, STEPS_MASK[..., np.newaxis].repeat(3, 2))


def test_mask_of_classes_has_the_palettes_colours():
    palette = Palette(np.array([[1, 2, 3], [10, 20, 30], [40, 50, 60]], np.uint8))
    mask = np.array([[0, 1, 2, 3]], np.uint8)
    view = Renderer(Look("mask", palette=palette), "classes")(np.zeros((1, 4, 3), np.uint8), mask)
    assert view[0].tolist() == [[1, 2, 3], [10, 20, 30], [40, 50, 60], [10, 20, 30]]


def test_side_is_the_picture_then_the_overlay():
    image, mask = noise(1, 30, 41, 3), noise(2, 30, 41)
    view = Renderer(Look("side"), "binary")(image, mask)
    np.testing.assert_array_equal(view[:, :41], image)
    np.testing.assert_array_equal(view[:, 41:], Renderer(Look("overlay"), "binary")(image, mask))


def test_contour_is_a_line_inside_the_thresholded_mask():
    image, mask = np.full((30, 30, 3), 100, np.uint8), np.zeros((30, 30), np.uint8)
    mask[8:20, 5:25] = 180
    mask[10:18, 7:23] = 255
    expected = image.copy()
    expected[8:20, 5:25] = [0, 0, 255]
    expected[9:19, 6:24] = 100
    np.testing.assert_array_equal(Renderer(Look("contour", palette=RED), "binary")(image, mask), expected)

    higher = image.copy()
    higher[10:18, 7:23] = [0, 0, 255]
    higher[11:17, 8:22] = 100
    np.testing.assert_array_equal(Renderer(Look("contour", threshold=0.8, palette=RED), "binary")(image, mask), higher)


@pytest.mark.parametrize(("height", "thickness"), [(40, 1), (240, 1), (480, 2), (1080, 4)])
def test_contour_grows_with_the_frames_height(height, thickness):
    image, mask = np.zeros((height, 60, 3), np.uint8), np.zeros((height, 60), np.uint8)
    mask[:, 20:40] = 255
    view = Renderer(Look("contour", palette=RED), "binary")(image, mask)
    columns = np.flatnonzero(view[height // 2, :, 2])
    assert columns.tolist() == [*range(20, 20 + thickness), *range(40 - thickness, 40)]


@pytest.mark.parametrize("fill", [128, 255])
def test_contour_has_no_line_along_the_frames_border(fill):
    image = noise(1, 20, 20, 3)
    view = Renderer(Look("contour"), "binary")(image, np.full((20, 20), fill, np.uint8))
    np.testing.assert_array_equal(view, image)


def test_contour_of_classes_shows_both_colours_where_two_touch():
    palette = Palette(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8))
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 10:20], mask[:, 20:] = 1, 2
    image = np.full((20, 30, 3), 100, np.uint8)
    row = Renderer(Look("contour", palette=palette), "classes")(image, mask)[10]
    assert row[9].tolist() == [100, 100, 100]
    assert row[10].tolist() == [255, 0, 0]
    assert row[11].tolist() == [100, 100, 100]
    assert row[19].tolist() == [255, 0, 0]
    assert row[20].tolist() == [0, 255, 0]
    assert row[21:].tolist() == [[100, 100, 100]] * 9


def test_contour_outlines_class_0_where_it_is_no_background():
    palette = Palette(np.array([[0, 0, 200], [255, 0, 0]], np.uint8), transparent_class_0=False)
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 15:] = 1
    row = Renderer(Look("contour", palette=palette), "classes")(np.full((20, 30, 3), 100, np.uint8), mask)[10]
    assert row[13:17].tolist() == [[100, 100, 100], [0, 0, 200], [255, 0, 0], [100, 100, 100]]


@pytest.mark.parametrize(
    ("mode", "background", "behind"),
    [
        ("cutout", None, (0x40, 0xB1, 0x00)),
        ("cutout", (1, 2, 3), (1, 2, 3)),
        ("replace", None, (255, 255, 255)),
        ("replace", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_cutout_and_replace_keep_the_subject_only(mode, background, behind):
    view = Renderer(Look(mode, background=background), "binary")(STEPS_IMAGE, STEPS_MASK)
    assert (view[:2] == behind).all()
    # 128 of 255 is just above the threshold: 0.51 of the subject.
    np.testing.assert_allclose(view[2], 0.51 * STEPS_IMAGE[2] + 0.49 * np.array(behind), atol=1)
    np.testing.assert_array_equal(view[3:], STEPS_IMAGE[3:])


def test_class_cutout_keeps_every_class_and_has_a_hard_edge():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    image = noise(1, 1, 4, 3)
    view = Renderer(Look("cutout"), "classes")(image, mask)
    assert view[0, 0].tolist() == list(GREEN_SCREEN)
    np.testing.assert_array_equal(view[0, 1:], image[0, 1:])


def test_a_background_picture_covers_the_frame_from_its_middle():
    # Three stripes beside each other; a square frame sees the middle one only.
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, :10], picture[:, 10:20], picture[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    renderer = Renderer(Look("replace", background=picture), "binary")
    view = renderer(noise(1, 40, 40, 3), np.zeros((40, 40), np.uint8))
    assert (view[:, 2:-2] == (0, 255, 0)).all()
    wide = renderer(noise(1, 40, 120, 3), np.zeros((40, 120), np.uint8))
    assert wide.shape == (40, 120, 3)
    assert wide[20, [10, 60, 110]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_a_new_background_picture_is_used_from_the_next_frame():
    image, mask = noise(1, 8, 8, 3), np.zeros((8, 8), np.uint8)
    renderer = Renderer(Look("replace", background=np.full((4, 4, 3), 9, np.uint8)), "binary")
    assert (renderer(image, mask) == 9).all()
    renderer.look = replace(renderer.look, background=np.full((4, 4, 3), 77, np.uint8))
    assert (renderer(image, mask) == 77).all()


def test_blur_leaves_the_subject_sharp():
    image = noise(1, 200, 200, 3)
    mask = disc(200, 60)
    view = Renderer(Look("blur"), "binary")(image, mask)
    np.testing.assert_array_equal(view[mask == 255], image[mask == 255])
    outside = disc(200, 70) == 0
    assert view[outside].std() < 0.3 * image[outside].std()


def test_blur_does_not_smear_the_subject_into_the_background():
    image = np.full((400, 400, 3), 40, np.uint8)
    mask = disc(400, 100)
    image[mask == 255] = (0, 0, 255)
    view = Renderer(Look("blur"), "binary")(image, mask)
    near = (mask == 0) & (disc(400, 104) == 255)
    # A plain blur would bring about 100 of the subject's red here.
    assert np.abs(view[near].astype(int) - 40).max() <= 5


@pytest.mark.parametrize("size_hw", [(1, 1), (5, 3), (97, 131), (479, 641)])
def test_a_flat_background_stays_flat(size_hw):
    image = np.full((*size_hw, 3), (10, 20, 200), np.uint8)
    for weight in (0, 255):
        background = blurred_background(image, np.full(size_hw, weight, np.uint8))
        assert background.shape == image.shape
        np.testing.assert_allclose(background, image, atol=1)


def test_blur_is_stronger_in_larger_frames():
    def edge_width(size):
        image = np.zeros((size, size, 3), np.uint8)
        image[:, size // 2 :] = 255
        row = blurred_background(image, np.zeros((size, size), np.uint8))[size // 2, :, 0]
        return int(((row > 25) & (row < 230)).sum())

    assert edge_width(400) > 1.6 * edge_width(200) > 0


def test_heatmap_grows_lighter_with_the_probability():
    image, mask = np.zeros((256, 1, 3), np.uint8), np.arange(256, dtype=np.uint8)[:, np.newaxis]
    view = Renderer(Look("heatmap", alpha=1), "binary")(image, mask)
    lightness = cv2.cvtColor(view, cv2.COLOR_BGR2Lab)[:, 0, 0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[0] < 10
    assert lightness[-1] > 240


@pytest.mark.parametrize("alpha", [0.2, 1])
def test_heatmap_of_classes_is_the_overlay(alpha):
    image, mask = noise(1, 30, 30, 3), noise(2, 30, 30)
    view = Renderer(Look("heatmap", alpha=alpha), "classes")(image, mask)
    np.testing.assert_array_equal(view, Renderer(Look("overlay", alpha=alpha), "classes")(image, mask))


def test_the_look_can_change_between_frames():
    renderer = Renderer(Look("overlay", alpha=0.5, palette=RED), "binary")
    image, mask = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)
    assert renderer(image, mask)[0, 0].tolist() == [0, 0, 128]
    renderer.look = replace(renderer.look, alpha=1)
    assert renderer(image, mask)[0, 0].tolist() == [0, 0, 255]
    renderer.look = replace(renderer.look, mode="mask")
    assert renderer(image, mask)[0, 0].tolist() == [255, 255, 255]


# The edge


def test_the_soft_edge_is_centred_on_the_threshold():
    weight = soft_edge(0.5)
    np.testing.assert_allclose(weight[[0, 101, 102, 153, 154, 255]], [0, 0, 0, 1, 1, 1], atol=1e-9)
    np.testing.assert_allclose((weight[127] + weight[128]) / 2, 0.5)
    np.testing.assert_allclose(np.diff(weight[102:154]), 1 / 51)


@pytest.mark.parametrize("threshold", [0, 0.001, 0.05, 0.3, 0.5, 0.95, 1])
def test_the_soft_edge_agrees_with_the_threshold(threshold):
    weight = soft_edge(threshold)
    assert (np.diff(weight) >= 0).all()
    assert weight[0] == (threshold == 0)
    assert weight[255] == 1
    level = subject_level(threshold)
    assert (weight[level:] >= 0.5 - 1e-9).all()
    assert (weight[:level] < 0.5).all()


@pytest.mark.parametrize(("threshold", "level"), [(0, 0), (0.2, 51), (0.5, 128), (0.6, 153), (1, 255)])
def test_subject_level(threshold, level):
    assert subject_level(threshold) == level


# Pictures with transparency


def test_cutout_bgra_has_the_probability_as_opacity():
    picture = cutout_bgra(STEPS_IMAGE, STEPS_MASK, "binary")
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[..., :3], STEPS_IMAGE)
    np.testing.assert_array_equal(picture[..., 3], STEPS_MASK)
    assert not np.shares_memory(picture, STEPS_IMAGE)


def test_cutout_bgra_with_a_threshold_has_a_soft_edge():
    opacity = cutout_bgra(STEPS_IMAGE, STEPS_MASK, "binary", 0.5)[..., 3]
    assert opacity[:, 0].tolist() == [0, 0, 130, 255, 255]


def test_cutout_bgra_of_classes_is_all_or_nothing():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    assert cutout_bgra(noise(1, 1, 4, 3), mask, "classes")[0, :, 3].tolist() == [0, 255, 255, 255]


# Mistakes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "overlaid"}, r"render mode: expected overlay, mask.*got 'overlaid': did you mean 'overlay'\?"),
        ({"alpha": 1.01}, r"alpha: expected 0 to 1, got 1\.01"),
        ({"alpha": float("nan")}, "alpha: expected 0 to 1, got nan"),
        ({"threshold": -0.1}, r"threshold: expected 0 to 1, got -0\.1"),
        ({"background": (0, 0, 256)}, r"background color: expected \(b, g, r\) of 0 to 255, got \(0, 0, 256\)"),
        ({"background": (0, 0)}, "background color"),
        (
            {"background": np.zeros((4, 4), np.uint8)},
            r"background picture: expected \(h, w, 3\) uint8 BGR, got \(4, 4\)",
        ),
        ({"background": np.zeros((4, 4, 3))}, r"got \(4, 4, 3\) float64"),
        ({"background": np.zeros((0, 4, 3), np.uint8)}, r"got \(0, 4, 3\) uint8"),
    ],
)
def test_a_look_checks_itself(values, message):
    with pytest.raises(OptionError, match=message):
        Look(**values)


def test_a_look_is_frozen_and_keeps_its_own_background():
    picture = np.full((4, 4, 3), 9, np.uint8)
    look = Look("replace", background=picture)
    picture[:] = 1
    assert (look.background == 9).all()
    assert replace(look, alpha=0.1).background is look.background
    with pytest.raises(FrozenInstanceError):
        look.alpha = 0.1


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4), np.uint8),
            r"image: expected \(H, W, 3\) uint8 BGR, got \(4, 4\)",
        ),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), "image: expected"),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), r"image: .*got \(4, 4, 3\) float32"),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4), np.uint8), r"image: .*got \(0, 4, 3\)"),
        (
            np.zeros((4, 5, 3), np.uint8),
            np.zeros((5, 4), np.uint8),
            r"mask: expected \(4, 5\) uint8.*got \(5, 4\) uint8",
        ),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 1), np.uint8), r"mask: .*got \(4, 4, 1\)"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool), r"mask: .*got \(4, 4\) bool"),
    ],
)
def test_wrong_arrays_are_refused(image, mask, message):
    with pytest.raises(ShapeError, match=message):
        Renderer(Look(), "binary")(image, mask)
    with pytest.raises(ShapeError, match=message):
        cutout_bgra(image, mask, "binary")


def test_wrong_options_are_refused():
    with pytest.raises(OptionError, match="task: expected binary or classes, got 'multi'"):
        Renderer(Look(), "multi")
    with pytest.raises(OptionError, match="threshold: expected 0 to 1, got 2"):
        cutout_bgra(STEPS_IMAGE, STEPS_MASK, "binary", 2)
