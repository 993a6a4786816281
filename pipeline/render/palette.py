"""Colours of the classes: built in, from a file, or spelled out on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OptionError
from pipeline.quick_dataclass import dataclass

_HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, eq=False)
class Palette:
    """One color for each class; the subject of a binary mask counts as class 1.

    Attributes:
        colours_bgr: (N, 3) uint8, BGR, 1 to 256 rows; row k is class k's color, row 0 the background's. The palette
            keeps a read-only copy.
        transparent_class_0: whether class 0 is background, which is not colored over the picture (the default). False
            for a network whose class 0 is a class like the others, as in Cityscapes.

    Raises:
        OptionError: the array is not what is described above.
    """

    colours_bgr: NDArray[np.uint8]
    transparent_class_0: bool = True

    def __post_init__(self) -> None:
        colours = np.array(self.colours_bgr)
        if colours.ndim != 2 or colours.shape[1] != 3 or colours.dtype != np.uint8 or not 1 <= len(colours) <= 256:
            raise OptionError(
                f"palette colors: expected (N, 3) uint8 with 1 to 256 rows, got {colours.shape} {colours.dtype}: "
                "give one b, g, r row for each class"
            )
        colours.setflags(write=False)
        object.__setattr__(self, "colours_bgr", colours)

    def __len__(self) -> int:
        return len(self.colours_bgr)

    def color(self, class_index: int) -> tuple[int, int, int]:
        """The (b, g, r) of a class, 0 to 255 each.

        Classes past the last row begin again at the first that is no background: row 1, or row 0 if that is a class.
        """
        blue, green, red = self._of(np.array([class_index]))[0].tolist()
        return blue, green, red

    def table_bgr(self) -> NDArray[np.uint8]:
        """(256, 1, 3) uint8 BGR: the color of every class index that a mask can hold; a new array."""
        return self._of(np.arange(256)).reshape(256, 1, 3)

    def _of(self, class_indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        first = 1 if self.transparent_class_0 and len(self) > 1 else 0
        rows = np.where(class_indices < first, class_indices, first + (class_indices - first) % (len(self) - first))
        colours: NDArray[np.uint8] = self.colours_bgr[rows]
        return colours


def load_palette(spec: str) -> Palette:
    """Read a palette as it is named on the command line.

    Args:
        spec: a built-in name ("default", "cityscapes", "voc"); a .yaml, .yml or .json file holding a list with one
            color a class, background first, each ``[r, g, b]`` or ``"#rrggbb"``; or ``#rrggbb[,#rrggbb...]``, the
            colors of classes 1, 2, ... without the background.

    Raises:
        OptionError: there is no such palette or file, or a color cannot be read.
    """
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]
    if spec.startswith("#"):
        return _from_rgb([(0, 0, 0), *(_parse_color(part.strip(), spec) for part in spec.split(","))])
    path = Path(spec)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _read_file(path)
    import difflib  # only a mistake needs it

    near = difflib.get_close_matches(spec.lower(), _BUILT_IN, n=1)
    raise OptionError(
        f"palette {spec!r}: expected {', '.join(_BUILT_IN)}, a .yaml or .json file, or #rrggbb[,#rrggbb...]"
        + (f": did you mean {near[0]!r}?" if near else "")
    )


def _read_file(path: Path) -> Palette:
    from pipeline.yaml_file import read_yaml  # few runs read YAML, and all would wait for its package

    entries = read_yaml(path, "palette")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 256:
        got = f"a list of {len(entries)}" if isinstance(entries, list) else type(entries).__name__
        raise OptionError(f"palette {path}: expected a list of 1 to 256 colors, got {got}: write one color a class")
    return _from_rgb([_parse_color(entry, f"{path}, entry {index}") for index, entry in enumerate(entries)])


def _parse_color(entry: object, where: str) -> tuple[int, int, int]:
    if isinstance(entry, str) and _HEX_COLOR.fullmatch(entry):
        return int(entry[1:3], 16), int(entry[3:5], 16), int(entry[5:7], 16)
    # type() is int, not isinstance: YAML's and JSON's true is no color value.
    if isinstance(entry, list) and len(entry) == 3 and all(type(value) is int and 0 <= value <= 255 for value in entry):
        red, green, blue = entry
        return red, green, blue
    quote = ' (in YAML, # begins a comment: write "#rrggbb" in quotes)' if entry is None else ""
    raise OptionError(f"palette {where}: expected #rrggbb or [r, g, b] of 0 to 255, got {entry!r:.60}{quote}")


def _from_rgb(colours: list[tuple[int, int, int]], transparent_class_0: bool = True) -> Palette:
    return Palette(np.array(colours, dtype=np.uint8)[:, ::-1], transparent_class_0)


def _voc_rgb(class_index: int) -> tuple[int, int, int]:
    # The data set's own rule: the bits of the class index, three at a time from the lowest, become the channels' bits
    # from the highest.
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (class_index >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = channels
    return red, green, blue


# Okabe and Ito's colors ("Color Universal Design", 2008) without black, which is the background here: they stay apart
# under protanopia, deuteranopia and tritanopia.
_DEFAULT = _from_rgb(
    [
        (0, 0, 0),
        (86, 180, 233),
        (230, 159, 0),
        (0, 158, 115),
        (204, 121, 167),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
    ]
)

# The 19 evaluated classes in training order: road is class 0, so nothing is transparent.
_CITYSCAPES = _from_rgb(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ],
    transparent_class_0=False,
)

_BUILT_IN = {
    "default": _DEFAULT,
    "cityscapes": _CITYSCAPES,
    "voc": _from_rgb([_voc_rgb(index) for index in range(21)]),
}

PALETTES = tuple(_BUILT_IN)
"""The names that `load_palette` knows."""

DEFAULT_PALETTE = _DEFAULT
"""Okabe and Ito's seven colors, told apart by color-blind people too."""
