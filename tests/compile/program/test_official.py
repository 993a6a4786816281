"""The official contract against what the authors of U²-Net run: their published network, and their script's arithmetic step by step."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from calibration.metrics.agreement import iou
from calibration.sets.photographs import PhotographSource
from compile.program.open_network import open_network
from pipeline.sources.picture_file import read_picture

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("golden") / "official"
PICTURES = ROOT / "samples" / "pictures"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def authors(published_u2netp):
    """``authors(image)``: the mask of the published network, as the authors' script makes it."""
    session = onnxruntime.InferenceSession(str(published_u2netp), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def mask(image):
        # In floating point, as their scikit-image resizes: rounded to 8 bits here, U²-NetP's masks move by up to 0.03 of IoU.
        x = cv2.resize(image.astype(np.float32), (320, 320), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
        x = (x / x.max() - MEAN) / STD
        d = session.run(None, {name: x.transpose(2, 0, 1)[None].astype(np.float32)})[0][0, 0]
        d = (d - d.min()) / (d.max() - d.min())
        size_wh = image.shape[1::-1]
        return np.asarray(Image.fromarray(d * 255).convert("RGB").resize(size_wh, Image.Resampling.BILINEAR))[:, :, 0]

    return mask


@pytest.fixture(scope="module")
def ours(published_u2netp):
    reference = open_network(published_u2netp, "official").reference
    return lambda image: reference(image[None]).masks_nhw[0]


def test_on_ten_pictures_the_masks_are_the_authors(authors, ours):
    agreements = []
    for frame in PhotographSource("verification"):
        expected = authors(frame.image)
        # Stretched to its own largest value even an empty scene has a mask: of a few pixels, whose IoU says nothing.
        if np.mean(expected >= 128) > 0.01:
            agreements.append(iou(ours(frame.image), expected))
        if len(agreements) == 10:
            break
    assert len(agreements) == 10
    assert min(agreements) >= 0.995, agreements


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee", "rocket"])
def test_golden_masks(authors, ours, name):
    """PNGs that the authors' steps gave once: neither side may drift."""
    image = read_picture(PICTURES / f"{name}.jpg")
    golden = cv2.imread(str(GOLDEN / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    assert iou(authors(image), golden) >= 0.999
    assert iou(ours(image), golden) >= 0.995
    assert np.mean(np.abs(ours(image).astype(int) - golden)) < 1
