"""The ways in which networks want their pixels scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compile.networks.contract import Contract

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Scaling:
    """Pixels to a network's input: divided, mean subtracted, divided by the standard deviation.

    Attributes:
        name: for people.
        divide_by: as in ``Contract``.
        mean: of red, green and blue, after the division.
        std: the same.
    """

    name: str
    divide_by: float | Literal["max"] = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


UNIT = Scaling("0 to 1")
IMAGENET = Scaling("ImageNet's mean and std", mean=IMAGENET_MEAN, std=IMAGENET_STD)
IMAGENET_TURNED = Scaling("ImageNet's mean and std, red's for blue", mean=IMAGENET_MEAN[::-1], std=IMAGENET_STD[::-1])
SYMMETRIC = Scaling("-1 to 1 (mean and std 0.5)", mean=(0.5,) * 3, std=(0.5,) * 3)
CENTERED = Scaling("-0.5 to 0.5 (mean 0.5, std 1)", mean=(0.5,) * 3)
BYTES = Scaling("0 to 255", divide_by=1.0)
CAFFE = Scaling("0 to 255 without Caffe's mean", divide_by=1.0, mean=(123.68, 116.779, 103.939))
BY_MAXIMUM = Scaling("divided by the frame's maximum", divide_by="max")
IMAGENET_BY_MAXIMUM = replace(IMAGENET, name="ImageNet's mean and std, by the frame's maximum", divide_by="max")

SCALINGS = (UNIT, IMAGENET, SYMMETRIC, CENTERED, BYTES, CAFFE, IMAGENET_BY_MAXIMUM, BY_MAXIMUM, IMAGENET_TURNED)
"""What is tried on examples, the most usual first."""


def scaled(contract: Contract, scaling: Scaling) -> Contract:
    """A contract with another scaling; its mean and standard deviation follow the contract's channels."""
    mean, std = scaling.mean, scaling.std
    count = len(contract.mean)
    if count != len(mean):  # of gray, and of more channels than colors
        mean, std = (sum(mean) / len(mean),) * count, (sum(std) / len(std),) * count
    elif contract.channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    return replace(contract, divide_by=scaling.divide_by, mean=mean, std=std)


def scaling_of(contract: Contract) -> Scaling | None:
    """The scaling of a contract, if it is a usual one."""
    for scaling in SCALINGS:
        usual = scaled(contract, scaling)
        if (
            usual.divide_by == contract.divide_by
            and np.allclose(usual.mean, contract.mean, atol=2e-3)
            and np.allclose(usual.std, contract.std, atol=2e-3)
        ):
            return scaling
    return None


def known_order(mean: Sequence[float]) -> Literal["rgb", "bgr"] | None:
    """Which order of channels a mean tells, where it is one of the usual ones with its three numbers apart."""
    for usual in (np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_MEAN), np.array(CAFFE.mean)):
        near = 0.01 * float(usual.max())
        if len(mean) == 3 and np.allclose(mean, usual, atol=near):
            return "rgb"
        if len(mean) == 3 and np.allclose(mean, usual[::-1], atol=near):
            return "bgr"
    return None
