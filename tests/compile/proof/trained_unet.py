"""A small U-Net trained on real pictures: the weights of random networks have none of the outliers that make INT8 hard."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from compile.networks.unet import UNet

BASE_WIDTH = 16
SIZE = 96
BATCH = 5
# (epochs, height and width): shapes are learned on small pictures at half the price, contours at the end.
STAGES = ((22, 64), (12, SIZE))


def train_unet(pictures, masks):
    """Train a U-Net to find the subject of a picture; about a minute on one core for a hundred pictures.

    Args:
        pictures: (H, W, 3) uint8 BGR each, a multiple of ``BATCH`` of them, of any sizes.
        masks: (H, W) uint8 each, 255 where the subject is.

    Returns:
        In evaluation mode, for RGB from 0 to 1 at ``SIZE``; the same on every run with the same number of threads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(3, 1, base_width=BASE_WIDTH).to(memory_format=torch.channels_last).train()
        x, y = to_input(pictures), to_target(masks)
        batches = len(x) // BATCH
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, total_steps=batches * sum(epochs for epochs, _ in STAGES), pct_start=0.2
        )
        for size in (size for epochs, size in STAGES for _ in range(epochs)):
            for batch in torch.randperm(len(x)).view(batches, BATCH):
                batch_x, batch_y = _flip_and_zoom(x[batch], y[batch], size)
                optimizer.zero_grad()
                _loss(network(batch_x.contiguous(memory_format=torch.channels_last)), batch_y).backward()
                optimizer.step()
                schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()


def to_input(pictures: Sequence[np.ndarray]):
    """Any pictures to (N, 3, SIZE, SIZE) float RGB from 0 to 1."""
    resized = [cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for picture in pictures]
    return torch.from_numpy(np.stack(resized)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255


def to_target(masks: Sequence[np.ndarray]):
    """Any masks to (N, 1, SIZE, SIZE) float, 0 or 1."""
    resized = [cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for mask in masks]
    return torch.from_numpy(np.stack(resized) > 127).float()[:, None]


def _flip_and_zoom(x, y, size):
    """Half of the pictures mirrored, parts of 80 to 100 % of each side, in other light."""
    count = len(x)
    zoom = 1 - 0.2 * torch.rand(count, 2)
    transform = torch.zeros(count, 2, 3)
    transform[:, 0, 0] = zoom[:, 0] * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    transform[:, 1, 1] = zoom[:, 1]
    transform[:, :, 2] = (1 - zoom) * (2 * torch.rand(count, 2) - 1)  # inside of the picture
    grid = F.affine_grid(transform, [count, 3, size, size], align_corners=False)
    x, y = (F.grid_sample(image, grid, padding_mode="border", align_corners=False) for image in (x, y))
    return x * (1 + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5)), y


def _loss(logits, y):
    probability = logits.sigmoid()
    shared = (probability * y).sum((1, 2, 3))
    union = (probability + y).sum((1, 2, 3)) - shared
    return F.binary_cross_entropy_with_logits(logits, y) + (1 - (shared + 1) / (union + 1)).mean()
