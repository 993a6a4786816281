"""Ground truth beside frames."""

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from calibration.metrics.truth import VOID, read_truths, resize_truth
from pipeline.errors import CalibrationError


@pytest.fixture
def folder(tmp_path):
    grey = np.zeros((4, 6), np.uint8)
    grey[:, 3:] = 200
    grey[0, 0] = 2
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    cv2.imwrite(str(tmp_path / "dim.png"), np.minimum(grey, 7))
    cv2.imwrite(str(tmp_path / "red.png"), np.dstack([grey * 0, grey * 0, grey]))
    return tmp_path


def test_truth_by_the_frames_name(folder):
    binary, classes = (read_truths(str(folder), task)("a", (4, 6)) for task in ("binary", "classes"))
    assert binary.tolist()[0] == [0, 0, 0, 255, 255, 255]
    assert classes.tolist()[0] == [2, 0, 0, 200, 200, 200]


@pytest.mark.parametrize(
    ("name", "size_hw", "message"),
    [
        ("b", (4, 6), r"--calib-masks .*: expected b\.png for the frame b, got none"),
        ("a", (6, 4), r"a\.png: expected a mask of 6×4 as its frame, got 4×6"),
        ("red", (4, 6), r"red\.png: expected a grey mask, got colours"),
        ("dim", (4, 6), r"dim\.png: .*127.* got values up to 7"),
    ],
)
def test_what_does_not_fit_is_told(folder, name, size_hw, message):
    with pytest.raises(CalibrationError, match=message):
        read_truths(str(folder), "binary")(name, size_hw)


def test_no_folder(tmp_path):
    with pytest.raises(
        CalibrationError, match=r"--calib-masks .*none: expected a folder with NAME\.png for every frame"
    ):
        read_truths(str(tmp_path / "none"), "binary")


def test_a_truth_is_resized_without_new_values():
    truth = np.array([[0, 255], [7, 0]], np.uint8)
    assert set(np.unique(resize_truth(truth, (9, 5)))) == {0, 7, 255}
    assert resize_truth(truth, (9, 5)).shape == (9, 5)


@pytest.mark.parametrize("first", ["void", "plain"])
def test_a_folder_of_0_and_1(tmp_path, first):
    plain, void = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    plain[:, 3:] = 1
    void[:, 5:] = 255  # a picture without a subject
    empty = np.zeros((4, 6), np.uint8)
    for name, grey in (("plain", plain), ("void", void), ("empty", empty), ("other", plain * 77)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), grey)
    read = read_truths(str(tmp_path), "binary")
    read(first, (4, 6))
    assert read("plain", (4, 6)).tolist()[0] == [0, 0, 0, 255, 255, 255]
    assert read("void", (4, 6)).tolist()[0] == [0, 0, 0, 0, 0, VOID["binary"]]
    assert not read("empty", (4, 6)).any()
    with pytest.raises(CalibrationError, match=r"other\.png: expected 0, 1 and 255 alone"):
        read("other", (4, 6))
    assert read_truths(str(tmp_path), "classes")("plain", (4, 6)).tolist()[0] == [0, 0, 0, 1, 1, 1]


def half(value, dtype=np.uint8):
    mask = np.zeros((16, 24), dtype)
    mask[:, 12:] = value
    return mask


def palette(indices, *colors):
    image = PillowImage.fromarray(indices, "P")
    image.putpalette(bytes(value for color in colors for value in color))
    return image


VOC = ((0, 0, 0), (128, 0, 0), (0, 128, 0), *((0, 0, 0),) * 252, (224, 224, 192))


def read_one(tmp_path, image, task, name="a.png", **options):
    image = image if isinstance(image, PillowImage.Image) else PillowImage.fromarray(image)
    image.save(tmp_path / name, **options)
    return read_truths(str(tmp_path), task)("a", (16, 24))[8, [0, 23]].tolist()


@pytest.mark.parametrize(
    ("task", "image", "expected"),
    [
        ("classes", palette(half(2), *VOC), [0, 2]),
        ("classes", palette(half(255), *VOC), [0, 255]),
        ("binary", palette(half(1), *VOC), [0, 255]),
        ("binary", palette(half(1), (0, 0, 0), (255, 255, 255)), [0, 255]),
        ("binary", palette(half(1), (255, 255, 255), (0, 0, 0)), [255, 0]),
        ("classes", half(7, np.uint16), [0, 7]),
        ("classes", half(65535, np.uint16), [0, 255]),
        ("binary", half(65535, np.uint16), [0, 255]),
        ("binary", half(1, np.uint16), [0, 255]),
        ("binary", np.dstack([half(255)] * 3 + [half(0) + 255]), [0, 255]),
        ("binary", np.dstack([half(255)] * 3), [0, 255]),
        ("binary", half(True, bool), [0, 255]),
        ("classes", half(True, bool), [0, 255]),
    ],
)
def test_forms_of_masks(tmp_path, task, image, expected):
    assert read_one(tmp_path, image, task) == expected


@pytest.mark.parametrize(
    ("task", "image", "message"),
    [
        ("binary", np.dstack([half(0)] * 3 + [half(255)]), "transparent in part: is the subject in its colors"),
        ("classes", half(300, np.uint16), "class indices up to 255, got 300"),
        ("classes", half(0.5, np.float32), "expected whole numbers from 0, got float32"),
        ("binary", palette(half(2), *VOC), "a palette of greys, or of the indices 0, 1 and 255"),
        ("binary", np.dstack([half(9), half(99), half(199)]), "is this the picture and not its mask"),
    ],
)
def test_forms_that_say_too_little_are_told(tmp_path, task, image, message):
    with pytest.raises(CalibrationError, match=message):
        read_one(tmp_path, image, task, "a.tif" if image.dtype.kind == "f" else "a.png") if isinstance(
            image, np.ndarray
        ) else read_one(tmp_path, image, task)


def test_a_jpeg_is_a_binary_mask_and_no_class_indices(tmp_path):
    assert read_one(tmp_path, half(255), "binary", "a.jpg", quality=60) == [0, 255]
    with pytest.raises(CalibrationError, match="expected class indices as PNG, got JPEG"):
        read_one(tmp_path, half(3), "classes", "a.jpg")


def test_two_masks_of_one_name_are_told(tmp_path):
    read_one(tmp_path, half(255), "binary", "a.jpg")
    with pytest.raises(CalibrationError, match=r"expected one mask for the frame a, got a\.jpg and a\.png: remove one"):
        read_one(tmp_path, half(0), "binary")


def test_a_file_that_is_no_picture_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="expected a mask, got a file that cannot be decoded"):
        read_truths(str(tmp_path), "binary")("a", (16, 24))
