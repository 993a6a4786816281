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
from pipeline.sources.pictures import root_of

LIST_SUFFIX = ".txt"
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

    Hidden files are left out, and so are links to folders, arrays (.npy) of a folder, and what is neither picture nor video.

    Args:
        spec: a folder with all folders in it, a pattern, a list of paths (relative ones from the list's folder), or one file.
        output: the folder of the results, which is no part of the corpus.

    Attributes:
        left_out: how many files are neither pictures nor videos, after an iteration.

    Raises:
        SourceError: there is no such thing.
    """

    def __init__(self, spec: str, output: str) -> None:
        self._spec = spec
        self._output = os.path.realpath(output)
        self.left_out = 0
        if not os.path.exists(spec) and not glob.has_magic(spec):
            raise SourceError(f"{spec}: expected {FORMS}, got nothing of that name")
        self._is_list = os.path.isfile(spec) and spec.lower().endswith(LIST_SUFFIX)
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
        for _, whole in self._files():
            key, short = _hash(whole), _hash(os.path.splitext(whole)[0])
            if key in wholes:
                self._repeated.add(key)
                continue
            wholes.add(key)
            if short in shorts:
                clashing.add(short)
            shorts.add(short)
        return clashing | (shorts & wholes)

    def _files(self) -> Iterator[tuple[str, str]]:
        """The path and the name of each file."""
        if self._is_list:
            yield from self._listed()
        elif os.path.isdir(self._spec):
            yield from self._walked(os.path.abspath(self._spec), "")
        elif os.path.exists(self._spec):
            yield os.path.abspath(self._spec), os.path.basename(self._spec)
        else:
            root = root_of(self._spec)
            for path in glob.iglob(self._spec, recursive=True):
                if os.path.isfile(path) and not os.path.realpath(path).startswith(self._output + os.sep):
                    yield os.path.abspath(path), PurePath(path).relative_to(root).as_posix()

    def _walked(self, folder: str, name: str) -> Iterator[tuple[str, str]]:
        if os.path.realpath(folder) == self._output:
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted(
                    (entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name
                )
        except OSError as error:
            raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walked(entry.path, f"{name}{entry.name}/")
            elif entry.is_file() and not entry.name.lower().endswith(NUMPY_SUFFIX):
                yield entry.path, name + entry.name

    def _listed(self) -> Iterator[tuple[str, str]]:
        folder = os.path.dirname(os.path.abspath(self._spec))
        try:
            with open(self._spec, encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    if text := line.strip():
                        path = os.path.normpath(os.path.join(folder, text))
                        inside = path.startswith(folder.rstrip(os.sep) + os.sep)
                        # What lies elsewhere keeps its whole path, so that no other line of the list changes its name.
                        yield path, os.path.relpath(path, folder) if inside else path.lstrip(os.sep)
        except OSError as error:
            raise SourceError(f"{self._spec}: cannot be read ({error.strerror})") from error


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
