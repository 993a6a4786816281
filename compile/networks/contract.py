"""The contract: how a frame becomes a network's input, and its output a mask.

A network is only as good as the preprocessing it was trained with. Each checkpoint family has two contracts: "official" gives what
its authors' own script gives; "stream", the default, is steady on video: nothing depends on the extremes of one frame, and an empty
scene gives an empty mask.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import CompileError, OptionError
from pipeline.frames.pixels import MOST_CHANNELS, Bands, Pixels
from pipeline.terminal import logger_of
from pipeline.yaml_file import read_yaml

Channels = Literal["rgb", "bgr", "grey"] | int
_ORDERS = ("rgb", "bgr", "grey")
Activation = Literal["sigmoid", "softmax", "none"]
Layout = Literal["nchw", "nhwc"]
OutputLayout = Literal["nchw", "nhwc", "nhw", "chw", "hwc", "hw"]
Upsampling = Literal["scores", "classes"]
Filter = Literal["bilinear", "area"]
Fit = Literal["stretch", "letterbox", "cover"]


def channel_count(channels: object) -> int:
    """How many channels a network has whose contract says so; 0 for a value that none may say."""
    if type(channels) is int:
        return channels if 1 <= channels <= MOST_CHANNELS else 0
    return 1 if channels == "grey" else 3


# Mean and standard deviation of pixels are within their range; this many times beyond it they are in another unit.
_BEYOND = 4
# A range of pixels that is not 0 to 1, nor -1 to 1 and the like.
_LARGE_RANGE = 100

log = logger_of(__name__)


_Need = Callable[[bool, str, str], None]


@dataclass(frozen=True, slots=True)
class Contract:
    """How frames go in and masks come out.

    Attributes:
        name: what it is called in the manifest.
        channels: order of the network's input channels: "rgb", "bgr" or "grey" of ordinary pictures; or a number, 1 to 16, for channels
            as files have them.
        divide_by: pixels are divided by this number, or by "max", the frame's own largest value.
        mean: subtracted after the division, one number for each channel.
        std: divided by after that, one number for each channel.
        imgsz: (height, width) inside the network.
        activation: what turns the network's output into probabilities: "sigmoid", "softmax", or "none" when it gives them itself.
        stretch: stretch each mask to its own minimum and maximum (one class only).
        classes: names; None to number them.
        output: name of the output to use, for a network of another family; None for its first.
        layout: axis order of the network's input, for a network of another family.
        output_layout: axis order of its output, in which n and c may be missing; None to find it by the output's shape.
        filter: how frames are resized: "area" averages all of a large frame's pixels, "bilinear" samples four for each pixel of the
            network's input, as OpenCV's INTER_LINEAR and scikit-image without anti-aliasing do.
        subject: of several channels, the one whose probability is the mask; None for a class mask of all.
        multilabel: several channels with a probability each, that need not add up to 1.
        upsample: what of several classes is enlarged to the frame's size; None for scores where they are smaller than the network's
            input, else classes.
        fit: how a frame of another shape than the network's goes in: "stretch", "letterbox" (whole, between bars), or "cover" (its
            middle, and the mask is 0 outside of it).
        tile: frames are not resized, but cut into tiles: their (height, width), which is ``imgsz``, and how many pixels two neighbors
            share; None for frames as a whole.
        bits: of each channel: 8, or 16 of channels as files have them.
        zscore: after the division, and in place of ``mean`` and ``std``, each frame's own of each channel.
        pad: the bars' value before the division, 0 to 255, or 65535 for 16 bits: one number, or one for each channel of the network's
            input.
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
    output_layout: OutputLayout | None = None
    filter: Filter = "area"
    subject: int | None = None
    multilabel: bool = False
    upsample: Upsampling | None = None
    fit: Fit = "stretch"
    pad: float | tuple[float, ...] = 114.0
    tile: tuple[tuple[int, int], int] | None = None
    bits: int = 8
    zscore: bool = False
    state: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_input(self._need)
        self._check_shape(self._need)
        self._check_output(self._need)
        self._check_memory(self._need)
        self._check_units()

    def _need(self, fits: bool, key: str, expected: str) -> None:
        if not fits:
            got = reprlib.repr(getattr(self, key))
            raise CompileError(f"contract {self.name}: {key}: expected {expected}, got {got}")

    def _check_input(self, need: _Need) -> None:
        count = channel_count(self.channels)
        numbered = type(self.channels) is int
        need(
            1 <= count <= MOST_CHANNELS and (numbered or self.channels in _ORDERS),
            "channels",
            f"rgb, bgr, grey or a number from 1 to {MOST_CHANNELS}",
        )
        need(self.bits == 8 or (self.bits == 16 and numbered), "bits", "8, or 16 for channels by their number")
        need(isinstance(self.zscore, bool), "zscore", "true or false")
        plain = (self.mean, self.std) == ((0.0,) * count, (1.0,) * count)
        need(not self.zscore or plain, "zscore", "no mean and std beside it, for each frame has its own")
        need(self.layout in get_args(Layout), "layout", "nchw or nhwc")
        need(self.filter in get_args(Filter), "filter", "bilinear or area")
        need(
            self.divide_by == "max" or (isinstance(self.divide_by, float) and 0 < self.divide_by < math.inf),
            "divide_by",
            "max or a number above 0",
        )
        need(
            len(self.mean) == count and all(math.isfinite(value) for value in self.mean),
            "mean",
            self._numbers(),
        )
        need(
            len(self.std) == count and all(0 < value < math.inf for value in self.std),
            "std",
            self._numbers(" above 0"),
        )
        need(
            len(self.imgsz) == 2 and all(1 <= side <= 8192 for side in self.imgsz),
            "imgsz",
            "height and width from 1 to 8192",
        )

    def _numbers(self, which: str = "") -> str:
        count = channel_count(self.channels)
        whose = f"{count} channels" if isinstance(self.channels, int) else self.channels
        return f"{count} number{'s' if count > 1 else ''}{which} for {whose}"

    def _check_shape(self, need: _Need) -> None:
        count = channel_count(self.channels)
        need(self.fit in get_args(Fit), "fit", "stretch, letterbox or cover")
        pad = self.pad if isinstance(self.pad, tuple) else (self.pad,) * count
        need(
            len(pad) == count and all(0 <= value < 1 << self.bits for value in pad),
            "pad",
            f"a number from 0 to {(1 << self.bits) - 1}, or {self._numbers()}",
        )
        if self.tile is not None:
            most = min(self.imgsz) // 2
            size = "×".join(map(str, self.imgsz))
            need(self.tile[0] == self.imgsz, "tile", f"[SIZE, OVERLAP] with the network's own size, {size}")
            need(0 <= self.tile[1] <= most, "tile", f"an overlap from 0 to {most}, half of a side")
            need(self.fit == "stretch", "fit", "none beside tile, for tiles are not resized")

    def _check_output(self, need: _Need) -> None:
        need(self.activation in get_args(Activation), "activation", "sigmoid, softmax or none")
        need(self.output_layout in (None, *get_args(OutputLayout)), "output_layout", "nchw, nhwc, nhw, chw, hwc or hw")
        need(isinstance(self.stretch, bool), "stretch", "true or false")
        need(self.output is None or isinstance(self.output, str), "output", "a name")
        need(
            self.subject is None or (type(self.subject) is int and 0 <= self.subject < 256),
            "subject",
            "a channel's number from 0 on",
        )
        need(isinstance(self.multilabel, bool), "multilabel", "true or false")
        need(self.upsample in (None, *get_args(Upsampling)), "upsample", "scores or classes")
        if self.multilabel:
            need(self.activation != "softmax", "activation", "sigmoid, or none for probabilities, with multilabel")

    def _check_memory(self, need: _Need) -> None:
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
        need(not self.state or self.tile is None, "state", "none beside tile, for each tile would need its own")

    @property
    def _pixel_range(self) -> float:
        """The largest value that a pixel has after the division."""
        return 1.0 if self.divide_by == "max" else ((1 << self.bits) - 1) / self.divide_by

    def _check_units(self) -> None:
        """Refuse a mean or standard deviation in another unit than the pixels': all pictures would look the same."""
        largest = self._pixel_range
        for key, values in (("mean", self.mean), ("std", self.std)):
            if max(map(abs, values)) > _BEYOND * largest:
                numbers = ", ".join(f"{value / ((1 << self.bits) - 1) * largest:.4g}" for value in values)
                raise CompileError(
                    f"contract {self.name}: {key}: expected it for pixels from 0 to {largest:g}, as divide_by makes them, got "
                    f"{reprlib.repr(list(values))}: set {key}: [{numbers}], or divide_by: 1"
                )

    def doubt(self) -> str | None:
        """What is to be told of its numbers, which may be right; None if nothing is."""
        small_mean = any(self.mean) and max(map(abs, self.mean)) <= 1
        small_std = max(self.std) < 1
        if self._pixel_range < _LARGE_RANGE or not (small_mean or small_std):
            return None
        return (
            f"contract {self.name}: mean {list(self.mean)} and std {list(self.std)} look as for pixels from 0 to 1, and divide_by "
            f"{self.divide_by:g} leaves them from 0 to {self._pixel_range:g}: set divide_by: 255 if the training did so"
        )

    @property
    def pixels(self) -> Pixels:
        """How frames are that a program takes: BGR, or channels as files have them."""
        return Bands(self.channels, self.bits).pixels if isinstance(self.channels, int) else "bgr"

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
        if values.get("tile"):
            values["tile"] = (tuple(values["tile"][0]), values["tile"][1])
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
    if n_channels == 3:
        return contract
    if n_channels > MOST_CHANNELS:
        raise CompileError(f"the network: expected 1 to {MOST_CHANNELS} input channels, got {n_channels}")
    return replace(contract, channels=n_channels, mean=(0.0,) * n_channels, std=(1.0,) * n_channels)


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
    count = channel_count(entries.get("channels", values.get("channels", "rgb")))
    if len(values.get("mean", ())) != count or entries.get("zscore"):
        # Mean and standard deviation of colours say nothing of grey, nor the other way.
        values |= {"mean": (0.0,) * count, "std": (1.0,) * count}
    if entries.get("bits") == 16:
        values["divide_by"] = 65535.0
    given = {key: _typed(path, key, value) for key, value in entries.items()}
    contract = Contract(**{**values, "name": path.stem, **given})
    if (doubt := contract.doubt()) is not None:
        log.info("%s", doubt)
    return contract


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
    elif key == "tile" and value is not None:
        if isinstance(value, list) and len(value) == 2 and type(value[1]) is int:
            sides = value[0] if isinstance(value[0], list) else [value[0], value[0]]
            if len(sides) == 2 and all(type(side) is int for side in sides):
                return tuple(sides), value[1]
        expected = "[SIZE, OVERLAP] in pixels, where SIZE is a whole number or [height, width]"
    elif key in ("mean", "std"):
        if isinstance(value, list) and all(_is_number(number) for number in value):
            return tuple(float(number) for number in value)
        expected = "a list of numbers, one for each channel"
    elif key == "pad":
        if _is_number(value):
            return float(value)
        if isinstance(value, list) and all(_is_number(number) for number in value):
            return tuple(float(number) for number in value)
        expected = "a number, or a list of them, one for each channel"
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
