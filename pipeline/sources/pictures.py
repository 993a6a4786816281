"""Pictures from a file, a folder or a glob."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.frames.pixels import bands_of
from pipeline.sources.bands import NUMPY_SUFFIX, read_bands
from pipeline.sources.base import Source
from pipeline.sources.kinds import SourceKind

# fmt: off
PICTURES = SourceKind(
    name="pictures",
    opens="PictureSource",
    help="a picture, those of a folder, or those that a pattern such as 'pics/**/*.jpg' matches; .npy for networks of any channels",
    order=30,
    extra="cpu",
    forms=("a picture", "a folder", "a glob"),
    suffixes=(
        ".avif", ".bmp", ".dib", ".exr", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pbm", ".pgm", ".pic", ".png",
        ".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp",
    ),
    folders=True,
)
# fmt: on


class PictureSource(Source):
    """A picture, the pictures of a folder (not of folders in it), or what a glob matches (``**`` for folders in folders).

    Order is that of the names, with numbers in them counted as numbers. Pictures are read as they are shown: turned by their
    EXIF orientation, gray made BGR, 16 bits made 8, an alpha channel left out. For a network that takes channels as files have them
    they are read so (``pipeline.sources.bands``). Arrays (.npy) of a folder with other pictures are left out, for they are labels as
    often. A picture that cannot be read does not stop the others: it is named in the error that ends the iteration.
    """

    def __init__(self, spec: str) -> None:
        self._paths = _find(spec)
        self._names = _distinct_names(self._paths, _root(spec))
        count = len(self._paths)
        self.info = SourceInfo(
            name=Path(spec).name or spec,
            description="1 picture" if count == 1 else f"{count} pictures",
            frame_count=count,
            paths=tuple(str(path) for path in self._paths),
        )

    def __iter__(self) -> Iterator[Frame]:
        unreadable: list[str] = []
        for index, (path, name) in enumerate(zip(self._paths, self._names, strict=True)):
            bands = bands_of(self.pixels)
            try:
                image = read_picture(path) if bands is None else read_bands(path, bands)
            except SourceError as error:
                unreadable.append(str(error))
                continue
            kind = "bgr" if bands is None else self.pixels
            yield Frame(image, index, float(index), self.info.name, name, kind)
        if len(unreadable) == 1:
            raise SourceError(unreadable[0])
        if unreadable:
            raise SourceError(
                f"{len(unreadable)} of {len(self._paths)} pictures could not be read, the first: {unreadable[0]}"
            )


def read_picture(path: Path) -> Image:
    """Read a picture file as it is shown.

    Returns:
        (H, W, 3) uint8, BGR, contiguous. Owned by the caller.

    Raises:
        SourceError: it is missing, no picture, damaged, or larger than OPENCV_IO_MAX_IMAGE_PIXELS allows.
    """
    if path.suffix.lower() == NUMPY_SUFFIX:
        raise SourceError(f"{path}: expected an ordinary picture as the network takes, got an array")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error as error:
        if "MAX_IMAGE" not in str(error):
            raise SourceError(f"{path}: expected a picture, got a file that cannot be decoded ({error.err})") from error
        limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 30))
        raise SourceError(
            f"{path}: expected a picture of at most {limit} pixels, got a larger one: "
            "make it smaller, or set OPENCV_IO_MAX_IMAGE_PIXELS"
        ) from error
    if image is None:
        raise SourceError(
            f"{path}: expected a picture, got {'an empty file' if not content.size else 'a file that is none or is damaged'}"
        )
    return np.ascontiguousarray(image, dtype=np.uint8)


def _find(spec: str) -> list[Path]:
    if os.path.isdir(spec):
        kind = "folder"
        try:
            found = [Path(spec, name) for name in os.listdir(spec) if not name.startswith(".")]
        except OSError as error:
            raise SourceError(f"{spec}: cannot be read ({error.strerror})") from error
    elif os.path.exists(spec):
        return [Path(spec)]
    elif glob.has_magic(spec):
        kind, found = "pattern", [Path(entry) for entry in glob.iglob(spec, recursive=True)]
    else:
        raise SourceError(f"{spec}: no such file")
    pictures = {entry for entry in found if entry.suffix.lower() in PICTURES.suffixes and os.path.isfile(entry)}
    if not pictures:
        suffixes = " ".join(sorted(PICTURES.suffixes))
        raise SourceError(f"{spec}: expected pictures ({suffixes}), got a {kind} with none")
    ordinary = {path for path in pictures if path.suffix.lower() != NUMPY_SUFFIX}
    return sorted(ordinary if kind == "folder" and ordinary else pictures, key=_natural_order)


def _natural_order(path: Path) -> tuple[tuple[bool, int, str], ...]:
    parts = re.split(r"(\d+)", str(path))
    return tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def _root(spec: str) -> Path:
    path = Path(spec)
    if os.path.isdir(spec):
        return path
    if os.path.exists(spec):
        return path.parent
    wild = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    if ".." in path.parts[wild:]:
        raise SourceError(
            f"{spec}: expected a pattern without '..' after its first wildcard: write the path without it"
        )
    return Path(*path.parts[:wild])


def _distinct_names(paths: list[Path], root: Path) -> list[str]:
    """The paths below the root without their suffixes, which only stay where two pictures differ in nothing else."""
    whole = [path.relative_to(root).as_posix() for path in paths]
    names = [name.removesuffix(path.suffix) for name, path in zip(whole, paths, strict=True)]
    while len(set(names)) < len(names):  # a name that keeps its suffix may be the short name of a third picture
        count = Counter(names)
        names = [full if count[name] > 1 else name for full, name in zip(whole, names, strict=True)]
    return names
