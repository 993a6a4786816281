import json

import cv2
import numpy as np
import pytest

from benchmarks.__main__ import QUESTIONS, main


@pytest.fixture
def data_set(tmp_path):
    """Two pictures whose red channel is the subject's mask, and their ground truth."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, rows in (("a", slice(0, 8)), ("b", slice(4, 20))):
        image = np.zeros((24, 32, 3), np.uint8)
        image[rows, :, 2] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), image[:, :, 2])
    return tmp_path


def test_the_command_prints_a_table_and_writes_json(data_set, red_bundle, capsys):
    result = data_set / "result.json"
    assert main(["accuracy", "--data", str(data_set), "--model", str(red_bundle.folder), "--json", str(result)]) == 0
    assert (
        "| max F-measure | max of mean F-measure | S-measure | MAE | IoU at 0.5 | boundary IoU at 0.5 |\n"
        "|---|---|---|---|---|---|\n"
        "| 1.0000 | 1.0000 | 1.0000 | 0.0000 | 1.0000 | 1.0000 |\n"
    ) in capsys.readouterr().out
    entries = json.loads(result.read_text())
    assert entries["question"] == "accuracy"
    assert entries["environment"]["cores"] >= 1
    (row,) = entries["table"]
    assert row["pictures"] == 2
    assert (row["s_measure"], row["boundary_iou"]) == (1, 1)


def test_a_missing_truth_is_named(data_set, red_bundle, capsys):
    (data_set / "masks" / "b.png").unlink()
    assert main(["accuracy", "--data", str(data_set), "--model", str(red_bundle.folder)]) == 2
    assert "masks: expected b.png for the frame b, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[::2], "expected a mask of 24×32 as its frame, got 12×32"),
        (lambda mask: np.dstack([mask, mask, 255 - mask]), "expected a grey mask, got colours"),
        (lambda mask: np.minimum(mask, 9), "which of them is the subject"),
    ],
)
def test_ground_truth_that_does_not_fit_is_told(data_set, red_bundle, capsys, change, message):
    path = str(data_set / "masks" / "b.png")
    cv2.imwrite(path, change(cv2.imread(path, cv2.IMREAD_GRAYSCALE)))
    assert main(["accuracy", "--data", str(data_set), "--model", str(red_bundle.folder)]) == 2
    assert message in capsys.readouterr().err


def test_ground_truth_of_0_and_1_with_void(data_set, red_bundle, tmp_path, capsys):
    for name in ("a", "b"):
        path = str(data_set / "masks" / f"{name}.png")
        mask = cv2.imread(path, cv2.IMREAD_GRAYSCALE) // 255
        mask[20:, :5] = 255  # nobody knows
        cv2.imwrite(path, mask)
    result = tmp_path / "result.json"
    assert main(["accuracy", "--data", str(data_set), "--model", str(red_bundle.folder), "--json", str(result)]) == 0
    (row,) = json.loads(result.read_text())["table"]
    assert (row["iou"], row["mae"], row["max_f"]) == (1, 0, 1)


def test_an_unknown_question_is_told(capsys):
    assert main(["speed"]) == 2
    assert f"expected a question ({', '.join(QUESTIONS)}), got 'speed'" in capsys.readouterr().err


@pytest.mark.network
def test_u2netp_reaches_its_figures_on_real_pictures(ecssd, published_u2netp, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "weights" / published_u2netp.name).write_bytes(published_u2netp.read_bytes())
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for path in sorted((ecssd / folder).iterdir())[::10]:
            (tmp_path / folder / path.name).symlink_to(path)
    result = tmp_path / "result.json"
    assert main(["accuracy", "--data", str(tmp_path), "--contract", "official", "--json", str(result)]) == 0
    (row,) = json.loads(result.read_text())["table"]
    assert row["pictures"] == 20
    assert row["max_f"] >= 0.93
    assert row["mae"] <= 0.045
    assert row["s_measure"] >= 0.92
    assert row["boundary_iou"] >= 0.74
