"""What the gate says of INT8 is what other pictures show: for a network of three classes that has hardly learned anything."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calibration.metrics.agreement import iou
from compile.__main__ import main
from compile.networks.unet import UNet
from compile.program.open_network import open_network
from compile.proof.verify import program_masks
from pipeline.bundles.bundle import Bundle

SIZE, STEPS, BATCH = 96, 45, 6


def read(ecssd, last_digit, count):
    paths = sorted((ecssd / "images").glob(f"*{last_digit}.jpg"))[:count]
    pictures = [cv2.imread(str(path)) for path in paths]
    masks = [cv2.imread(str(ecssd / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) for path in paths]
    return pictures, masks


@pytest.fixture(scope="module")
def weights(ecssd, tmp_path_factory):
    """A U-Net that tells background, dark subject and bright subject apart, after 45 steps."""
    pictures, masks = read(ecssd, 0, 100)
    resized = np.stack([cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for picture in pictures])
    subject = np.stack([cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 127 for mask in masks])
    x = torch.from_numpy(resized[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(np.where(subject, np.where(resized.mean(-1) < 110, 1, 2), 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(3, 3, base_width=16).train()
        weight = torch.tensor((0.3, 1.0, 1.0))  # most of a picture is background
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(STEPS):
            batch = torch.randint(0, len(x), (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(network.logits(x[batch]), y[batch], weight).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("three") / "three.pth"
    torch.save(network.eval().state_dict(), path)
    return path


def test_int8_of_three_classes(weights, ecssd, tmp_path):
    bundle = tmp_path / "bundle"
    # Whatever it is worth: the figure is what counts here.
    command = ["-w", weights, "--imgsz", SIZE, "--precision", "int8", "--strict", "-q", "-o", bundle]
    command += ["--min-iou", "0", "--calib", ecssd / "images" / "*0.jpg"]
    assert main([str(item) for item in command]) == 0
    manifest = Bundle.read(bundle).manifest
    said = manifest.verification
    assert "held back" in said["source"]
    assert said["frames"] >= 24
    masks, _ = program_masks((bundle / "program.onnx").read_bytes())
    reference = open_network(Path(weights), "stream", imgsz=(SIZE, SIZE)).reference
    shown = [
        iou(masks(picture[None])[0], reference(picture[None]).masks_nhw[0], "classes")
        for picture in read(ecssd, 5, 25)[0]
    ]
    assert np.mean(shown) >= 0.985
    assert abs(float(np.mean(shown)) - said["iou_mean"]) < 0.03, (np.mean(shown), said["iou_mean"])
    assert said["iou_low"] - 0.03 < np.mean(shown) < said["iou_high"] + 0.03
