"""Ground truth beside frames."""

import cv2
import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.truth import read_truths, resize_truth


@pytest.fixture
def folder(tmp_path):
    grey = np.zeros((4, 6), np.uint8)
    grey[:, 3:] = 200
    grey[0, 0] = 2
    cv2.imwrite(str(tmp_path / "a.png"), grey)
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
