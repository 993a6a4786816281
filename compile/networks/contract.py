"""The contract: how a frame becomes a network's input, and its output a mask.

A network is only as good as the preprocessing it was trained with. Each checkpoint family has two contracts: "official" gives what
its authors' own script gives; "stream", the default, is steady on video: nothing depends on the extremes of one frame, and an empty
scene gives an empty mask.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import CompileError, OptionError
from pipeline.yaml_file import read_yaml

Channels = Literal["rgb", "bgr", "grey"]
Activation = Literal["sigmoid", "softmax", "none"]
Layout = Literal["nchw", "nhwc"]
Filter = Literal["bilinear", "area"]


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
        layout: axis order of the network's input, for a network of another family.
        output_layout: axis order of its output; None for that of the input.
        filter: how frames are resized: "area" averages all of a large frame's pixels, "bilinear" samples four for each pixel of the
            network's input, as OpenCV's INTER_LINEAR and scikit-image without anti-aliasing do.
        state: what a recurrent network keeps between frames: names of its inputs -> the outputs whose values they get for the next
            frame. They begin with zeros.
        constants: names of other inputs -> their one value.
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
    output_layout: Layout | None = None
    filter: Filter = "area"
    state: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def need(fits: bool, field: str, expected: str) -> None:
            if not fits:
                got = reprlib.repr(getattr(self, field))
                raise CompileError(f"contract {self.name}: {field}: expected {expected}, got {got}")

        count = 1 if self.channels == "grey" else 3
        need(self.channels in get_args(Channels), "channels", "rgb, bgr or grey")
        need(self.activation in get_args(Activation), "activation", "sigmoid, softmax or none")
        need(self.layout in get_args(Layout), "layout", "nchw or nhwc")
        need(self.output_layout in (None, *get_args(Layout)), "output_layout", "nchw or nhwc")
        need(self.filter in get_args(Filter), "filter", "bilinear or area")
        need(
            self.divide_by == "max" or (isinstance(self.divide_by, float) and 0 < self.divide_by < math.inf),
            "divide_by",
            "max or a number above 0",
        )
        numbers = f"{count} number{'s' if count > 1 else ''}"
        need(
            len(self.mean) == count and all(math.isfinite(value) for value in self.mean),
            "mean",
            f"{numbers} for {self.channels}",
        )
        need(
            len(self.std) == count and all(0 < value < math.inf for value in self.std),
            "std",
            f"{numbers} above 0 for {self.channels}",
        )
        need(
            len(self.imgsz) == 2 and all(1 <= side <= 8192 for side in self.imgsz),
            "imgsz",
            "height and width from 1 to 8192",
        )
        need(isinstance(self.stretch, bool), "stretch", "true or false")
        need(self.output is None or isinstance(self.output, str), "output", "a name")
        names = [*self.state, *self.state.values()] if isinstance(self.state, Mapping) else [None]
        need(
            all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names),
            "state",
            "input: output for each, and every name once",
        )
        values = list(self.constants.values()) if isinstance(self.constants, Mapping) else [math.nan]
        need(
            all(_is_number(value) and math.isfinite(value) for value in values),
            "constants",
            "input: number for each",
        )
        need(not set(self.constants) & set(self.state), "constants", "other inputs than those of state")

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Contract:
        """The contract of a bundle, from its manifest.

        Raises:
            CompileError: a value is wrong, a key unknown, or the name or the size missing.
        """
        known = [field.name for field in fields(cls)]
        if wrong := [key for key in entries if key not in known] + [
            key for key in ("name", "imgsz") if key not in entries
        ]:
            raise CompileError(f"the bundle's contract: missing or unknown {wrong[0]!r}: compile the bundle again")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()
        }
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The contract in the form of the manifest and of a contract file."""
        return asdict(self)


_IMAGENET = Contract("stream", (320, 320), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_DRIVE = Contract("stream", (592, 576), mean=(0.709, 0.381, 0.224), std=(0.127, 0.079, 0.043))
_PLAIN = Contract("stream", (512, 512))

CONTRACTS: Mapping[str, Mapping[str, Contract]] = {
    # checkpoint family (compile.networks.families): {name: contract}
    "u2net-official": {
        "stream": _IMAGENET,
        "official": replace(_IMAGENET, name="official", divide_by="max", stretch=True, filter="bilinear"),
    },
    "u2net": {"stream": _IMAGENET, "official": replace(_IMAGENET, name="official", filter="bilinear")},
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
    """Read a contract from YAML; what the file leaves out is as in ``base``, but the name, which is the file's.

    Raises:
        CompileError: it cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    entries = _read_entries(path)
    known = [field.name for field in fields(Contract)]
    for key in entries:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CompileError(f"--contract {path}: unknown key {reprlib.repr(key)}: {hint}")
    if "imgsz" not in entries and base is None:
        raise CompileError(f"--contract {path}: expected imgsz: [height, width], got none")
    values = {} if base is None else base.as_dict()
    count = 1 if entries.get("channels", values.get("channels")) == "grey" else 3
    if len(values.get("mean", ())) != count:
        # Mean and standard deviation of colours say nothing of grey, nor the other way.
        values |= {"mean": (0.0,) * count, "std": (1.0,) * count}
    given = {key: _typed(path, key, value) for key, value in entries.items()}
    return Contract(**{**values, "name": path.stem, **given})


def _read_entries(path: Path) -> dict[Any, Any]:
    try:
        entries = read_yaml(path, "--contract")
    except OptionError as error:
        raise CompileError(str(error)) from error
    if not isinstance(entries, dict):
        got = "nothing" if entries is None else type(entries).__name__
        raise CompileError(f"--contract {path}: expected 'key: value' lines, got {got}")
    return entries


def _typed(path: Path, key: str, value: Any) -> Any:
    """A value of the file in the type of its field; what else is wrong with it, ``Contract`` says."""
    expected = ""
    if key == "name":
        expected = "" if isinstance(value, str) and value else "a name"
    elif key == "imgsz":
        sides = value if isinstance(value, list) else [value, value]
        if len(sides) == 2 and all(type(side) is int for side in sides):
            return tuple(sides)
        expected = "a whole number or [height, width]"
    elif key in ("mean", "std"):
        if isinstance(value, list) and all(_is_number(number) for number in value):
            return tuple(float(number) for number in value)
        expected = "a list of numbers, one for each channel"
    elif key in ("state", "constants"):
        # YAML reads a name of digits as a number.
        if isinstance(value, dict):
            return {str(name): str(one) if key == "state" else one for name, one in value.items()}
        expected = "input: output for each" if key == "state" else "input: number for each"
    elif key == "divide_by":
        if _is_number(value):
            return float(value)
        expected = "" if value == "max" else "max or a number above 0"
    elif key == "classes" and value is not None:
        # Not bool: YAML reads a class called "no" as false.
        if isinstance(value, list) and value and all(type(name) in (str, int) for name in value):
            return tuple(str(name) for name in value)
        expected = "a list of names, in quotes where YAML takes them for something else"
    if expected:
        raise CompileError(f"--contract {path}: {key}: expected {expected}, got {reprlib.repr(value)}")
    return value


def _is_number(value: Any) -> bool:
    # A whole number can be too large for float().
    return type(value) is float or (type(value) is int and abs(value) < 1 << 64)
