"""Ground truth beside frames."""

import cv2
import numpy as np
import pytest

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
