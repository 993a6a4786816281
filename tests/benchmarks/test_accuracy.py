import json

import cv2
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.accuracy import read_truth
from benchmarks.saliency import BETA_SQUARED, SaliencyMetrics
from pipeline.errors import OptionError, ShapeError, SourceError


def random_masks(count=5):
    """Masks that lean towards random truths, and these."""
    random = np.random.default_rng(0)
    truths = [random.random((20, 30)) > 0.6 for _ in range(count)]
    masks = [np.clip(truth * 130 + random.integers(0, 126, truth.shape), 0, 255).astype(np.uint8) for truth in truths]
    return masks, truths


def metrics_of(masks, truths):
    metrics = SaliencyMetrics()
    for mask, truth in zip(masks, truths, strict=True):
        metrics.add(mask, truth)
    return metrics.result()


def test_metrics_equal_their_definition():
    masks, truths = random_masks()
    best = 0.0
    for threshold in range(256):
        hits = [np.count_nonzero((mask >= threshold) & truth) for mask, truth in zip(masks, truths, strict=True)]
        precision = np.mean(
            [hit / max(np.count_nonzero(mask >= threshold), 1) for hit, mask in zip(hits, masks, strict=True)]
        )
        recall = np.mean([hit / np.count_nonzero(truth) for hit, truth in zip(hits, truths, strict=True)])
        best = max(best, (1 + BETA_SQUARED) * precision * recall / max(BETA_SQUARED * precision + recall, 1e-9))
    errors = [np.abs(mask / 255 - truth).mean() for mask, truth in zip(masks, truths, strict=True)]
    overlaps = [
        np.count_nonzero((mask > 127) & truth) / np.count_nonzero((mask > 127) | truth)
        for mask, truth in zip(masks, truths, strict=True)
    ]
    result = metrics_of(masks, truths)
    assert result["pictures"] == 5
    assert result["max_f"] == pytest.approx(best, abs=1e-5)
    assert result["mae"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert result["iou"] == pytest.approx(np.mean(overlaps), abs=1e-5)


@pytest.mark.needs("py_sod_metrics")
def test_metrics_equal_pysodmetrics():
    import py_sod_metrics

    handlers = {"p": py_sod_metrics.PrecisionHandler, "r": py_sod_metrics.RecallHandler}
    made = {name: handler(with_dynamic=True, with_adaptive=False) for name, handler in handlers.items()}
    made["f"] = py_sod_metrics.FmeasureHandler(beta=BETA_SQUARED, with_dynamic=True, with_adaptive=False)
    theirs = py_sod_metrics.FmeasureV2(metric_handlers=made)
    masks, truths = random_masks()
    for mask, truth in zip(masks, truths, strict=True):
        theirs.step(pred=mask / 255, gt=truth, normalize=False)
    curves = theirs.get_results()
    precision, recall = curves["p"]["dynamic"], curves["r"]["dynamic"]
    max_f = ((1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)).max()
    result = metrics_of(masks, truths)
    assert result["max_f"] == pytest.approx(max_f, abs=1e-5)
    assert result["max_mean_f"] == pytest.approx(curves["f"]["dynamic"].max(), abs=1e-5)


def test_a_perfect_and_an_empty_mask():
    truth = np.zeros((10, 10), bool)
    truth[2:5, 3:9] = True
    perfect, empty = SaliencyMetrics(), SaliencyMetrics()
    perfect.add(truth.astype(np.uint8) * 255, truth)
    empty.add(np.zeros((10, 10), np.uint8), truth)
    assert perfect.result() == {"pictures": 1, "max_f": 1.0, "max_mean_f": 1.0, "mae": 0.0, "iou": 1.0}
    assert empty.result()["iou"] == 0
    assert empty.result()["mae"] == pytest.approx(0.18)


def test_sizes_must_fit():
    with pytest.raises(ShapeError, match=r"ground truth: expected \(4, 4\) as the picture, got \(4, 5\) bool"):
        SaliencyMetrics().add(np.zeros((4, 4), np.uint8), np.zeros((4, 5), bool))


def test_no_pictures_is_an_error():
    with pytest.raises(OptionError, match="expected pictures with masks, got none"):
        SaliencyMetrics().result()


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
    assert "| 1.0000 | 1.0000 | 0.0000 | 1.0000 |" in capsys.readouterr().out
    entries = json.loads(result.read_text())
    assert entries["question"] == "accuracy"
    assert entries["environment"]["cores"] >= 1
    assert entries["table"][0]["pictures"] == 2


def test_a_missing_truth_is_named(data_set, red_bundle, capsys):
    (data_set / "masks" / "b.png").unlink()
    assert main(["accuracy", "--data", str(data_set), "--model", str(red_bundle.folder)]) == 2
    assert "b.png: cannot be read" in capsys.readouterr().err
    with pytest.raises(SourceError, match="cannot be read"):
        read_truth(data_set / "masks" / "b.png")


def test_an_unknown_question_is_told(capsys):
    assert main(["speed"]) == 2
    assert "expected a question (accuracy, gpu), got 'speed'" in capsys.readouterr().err


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
