"""What a source says of itself, and which one a string names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable

from pipeline.errors import SourceError
from pipeline.quick_dataclass import dataclass
from pipeline.registry import Registry, Row, listed
from pipeline.sources.content import content_of


@dataclass(frozen=True, kw_only=True)
class SourceKind(Row):
    r"""A kind of source.

    ``opens`` is called with the string, and of a live one also with ``LiveOptions | None``; it gives a
    ``pipeline.sources.base.Source``.

    Attributes:
        forms: its strings as people write them, for help and messages.
        live: it gives frames at its own pace, and comes and goes.
        prefixes: addresses that begin so are its own, in small letters: "rtsp://", "gst:".
        pattern: a regular expression of whole strings that are its own, such as ``\d{1,3}``; no file or folder by its path.
        suffixes: files that end so are its own, in small letters.
        folders: it takes folders and globs.
        files: it takes all files that no other does.
    """

    forms: tuple[str, ...]
    live: bool = False
    prefixes: tuple[str, ...] = ()
    pattern: str = ""
    suffixes: tuple[str, ...] = ()
    folders: bool = False
    files: bool = False

    def cells(self) -> dict[str, str]:
        """With its forms, and whether it is live."""
        strings = ", ".join(self.forms)
        return {"Name": f"`{self.name}`", "Strings": strings, "Live": "yes" if self.live else "no", **super().cells()}


_NAMED = re.compile(r"(?P<name>[A-Za-z0-9 _-]{1,40})=(?P<spec>.*)", re.DOTALL)

SOURCES = Registry(SourceKind, "edgemask.sources", "pipeline.sources")


def forms() -> str:
    """What a source's string can be, as a sentence lists it."""
    return listed(form for kind in SOURCES.values() for form in kind.forms)


def name_and_spec(text: str) -> tuple[str | None, str]:
    """Take "door=rtsp://camera/1" apart.

    Addresses and paths hold equals signs too: a name has letters, digits, spaces, "_" and "-" alone, 40 at most, and a file or a glob
    that fits as a whole is what is meant.

    Returns:
        The name that the user gives the source, or None, and the source's own string.
    """
    match = _NAMED.fullmatch(text)
    if (
        match is None
        or not match["name"].strip()
        or os.path.lexists(text)
        or (glob.has_magic(text) and glob.glob(text))
    ):
        return None, text
    spec = match["spec"]
    return match["name"].strip(), os.path.expanduser(spec) if spec.startswith("~") else spec  # no shell has seen it


def kind_of(spec: str) -> SourceKind:
    """Which source a string names.

    Raises:
        SourceError: it is empty, or a kind of address that is not understood.
    """
    if not spec:
        raise SourceError(f"--source: expected {forms()}, got nothing")
    is_there = os.path.exists(spec)  # then it is a file's name, whatever it looks like
    own = SOURCES.own.values()
    kind = _by_form(spec, is_there, own)
    if kind is None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", spec) and not is_there:
        kind = _by_form(spec, is_there, SOURCES.others.values())
        if kind is None:
            raise SourceError(f"{_scheme(spec)}: expected {forms()}, got an address of another kind")
    if kind is not None:
        if kind.prefixes and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", spec):
            raise SourceError(f"{_scheme(spec)}: expected an address, got one with control characters or no UTF-8")
        return kind
    if os.path.isdir(spec) or (any(mark in spec for mark in "*?[") and not is_there):
        return next(kind for kind in own if kind.folders)
    return (
        _by_content(spec, own)
        or _by_suffix(spec, own)
        or _by_form(spec, is_there, SOURCES.others.values())
        or _by_suffix(spec, SOURCES.others.values())
        or next(kind for kind in own if kind.files)
    )


def _by_form(spec: str, is_there: bool, kinds: Iterable[SourceKind]) -> SourceKind | None:
    # /dev/shm is a folder in memory, where videos and pictures may lie as well as anywhere else; a number is no path.
    is_path = os.sep in spec and (os.path.isfile(spec) or os.path.isdir(spec))
    for kind in kinds:
        if spec.lower().startswith(kind.prefixes) and kind.prefixes and not is_there:
            return kind
        if kind.pattern and re.fullmatch(kind.pattern, spec, re.DOTALL) and not is_path:
            return kind
    return None


def _by_content(spec: str, kinds: Iterable[SourceKind]) -> SourceKind | None:
    """For a file whose suffix says something else than its content, or nothing."""
    said, found = _by_suffix(spec, kinds), content_of(spec)
    if found is None or (found == "picture" and said is not None and said.files):
        return None  # a file of an animation is a video too
    return next(kind for kind in kinds if (kind.folders if found == "picture" else kind.files))


def _by_suffix(spec: str, kinds: Iterable[SourceKind]) -> SourceKind | None:
    suffix = os.path.splitext(spec)[1].lower()
    return next((kind for kind in kinds if suffix in kind.suffixes), None)


def _scheme(spec: str) -> str:
    # An address may carry a password: messages show the scheme alone.
    return spec.split(":", 1)[0] + "://…" if "://" in spec else spec.split(":", 1)[0] + ":…"
