"""A stand-in for Carvana's published U-Net: the same architecture, trained on a task of its kind, a subject before a studio's wall.

The published weights are on a server that is not always within reach, and their pictures are a competition's. Subjects are cut out of a
data set with ground truth and stand before smooth walls with a shadow, lit from a side. Those of the pictures whose names end in 0 are
trained and calibrated on, those whose names end in 5 are measured on:

    python -m benchmarks.peers.carvana --data DIR --output studio
    python -m compile --weights studio/unet.pth --imgsz 128 --precision int8 --calib 'studio/images/*0.png' --output studio/int8
    python -m benchmarks int8 --data studio --weights studio/unet.pth --bundle studio/int8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from compile.networks.unet import UNet

SIZE = 128
"""Height and width of the pictures."""

_BATCH, _RATE = 4, 3e-4
_SHADOW = 0.35

Picture = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""(H, W, 3) BGR, and (H, W) 255 where the subject is."""


def subjects(data: Path, last_digit: str) -> list[Picture]:
    """Pictures of a data set whose names end in a digit, with ground truth, at ``SIZE``."""
    found = []
    for path in sorted((data / "images").glob(f"*{last_digit}.jpg")):
        mask = cv2.imread(str(data / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        image = cv2.imread(str(path))
        if image is not None and mask is not None:
            found.append(tuple(cv2.resize(each, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for each in (image, mask)))
    return found  # type: ignore[return-value]


def before_a_wall(subject: Picture, generator: np.random.Generator) -> Picture:
    """One subject, moved and turned, before a wall of its own color with a gradient, noise and the subject's shadow."""
    image, mask = subject
    if generator.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), generator.uniform(-15, 15), generator.uniform(0.7, 1.1))
    turn[:, 2] = turn[:, 2] + generator.uniform(-SIZE / 10, SIZE / 10, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(image), turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
    alpha = cv2.warpAffine(np.ascontiguousarray(mask), turn, (SIZE, SIZE)).astype(np.float32)[..., None] / 255
    across, down = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    light = 1 + 0.35 * (generator.uniform(-1, 1) * across + generator.uniform(-1, 1) * down)
    wall = generator.uniform(60, 220) * light[..., None] * generator.uniform(0.9, 1.1, 3)
    fall = np.roll(cv2.GaussianBlur(alpha, (0, 0), SIZE / 24), (SIZE // 20, int(generator.integers(-8, 9))), (0, 1))
    wall = wall * (1 - _SHADOW * fall[..., None]) + generator.normal(0, 3, (SIZE, SIZE, 3))
    shown = moved * generator.uniform(0.7, 1.2) * alpha + wall * (1 - alpha)
    return shown.clip(0, 255).astype(np.uint8), np.where(alpha[..., 0] >= 0.5, 255, 0).astype(np.uint8)


def train(found: Sequence[Picture], steps: int) -> UNet:
    """The U-Net with one class after so many steps."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    network = UNet(3, 1).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = tqdm(range(steps), unit=" steps")
    for _ in progress:
        chosen = generator.integers(0, len(found), _BATCH)
        images, masks = zip(*(before_a_wall(found[index], generator) for index in chosen), strict=True)
        x = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(np.stack(masks)[:, None]).float() / 255
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.logits(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{float(loss.detach()):.4f}", refresh=False)
    return network.eval()


def main() -> None:
    """Write DIR/unet.pth, DIR/images and DIR/masks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.carvana", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="a folder with images/ and masks/ of the same names"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="of training (default: %(default)s)")
    options = parser.parse_args()
    generator = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    for last_digit in "05":
        for index, subject in enumerate(subjects(options.data, last_digit)):
            image, mask = before_a_wall(subject, generator)
            name = f"{index:03d}{last_digit}.png"
            cv2.imwrite(str(options.output / "images" / name), image)
            cv2.imwrite(str(options.output / "masks" / name), mask)
    network = train(subjects(options.data, "0"), options.steps)
    torch.save({name: value.contiguous() for name, value in network.state_dict().items()}, options.output / "unet.pth")


if __name__ == "__main__":
    main()
