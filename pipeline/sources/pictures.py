"""Pictures from a file, a folder or a glob."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.frames.pixels import Pixels, bands_of
from pipeline.sources.bands import NUMPY_SUFFIX, read_bands
from pipeline.sources.base import Source
from pipeline.sources.content import content_of
from pipeline.sources.display import Notes
from pipeline.sources.kinds import SourceKind
from pipeline.sources.picture_file import Picture, count_pictures, read_all, read_one

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
        ".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp", ".apng", ".heic", ".heif", ".hif", ".jfif",
        ".tga", ".ico", ".qoi", ".pcx", ".sgi", ".dds",
    ),
    folders=True,
)
# fmt: on


class PictureSource(Source):
    """A picture, the pictures of a folder (not of folders in it), or what a glob matches (``**`` for folders in folders).

    Order is that of the names, with numbers in them counted as numbers. Pictures are read as they are shown: turned by their
    EXIF orientation, in sRGB's colors, on white where they are transparent, gray made BGR, 16 bits made 8. For a network that takes
    channels as files have them they are read so (``pipeline.sources.bands``). Arrays (.npy) of a folder with other pictures are left
    out, for they are labels as often. A picture that cannot be read does not stop the others: it is named in the error that ends the
    iteration. One animation or document gives all its pictures, each for its time.
    """

    def __init__(self, spec: str) -> None:
        self._pixels: Pixels = "bgr"
        self._paths, left_out = _find(spec)
        self._names = _distinct_names(self._paths, root_of(spec))
        count = len(self._paths)
        self._pages = count_pictures(self._paths[0]) if count == 1 else 1
        if self._pages > 1:
            description = f"{self._pages} pictures of one file"
        else:
            description = "1 picture" if count == 1 else f"{count} pictures"
        self.info = SourceInfo(
            name=Path(spec).name or spec,
            description=description,
            frame_count=max(count, self._pages),
            paths=tuple(str(path) for path in self._paths),
            left_out=left_out,
        )

    @property
    def pixels(self) -> Pixels:
        """What the engine takes. Of channels as files have them, a file's pages are those of one picture."""
        return self._pixels

    @pixels.setter
    def pixels(self, wanted: Pixels) -> None:
        self._pixels = wanted
        if bands_of(wanted) is not None and self._pages > 1:
            self._pages = 1
            self.info = replace(self.info, frame_count=1, description="1 picture")

    def __iter__(self) -> Iterator[Frame]:
        note = Notes(self.info.name)
        if self._pages > 1:
            yield from self._animation(note)
            return
        unreadable: list[str] = []
        for index, (path, name) in enumerate(zip(self._paths, self._names, strict=True)):
            try:
                frame = self._read(path, index, name, note)
            except SourceError as error:
                unreadable.append(str(error))
                continue
            yield frame
        if len(unreadable) == 1:
            raise SourceError(unreadable[0])
        if unreadable:
            raise SourceError(
                f"{len(unreadable)} of {len(self._paths)} pictures could not be read, the first: {unreadable[0]}"
            )

    def _animation(self, note: Notes) -> Iterator[Frame]:
        """All pictures of one file, each for its time."""
        pts_s = 0.0
        for index, picture in enumerate(read_all(self._paths[0])):
            yield self._frame(picture, index, pts_s, f"{self._names[0]}_{index:06d}", note)
            pts_s += picture.duration_s

    def _read(self, path: Path, index: int, name: str, note: Notes) -> Frame:
        bands = bands_of(self.pixels)
        if bands is not None:
            return Frame(read_bands(path, bands), index, float(index), self.info.name, name, self.pixels)
        picture = read_one(path)
        if len(self._paths) > 1 and picture.of > 1:
            note(f"{path.name}: an animation or document: its first picture alone is read")
        return self._frame(picture, index, float(index), name, note)

    def _frame(self, picture: Picture, index: int, pts_s: float, name: str, note: Notes) -> Frame:
        for sentence in picture.notes:
            note(sentence)
        return Frame(picture.image, index, pts_s, self.info.name, name, alpha=picture.alpha)


def _find(spec: str) -> tuple[list[Path], str]:
    """The pictures, and how many other files there are, in words."""
    if os.path.isdir(spec):
        kind = "folder"
        try:
            found = [Path(spec, name) for name in os.listdir(spec) if not name.startswith(".")]
        except OSError as error:
            raise SourceError(f"{spec}: cannot be read ({error.strerror})") from error
    elif os.path.exists(spec):
        return [Path(spec)], ""
    elif glob.has_magic(spec):
        kind, found = "pattern", [Path(entry) for entry in matching(spec)]
    else:
        raise SourceError(f"{spec}: no such file")
    files = [entry for entry in found if os.path.isfile(entry)]
    pictures = {one for one in files if one.suffix.lower() in PICTURES.suffixes or content_of(str(one)) == "picture"}
    if not pictures:
        raise SourceError(f"{spec}: expected pictures ({' '.join(sorted(PICTURES.suffixes))}), got a {kind} with none")
    ordinary = {path for path in pictures if path.suffix.lower() != NUMPY_SUFFIX}
    pictures = ordinary if kind == "folder" and ordinary else pictures
    others = sorted((one for one in files if one not in pictures), key=_natural_order)
    left_out = (
        f"{len(others)} files that are no pictures ({others[0].name}{', …' if others[1:] else ''})" if others else ""
    )
    return sorted(pictures, key=_natural_order), left_out


def matching(pattern: str) -> Iterator[str]:
    """What a pattern matches; some of it more than once where it has several ``**``."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    before, after = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :]) or "*"
    for top in glob.iglob(before) if before else [os.sep if at else ""]:
        for folder in _folders(top):
            yield from matching(os.path.join(glob.escape(folder), after))


def _folders(top: str) -> Iterator[str]:
    """A folder and those below, each once whatever links lead to it, or back; hidden ones are left out."""
    seen: set[tuple[int, int]] = set()
    waiting = deque([top])
    while waiting:
        folder = waiting.popleft()
        with suppress(OSError):  # what may not be read holds nothing
            found = os.stat(folder or os.curdir)
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            with os.scandir(folder or os.curdir) as entries:
                below = sorted(
                    (one.is_symlink(), one.name) for one in entries if one.name[:1] != "." and os.path.isdir(one)
                )
            waiting.extend(os.path.join(folder, name) for _, name in below)
            yield folder


def _natural_order(path: Path) -> tuple[tuple[bool, int, str], ...]:
    parts = re.split(r"(\d+)", str(path))
    return tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def root_of(spec: str) -> Path:
    """The folder below which names begin: a folder itself, that of a file, and of a pattern what stands before its first wildcard.

    Raises:
        SourceError: a pattern goes up after that.
    """
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
