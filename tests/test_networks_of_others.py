"""Networks of others compile, find their contracts and give their own masks: a few of ``tests/networks_of_others.py``."""

import json

import numpy as np
import pytest

from compile.networks.contract import Contract
from tests.networks_of_others import agreement, expected_mask, main, wrong_keys
from tests.others_made import IMAGENET, Way


@pytest.mark.network
def test_a_few_of_them(ecssd, tmp_path):
    result = tmp_path / "networks.json"
    arguments = [str(tmp_path), "--pictures", str(ecssd), "--json", str(result)]
    rows = main([*arguments, "--only", "^(pp-ocr-detector|argmax|channels-last|minus-1-to-1|pt2)$"])
    assert {row["name"]: row.get("contract", row.get("error")) for row in rows} == {
        "pp-ocr-detector": "told",
        "channels-last": "right, with doubts",
        "argmax": "right, with doubts",
        "minus-1-to-1": "told",
        "pt2": "right, with doubts",
    }
    for row in rows:
        assert row["passes"], row
        assert 0.02 < row["subject_share"] < 0.98
    assert json.loads(result.read_text())["table"] == rows


def test_a_contract_that_is_not_the_network_s_own_is_seen():
    right = Contract("found", (8, 8), mean=IMAGENET[0], std=IMAGENET[1])
    way = Way(mean=IMAGENET[0], std=IMAGENET[1])
    assert wrong_keys(right, way) == set()
    assert wrong_keys(right, Way()) == {"mean", "std"}
    assert wrong_keys(Contract("found", (8, 8), divide_by=1.0), Way()) == {"std"}
    assert wrong_keys(right, Way("bgr", mean=IMAGENET[0], std=IMAGENET[1], gives="probabilities")) == {
        "channels",
        "activation",
    }


def test_masks_are_made_of_the_network_s_scores():
    scores = np.zeros((1, 3, 2, 2), np.float32)
    scores[0, 1, 0], scores[0, 2, 1] = 2, 3
    assert expected_mask(scores, Way(), (2, 2), (2, 2)).tolist() == [[1, 1], [2, 2]]
    assert expected_mask(scores, Way(multilabel=True), (2, 2), (2, 2)).tolist() == [[2, 2], [3, 3]]
    subject = expected_mask(scores, Way(subject=1), (2, 2), (2, 2))
    share = np.exp(2) / (np.exp(2) + 2)
    assert subject[0].tolist() == [round(255 * share)] * 2
    assert agreement(subject, np.where(subject > 127, 255, 0), "binary") == 1
    assert agreement(np.array([[1, 2]]), np.array([[1, 1]]), "classes") == 0.5
