"""INT8 of a trained network on real pictures: what random weights cannot show."""

import importlib.util
from pathlib import Path

import cv2
import pytest
import torch

from compile.__main__ import main
from pipeline.bundles.bundle import Bundle

_spec = importlib.util.spec_from_file_location("trained_unet", Path(__file__).with_name("trained_unet.py"))
trained_unet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(trained_unet)


def read_pairs(ecssd, last_digit):
    """Pictures and masks of the data set whose names end with a digit."""
    paths = sorted((ecssd / "images").glob(f"*{last_digit}.jpg"))
    masks = [cv2.imread(str(ecssd / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) for path in paths]
    return [cv2.imread(str(path)) for path in paths], masks


@pytest.fixture(scope="session")
def trained(ecssd, tmp_path_factory):
    """The network, and its checkpoint."""
    network = trained_unet.train_unet(*read_pairs(ecssd, 0))
    path = tmp_path_factory.mktemp("trained") / "unet.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_the_network_has_learned(trained, ecssd):
    network, _ = trained
    pictures, masks = read_pairs(ecssd, 5)
    with torch.inference_mode():
        found = torch.cat([network.logits(x) for x in trained_unet.to_input(pictures).split(10)]) > 0
    truth = trained_unet.to_target(masks) > 0
    ious = (found & truth).sum((1, 2, 3)) / (found | truth).sum((1, 2, 3))
    shares = found.float().mean((1, 2, 3))
    assert float(ious.mean()) > 0.45  # of the pictures it has not seen
    assert int(((shares > 0.005) & (shares < 0.95)).sum()) >= 95


def test_a_trained_network_in_int8_keeps_its_masks(trained, ecssd, tmp_path, capsys):
    _, weights = trained
    images = ecssd / "images"
    arguments = [
        "--weights",
        weights,
        "--precision",
        "int8",
        "--strict",
        "--imgsz",
        trained_unet.SIZE,
        "--min-iou",
        "0.97",
    ]
    arguments += ["--calib", images / "*0.jpg", "--calib-size", "32"]
    arguments += ["--verify", images / "*5.jpg", "--verify-count", "32", "--output", tmp_path / "bundle"]
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr()
    manifest = Bundle.read(tmp_path / "bundle").manifest
    assert manifest.precision == "int8"
    assert manifest.verification["frames"] == 32
    assert manifest.verification["iou_mean"] >= 0.985
    assert manifest.verification["constant"] == 0
    assert manifest.calibration["frames"] == 32
    assert manifest.calibration["share_of_work"] >= 0.85
