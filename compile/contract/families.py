"""Well-known families of segmentation networks: how they are recognized, and how they want their pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compile.contract.scaling import CENTERED, IMAGENET, IMAGENET_TURNED, SYMMETRIC, UNIT, Scaling

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
    *("car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of Pascal VOC, in the order of torchvision's weights."""


@dataclass(frozen=True)
class Family:
    """What is known of a family.

    Attributes:
        name: for people.
        signs: regular expressions; each is found in one of the network's names at least.
        scaling: how it was trained.
        size: side of its pictures where the file leaves it open; None where it has no usual one.
        channels: order of its colors.
        classes: names of its classes, if it has as many.
        doubt: why the scaling may be another all the same; empty where it is sure.
        sure_of_order: whether the family always has this order of colors.
    """

    name: str
    signs: tuple[str, ...]
    scaling: Scaling
    size: int | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    classes: tuple[str, ...] = ()
    doubt: str = ""
    sure_of_order: bool = True


_PADDLE = r"^(producer|graph):paddle|^p2o\.|^conv2d_\d+\.w_\d"

FAMILIES = (
    Family(
        "segmentation_models_pytorch",
        (r"(^|\.)segmentation_head\.", r"(^|\.)decoder\."),
        IMAGENET,
        doubt="its encoders' default; some encoders of timm want mean and std 0.5",
    ),
    Family(
        "torchvision's segmentation networks",
        (r"(^|\.)backbone\.", r"(^|\.)classifier\.(4|low_classifier)\b"),
        IMAGENET,
        520,
        classes=VOC,
    ),
    Family("SegFormer", (r"(^|\.)segformer\.", r"(^|\.)decode_head\."), IMAGENET, 512),
    Family(
        "mmsegmentation", (r"(^|\.)decode_head\.conv_seg\b",), IMAGENET, 512, doubt="the default of its configurations"
    ),
    Family("MODNet", (r"(^|\.)lr_branch\.", r"(^|\.)(hr_branch|f_branch)\."), SYMMETRIC, 512),
    Family("IS-Net", (r"(^|\.)stage1\.rebnconvin\.", r"(^|\.)conv_in\."), CENTERED, 1024),
    Family("IS-Net", (r"^file:(isnet|rmbg|dis[-_])",), CENTERED, 1024),
    Family("U²-Net", (r"(^|\.)stage1\.rebnconvin\.",), IMAGENET, 320),
    Family("U²-Net", (r"^file:(u2net|silueta)",), IMAGENET, 320),
    Family("BiRefNet", (r"(^|\.)bb\.", r"(^|\.)squeeze_module\."), IMAGENET, 1024),
    Family("BiRefNet", (r"^file:birefnet",), IMAGENET, 1024),
    Family("face parsing by BiSeNet", (r"(^|\.)cp\.resnet\.", r"(^|\.)conv_out\."), IMAGENET, 512),
    Family("MediaPipe selfie segmentation", (r"^file:.*selfie", r"^shape:.*x3$"), UNIT, 256),
    Family(
        "MediaPipe selfie segmentation",
        (r"^shape:(256x256|144x256)x3$", r"^classes:1$", r"^ends:sigmoid$"),
        UNIT,
        doubt="told by its shape alone",
        sure_of_order=False,
    ),
    Family(
        "PaddleOCR's text detector",
        (_PADDLE, r"^classes:1$", r"^ends:sigmoid$"),
        IMAGENET_TURNED,
        channels="bgr",
        doubt="PaddleOCR's training; RapidOCR runs it with mean and std 0.5",
    ),
    Family("PaddleSeg", (_PADDLE,), SYMMETRIC, doubt="the default of its configurations"),
)
"""In the order in which they are asked: the surer sign first."""


def family_of(names: Iterable[str]) -> Family | None:
    """The family that a network's names tell.

    Args:
        names: of ``Traits``; and of a network that was tried "classes:N", "ends:ACTIVATION", "shape:HxWxC" where channels come last.
    """
    text = "\n".join(names)
    for family in FAMILIES:
        if all(re.search(sign, text, re.MULTILINE | re.IGNORECASE) for sign in family.signs):
            return family
    return None
