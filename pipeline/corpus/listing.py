"""What is in a corpus: the pictures and videos of a folder, a pattern or a list, one by one."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from pipeline.errors import SourceError
from pipeline.sources.bands import NUMPY_SUFFIX
from pipeline.sources.content import content_of
from pipeline.sources.kinds import SOURCES
from pipeline.sources.pictures import matching, root_of

LIST_SUFFIX = ".txt"
# What results end in: where a folder of the corpus does too, a result must not take its name.
_RESULTS = (".png", ".masks", ".mkv", ".mp4")
FORMS = f"a folder, a pattern such as 'films/**/*.mp4', or a list of paths ({LIST_SUFFIX}, one a line)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One source of a corpus.

    Attributes:
        path: where it is read, from the root of the file system, for processes in other folders and on other machines.
        name: its path below the corpus's root, which its output keeps; without a suffix where no other has the same one then.
        whole_name: the same with its suffix.
        is_video: it is read as a video, not as a picture.
    """

    path: str
    name: str
    whole_name: str
    is_video: bool

    @property
    def key(self) -> int:
        """63 bits that stand for it, the same in every run and on every machine."""
        return _hash(self.whole_name)


class Listing:
    """The sources of a corpus, each once. Each iteration walks through it anew; nothing of it is kept but a few bytes for each entry.

    Hidden files are left out, and so are links to folders, arrays (.npy) of a folder, and what is neither picture nor video. A link
    to nothing that is called like a picture or a video is a source, which fails.

    Args:
        spec: a folder with all folders in it, a pattern, a list of paths (relative ones from the list's folder), or one file.
        output: the folder of the results, which is no part of the corpus.

    Attributes:
        left_out: how many files are neither pictures nor videos, after an iteration.

    Raises:
        SourceError: there is no such thing, the results would lie among the sources, or two paths of a list have one name.
    """

    def __init__(self, spec: str, output: str) -> None:
        self._spec = spec
        self._output = os.path.realpath(output)
        self.left_out = 0
        if not os.path.exists(spec) and not glob.has_magic(spec):
            raise SourceError(f"{spec}: expected {FORMS}, got nothing of that name")
        self._is_list = os.path.isfile(spec) and spec.lower().endswith(LIST_SUFFIX)
        if not os.path.isfile(spec) and os.path.realpath(root_of(spec)) == self._output:
            raise SourceError(
                f"{output}: expected a folder of its own for the results, got that of the source: choose another --output"
            )
        self._repeated: set[int] = set()
        self._clashing = self._find_clashing()

    def __iter__(self) -> Iterator[Entry]:
        self.left_out = 0
        given: set[int] = set()
        for path, whole in self._files():
            if self._repeated and (key := _hash(whole)) in self._repeated:
                if key in given:
                    continue
                given.add(key)
            is_video = _is_video(path)
            if is_video is None:
                if not self._is_list:
                    self.left_out += 1
                    continue
                is_video = True  # FFmpeg looks into any file; where it is none, that is said
            short = os.path.splitext(whole)[0]
            yield Entry(path, whole if _hash(short) in self._clashing else short, whole, is_video)

    def _find_clashing(self) -> set[int]:
        """Names without suffix that would be those of several outputs."""
        wholes: set[int] = set()
        shorts: set[int] = set()
        clashing: set[int] = set()
        paths: set[int] = set()  # of a list, whose lines may name one file twice, or two by one name
        folders: set[str] = set()
        for path, whole in self._files():
            key, short = _hash(whole), _hash(os.path.splitext(whole)[0])
            if key in wholes and (not self._is_list or _hash(path) in paths):
                self._repeated.add(key)
                continue
            if key in wholes:
                raise SourceError(
                    f"{self._spec}: {path}: expected a path of its own, got one whose result would be that of another line, "
                    f"{whole}: give them in two lists, with an --output each"
                )
            wholes.add(key)
            if self._is_list:
                paths.add(_hash(path))
            if short in shorts:
                clashing.add(short)
            shorts.add(short)
            folders.update(_like_results(whole))
        return clashing | (shorts & wholes) | {_hash(os.path.splitext(folder)[0]) for folder in folders}

    def _files(self) -> Iterator[tuple[str, str]]:
        """The path and the name of each file."""
        if self._is_list:
            yield from self._listed()
        elif os.path.isdir(self._spec):
            yield from self._walked(os.path.abspath(self._spec))
        elif os.path.exists(self._spec):
            yield os.path.abspath(self._spec), os.path.basename(self._spec)
        else:
            root = root_of(self._spec)
            results = self._output + os.sep
            is_among_them = f"{os.path.realpath(root)}{os.sep}".startswith(results)
            for path in matching(self._spec):
                if os.path.isfile(path) and (is_among_them or not os.path.realpath(path).startswith(results)):
                    yield os.path.abspath(path), PurePath(path).relative_to(root).as_posix()

    def _walked(self, top: str) -> Iterator[tuple[str, str]]:
        # Folders may lie deeper in each other than Python's calls.
        above = [iter(self._in_folder(top))]
        name_at, real_top = len(os.path.join(top, "")), os.path.realpath(top)
        while above:
            entry = next(above[-1], None)
            if entry is None:
                above.pop()
            elif entry.is_dir(follow_symlinks=False):
                if os.path.join(real_top, entry.path[name_at:]) != self._output:  # no link is on the way
                    above.append(iter(self._in_folder(entry.path)))
            elif _is_file(entry) and not entry.name.lower().endswith(NUMPY_SUFFIX):
                yield entry.path, entry.path[name_at:]

    def _in_folder(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                return sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error

    def _listed(self) -> Iterator[tuple[str, str]]:
        folder = os.path.dirname(os.path.abspath(self._spec))
        try:
            with open(self._spec, encoding="utf-8-sig", errors="surrogateescape") as lines:
                for line in lines:
                    if "\0" in line:
                        raise SourceError(
                            f"{self._spec}: expected a path in each line, in UTF-8, got a NUL: it is in UTF-16, or made by "
                            "find -print0"
                        )
                    if (text := line.strip()) and not text.startswith("#"):
                        path = os.path.normpath(os.path.join(folder, text))
                        inside = path.startswith(folder.rstrip(os.sep) + os.sep)
                        # What lies elsewhere keeps its whole path, so that no other line of the list changes its name.
                        yield path, os.path.relpath(path, folder) if inside else path.lstrip(os.sep)
        except OSError as error:
            raise SourceError(f"{self._spec}: cannot be read ({error.strerror})") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link that leads nowhere: somebody meant a file, and is told."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # links that lead to each other
        return True


def _like_results(whole: str) -> Iterator[str]:
    """Of the folders in a name those that are called like a result."""
    folder = os.path.dirname(whole)
    while folder:
        if folder.endswith(_RESULTS):
            yield folder
        folder = os.path.dirname(folder)


def _is_video(path: str) -> bool | None:
    """By its suffix, which needs no look into a million files, else by its content; None: neither picture nor video."""
    suffix = os.path.splitext(path)[1].lower()
    for name, is_video in (("pictures", False), ("video", True)):
        if suffix in SOURCES.own[name].suffixes:
            return is_video
    content = content_of(path)
    return None if content is None else content == "video"


def _hash(name: str) -> int:
    # One bit less than there are: tables of numbers have a sign.
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big") >> 1
