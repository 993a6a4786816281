"""The contract: how a frame becomes a network's input, and its output a mask.

A network is only as good as the preprocessing it was trained with. Each checkpoint family has two contracts: "official" gives what
its authors' own script gives; "stream", the default, is steady on video: nothing depends on the extremes of one frame, and an empty
scene gives an empty mask.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from compile.errors import CompileError

Channels = Literal["rgb", "bgr", "grey"]
Activation = Literal["sigmoid", "softmax", "none"]
Layout = Literal["nchw", "nhwc"]

FILE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Contract:
    """How frames go in and masks come out.

    Attributes:
        name: what it is called in the manifest.
        channels: order of the network's input channels.
        divide_by: pixels are divided by this number, or by "max", the frame's own largest value.
        mean: subtracted after the division, one number for each channel.
        std: divided by after that, one number for each channel.
        imgsz: (height, width) inside the network.
        activation: what turns the network's output into probabilities: "sigmoid", "softmax", or "none" when it gives them itself.
        stretch: stretch each mask to its own minimum and maximum (one class only).
        classes: names; None to number them.
        output: name of the output to use, for a network of another family; None for its first.
        layout: axis order of the network's input and output, for a network of another family.
    """

    name: str
    imgsz: tuple[int, int]
    channels: Channels = "rgb"
    divide_by: float | Literal["max"] = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    activation: Activation = "sigmoid"
    stretch: bool = False
    classes: tuple[str, ...] | None = None
    output: str | None = None
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        def need(fits: bool, field: str, expected: str) -> None:
            if not fits:
                raise CompileError(f"contract {self.name}: {field}: expected {expected}, got {getattr(self, field)!r}")

        count = 1 if self.channels == "grey" else 3
        need(self.channels in get_args(Channels), "channels", "rgb, bgr or grey")
        need(self.activation in get_args(Activation), "activation", "sigmoid, softmax or none")
        need(self.layout in get_args(Layout), "layout", "nchw or nhwc")
        need(
            self.divide_by == "max" or (isinstance(self.divide_by, float) and self.divide_by > 0),
            "divide_by",
            "max or a number above 0",
        )
        need(len(self.mean) == count, "mean", f"{count} numbers for {self.channels}")
        need(
            len(self.std) == count and all(value > 0 for value in self.std),
            "std",
            f"{count} numbers above 0 for {self.channels}",
        )
        need(
            len(self.imgsz) == 2 and all(1 <= side <= 8192 for side in self.imgsz),
            "imgsz",
            "height and width from 1 to 8192",
        )
        need(isinstance(self.stretch, bool), "stretch", "true or false")

    def as_dict(self) -> dict[str, Any]:
        """The contract in the form of the manifest and of a contract file."""
        return asdict(self)


_IMAGENET = Contract("stream", (320, 320), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_DRIVE = Contract("stream", (592, 576), mean=(0.709, 0.381, 0.224), std=(0.127, 0.079, 0.043))
_PLAIN = Contract("stream", (512, 512))

CONTRACTS: Mapping[str, Mapping[str, Contract]] = {
    # checkpoint family (models.families): {name: contract}
    "u2net-official": {
        "stream": _IMAGENET,
        "official": replace(_IMAGENET, name="official", divide_by="max", stretch=True),
    },
    "u2net": {"stream": _IMAGENET, "official": replace(_IMAGENET, name="official")},
    "unet": {"stream": _PLAIN, "official": replace(_PLAIN, name="official")},
    "unet-base32": {"stream": _DRIVE, "official": replace(_DRIVE, name="official")},
}


def built_in_contract(family: str, name: str, n_channels: int) -> Contract:
    """The contract of a checkpoint family by its name; a network with one input channel gets grey pictures.

    Raises:
        CompileError: no such name, or a number of channels that no picture has.
    """
    contracts = CONTRACTS[family]
    if name not in contracts:
        raise CompileError(f"--contract: expected {', '.join(contracts)} or a YAML file, got {name!r}: no such file")
    contract = contracts[name]
    if n_channels == 1:
        mean, std = sum(contract.mean) / 3, sum(contract.std) / 3
        return replace(contract, channels="grey", mean=(mean,), std=(std,))
    if n_channels != 3:
        raise CompileError(
            f"the network: expected 3 input channels (or 1, for grey), got {n_channels}: frames have no more"
        )
    return contract


def read_contract(path: Path, base: Contract | None = None) -> Contract:
    """Read a contract from YAML; what the file leaves out is as in ``base``.

    Raises:
        CompileError: it cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    try:
        text = path.read_bytes()[: FILE_LIMIT_BYTES + 1]
    except OSError as error:
        raise CompileError(f"--contract {path}: cannot be read ({error.strerror})") from error
    if len(text) > FILE_LIMIT_BYTES:
        raise CompileError(f"--contract {path}: expected at most {FILE_LIMIT_BYTES} bytes, got more")
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CompileError(f"--contract {path}: expected YAML, got: {str(error).splitlines()[0]}") from error
    if not isinstance(entries, dict):
        raise CompileError(f"--contract {path}: expected 'key: value' lines, got {type(entries).__name__}")
    known = [field.name for field in fields(Contract)]
    for key in entries:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CompileError(f"--contract {path}: unknown key {key!r}: {hint}")
    values = {} if base is None else base.as_dict()
    if entries.get("channels") == "grey":
        values |= {"mean": (0.0,), "std": (1.0,)}
    if "imgsz" not in entries and base is None:
        raise CompileError(f"--contract {path}: expected imgsz: [height, width], got none")
    try:
        return Contract(**{"name": path.stem, **values, **{key: _typed(key, value) for key, value in entries.items()}})
    except (TypeError, ValueError) as error:
        raise CompileError(f"--contract {path}: a value of the wrong kind ({error})") from error


def _typed(key: str, value: Any) -> Any:
    if key == "imgsz":
        sides = value if isinstance(value, list) else [value, value]
        return tuple(int(side) for side in sides)
    if key in ("mean", "std"):
        return tuple(float(number) for number in value)
    if key == "divide_by" and value != "max":
        return float(value)
    if key == "classes" and value is not None:
        return tuple(str(name) for name in value)
    return value
