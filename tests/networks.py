"""Small networks that answer to what they see, and pictures with something in them."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compile.networks.u2net import U2Net
from compile.networks.unet import UNet

TINY_STAGES = ((3, 2, 4), *((4, 2, 4),) * 5, *((8, 2, 4),) * 5)


@pytest.fixture(scope="session")
def tiny_unet():
    """``tiny_unet(n_classes, bilinear, n_channels)``: random, but its scores spread over the picture."""

    def build(n_classes=1, bilinear=False, n_channels=3):
        torch.manual_seed(n_classes)
        network = UNet(n_channels, n_classes, bilinear, base_width=4)
        return _spread_scores(network, network.outc.conv, n_channels)

    return build


@pytest.fixture(scope="session")
def tiny_u2net():
    """``tiny_u2net(out_channels)``: as ``tiny_unet``."""

    def build(out_channels=1):
        torch.manual_seed(out_channels)
        network = U2Net(out_channels, TINY_STAGES)
        return _spread_scores(network, network.out_conv, 3)

    return build


def _spread_scores(network, last, n_channels):
    # A fresh network's mask is one shade of grey, in which no mistake shows.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    x = F.interpolate(torch.randn(8, n_channels, 8, 8), (64, 64), mode="bilinear")
    with torch.no_grad():
        network.train()
        network(x)
        network.eval()
        scores = network.logits(x)
        spread = 3 / scores.std((0, 2, 3))
        last.bias.copy_((last.bias - scores.mean((0, 2, 3))) * spread)
        last.weight.mul_(spread[:, None, None, None])
    return network


@pytest.fixture(scope="session")
def pictures():
    """``pictures(count, height, width)``: (N, H, W, 3) uint8, soft coloured blobs, other ones each."""

    def make(count, height, width, seed=0):
        random = np.random.default_rng(seed)
        blobs = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        return np.stack([cv2.resize(blob, (width, height), interpolation=cv2.INTER_CUBIC) for blob in blobs])

    return make
