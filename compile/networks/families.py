"""The four families of checkpoints in use: how each one names the weights, and which network its shapes belong to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from compile.networks.u2net import DECODER_HEIGHTS, ENCODER_HEIGHTS, FULL, LITE, StageTable, U2Net
from compile.networks.unet import UNet

FamilyName = Literal["unet", "unet-base32", "u2net-official", "u2net"]


@dataclass(frozen=True)
class Fit:
    """The network that a set of weights belongs to.

    Attributes:
        network: On the meta device: shapes without memory.
        architecture: Its name in ``compile.networks.MODELS``.
        n_channels: Channels of its input.
        n_classes: Channels of its output.
        classes_key: Our name of the weight that says how many classes there are.
    """

    network: UNet | U2Net
    architecture: str
    n_channels: int
    n_classes: int
    classes_key: str


@dataclass(frozen=True)
class Family:
    """One way to name the weights of one network.

    Attributes:
        name: The family's name; it decides how frames are prepared and masks are read.
        description: What users call it.
        file_key: Our name of a weight -> the family's.
        skeleton: The names in a file -> the narrowest network, on the meta device, whose weights the file must have.
        fit: Weights by our names, complete -> the network of their widths.
    """

    name: FamilyName
    description: str
    file_key: Callable[[str], str]
    skeleton: Callable[[Collection[str]], UNet | U2Net]
    fit: Callable[[Mapping[str, torch.Tensor]], Fit]

    def needed(self, keys: Collection[str]) -> list[str]:
        """The family's names of the weights that a file with such names must have."""
        names = self.skeleton(keys).state_dict()
        return [self.file_key(name) for name in names if not name.endswith(".num_batches_tracked")]


@cache
def family_names() -> frozenset[str]:
    """Every name that a family's files can have for a weight they must have."""
    transposed = [f"up{level}.up.weight" for level in range(1, 5)]
    return frozenset(key for family in FAMILIES for key in family.needed(transposed))


def find_family(keys: Collection[str]) -> Family | None:
    """Tell which family a file's names belong to: the one with the most of its own there, None with less than half."""

    def share(family: Family) -> float:
        needed = family.needed(keys)
        return sum(key in keys for key in needed) / len(needed)

    shares = [(share(family), family) for family in FAMILIES]
    largest, best = max(shares, key=lambda pair: pair[0])
    return best if largest >= 0.5 else None


def _unet_skeleton(keys: Collection[str]) -> UNet:
    # Both families name the transposed convolutions alike; bilinear enlarging has no weights.
    return _narrowest_unet(bilinear=not any(f"up{level}.up.weight" in keys for level in range(1, 5)))


@cache
def _narrowest_unet(bilinear: bool) -> UNet:
    with torch.device("meta"):
        return UNet(1, 1, bilinear, base_width=1)


def _fit_unet(weights: Mapping[str, torch.Tensor]) -> Fit:
    base_width, n_channels = weights["inc.double_conv.0.weight"].shape[:2]
    n_classes = weights["outc.conv.weight"].shape[0]
    with torch.device("meta"):
        network = UNet(n_channels, n_classes, "up1.up.weight" not in weights, base_width)
    return Fit(network, "unet", n_channels, n_classes, "outc.conv.weight")


@cache
def narrowest_u2net() -> U2Net:
    """Build a U²-Net of one channel everywhere, on the meta device: the graph and the names without the weights.

    Returns:
        In evaluation mode. The same object on every call: read it only.
    """
    with torch.device("meta"):
        return U2Net(1, ((1, 1, 1),) * 6 + ((2, 1, 1),) * 5).eval()


def _fit_u2net(weights: Mapping[str, torch.Tensor]) -> Fit:
    rows: list[tuple[int, int, int]] = []
    for stage in [*(f"encode_modules.{i}" for i in range(6)), *(f"decode_modules.{i}" for i in range(5))]:
        out_channels, in_channels = weights[f"{stage}.conv_in.conv.weight"].shape[:2]
        rows.append((in_channels, weights[f"{stage}.encode_modules.0.conv.weight"].shape[0], out_channels))
    stages: StageTable = tuple(rows)
    n_classes = weights["out_conv.weight"].shape[0]
    with torch.device("meta"):
        network = U2Net(n_classes, stages)
    n_channels = rows[0][0]
    # Input channels are an option of the full and the lite network, not another table.
    known = {
        ((n_channels, *table[0][1:]), *table[1:]): name for name, table in (("u2net_full", FULL), ("u2net_lite", LITE))
    }
    return Fit(network, known.get(stages, "u2net"), n_channels, n_classes, "out_conv.weight")


def _same_key(key: str) -> str:
    return key


def _unet_base32_key(key: str) -> str:
    key = key.replace(".maxpool_conv.1.double_conv.", ".1.").replace(".double_conv.", ".")
    top, _, rest = key.partition(".")
    if top == "outc":
        return "out_conv.0." + rest.removeprefix("conv.")
    return f"in_conv.{rest}" if top == "inc" else key


def _u2net_official_key(key: str) -> str:
    top, _, rest = key.partition(".")
    if top == "out_conv":
        return f"outconv.{rest}"
    index, _, rest = rest.partition(".")
    if top == "side_modules":
        return f"side{6 - int(index)}.{rest}"
    # Decoder stages are counted from the input's side, as the units of the way up are inside a stage.
    deeper = top == "encode_modules"
    stage = f"stage{int(index) + 1}" if deeper else f"stage{5 - int(index)}d"
    height = (ENCODER_HEIGHTS if deeper else DECODER_HEIGHTS)[int(index)]
    part, _, rest = rest.partition(".")
    if part == "conv_in":
        unit = "rebnconvin"
    else:
        place, _, rest = rest.partition(".")
        unit = f"rebnconv{int(place) + 1}" if part == "encode_modules" else f"rebnconv{height - 1 - int(place)}d"
    layer, _, rest = rest.partition(".")
    return f"{stage}.{unit}.{layer}_s1.{rest}"


FAMILIES = (
    Family("unet", "U-Net (inc, down1 … outc)", _same_key, _unet_skeleton, _fit_unet),
    Family("unet-base32", "U-Net (in_conv, down1 … out_conv)", _unet_base32_key, _unet_skeleton, _fit_unet),
    Family(
        "u2net-official", "U²-Net (stage1 … outconv)", _u2net_official_key, lambda _keys: narrowest_u2net(), _fit_u2net
    ),
    Family("u2net", "U²-Net (encode_modules … out_conv)", _same_key, lambda _keys: narrowest_u2net(), _fit_u2net),
)
