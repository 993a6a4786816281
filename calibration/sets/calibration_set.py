"""What a calibration set is: its manifest, and a folder checked against it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from calibration.sets.selection import SplitName
from pipeline.bundles.bundle import file_sha256
from pipeline.bundles.regular_file import read_regular
from pipeline.errors import CalibrationError
from pipeline.frames.frame import SourceInfo

SCHEMA = 1
KIND = "edgemask calibration set"
MANIFEST_NAME = "manifest.json"
SHEET_NAME = "contact_sheet.png"
REPORT_NAME = "report.txt"
MANIFEST_LIMIT_BYTES = 16 << 20
SPLITS: tuple[SplitName, SplitName] = ("calibration", "verification")
_AGAIN = "collect the set again with python -m calibration"


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a set.

    Attributes:
        name: its file, from the set's folder.
        sha256: of the file.
        split: "calibration" or "verification".
        scene: pictures of one number show the same scene.
        index: the frame's number in the source.
        frame: the frame's name in the source.
        pts_s: the frame's time stamp.
        brightness: mean luma, 0 to 1.
    """

    name: str
    sha256: str
    split: SplitName
    scene: int
    index: int
    frame: str
    pts_s: float
    brightness: float


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """A set that was checked against its manifest.

    Attributes:
        folder: where it lies.
        entries: its pictures, in order of time, those for calibration first.
        sha256: of all that the manifest says of the pictures; the same for the same pictures in the same splits.
        split_by: "scenes" where no scene is in both splits, "time" where there was one scene only.
    """

    folder: Path
    entries: tuple[Entry, ...]
    sha256: str
    split_by: Literal["scenes", "time"]

    @property
    def calibration(self) -> list[Path]:
        """The pictures to calibrate on."""
        return self.paths("calibration")

    @property
    def verification(self) -> list[Path]:
        """The pictures to verify on."""
        return self.paths("verification")

    def paths(self, split: SplitName) -> list[Path]:
        """The pictures of a split."""
        return [self.folder / entry.name for entry in self.entries if entry.split == split]


def is_set(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a calibration set, whole or damaged."""
    return os.path.isfile(Path(folder) / MANIFEST_NAME) and os.path.isdir(Path(folder) / SPLITS[0])


def read_set(folder: str | os.PathLike[str]) -> CalibrationSet:
    """Open a set and check every picture against its sha256.

    Raises:
        CalibrationError: no set, damaged, or with a changed, missing or additional picture.
    """
    folder = Path(folder)
    entries, digest, split_by = _read_manifest(folder)
    if (got := sha256_of(entries)) != digest:
        raise CalibrationError(
            f"{folder / MANIFEST_NAME}: expected sha256 {str(digest)[:12]}… of its files, got {got[:12]}…: "
            f"it was changed or damaged, {_AGAIN}"
        )
    for entry in entries:
        path = folder / entry.name
        if not os.path.isfile(path):
            raise CalibrationError(f"{path}: expected a picture of the set, got no such file: {_AGAIN}")
        try:
            got = file_sha256(path)
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror}): {_AGAIN}") from error
        if got != entry.sha256:
            raise CalibrationError(
                f"{path}: expected sha256 {entry.sha256[:12]}…, got {got[:12]}…: it was changed or damaged, {_AGAIN}"
            )
    if extra := [name for name in _unlisted(folder, entries) if name.split("/")[0] in SPLITS]:
        raise CalibrationError(
            f"{folder}: expected {len(entries)} pictures, got {len(entries) + len(extra)}, of which {MANIFEST_NAME} does not "
            f"list {extra[0]}: remove it, or {_AGAIN}"
        )
    return CalibrationSet(folder, tuple(entries), digest, split_by)


def check_output(folder: Path, info: SourceInfo) -> None:
    """Refuse a place where a set cannot go, before any work is done.

    Raises:
        CalibrationError: it is a file, holds something other than a set, holds the source, or cannot be written.
    """
    place = Path(os.path.realpath(folder))
    if any(place in Path(os.path.realpath(path)).parents for path in info.paths):
        raise CalibrationError(
            f"{folder}: expected a folder apart from the source, got one with it: choose another --output"
        )
    if place.exists() and not place.is_dir():
        raise CalibrationError(f"{folder}: expected a folder for the set, got a file: choose another --output")
    if place.is_dir() and os.listdir(place):
        try:
            entries = _read_manifest(folder)[0]
            others = _unlisted(folder, entries)
        except CalibrationError:
            others = sorted(os.listdir(place))
        if others:
            raise CalibrationError(
                f"{folder}: expected a new folder or a calibration set to replace, got a folder with other files "
                f"({others[0]}): choose another --output"
            )
    nearest = next(parent for parent in place.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"no permission to write in {nearest}" if nearest.is_dir() else f"{nearest} is a file"
        raise CalibrationError(f"{folder}: cannot be written ({reason}): choose another --output")


def _read_manifest(folder: Path) -> tuple[list[Entry], str, Literal["scenes", "time"]]:
    path = folder / MANIFEST_NAME
    try:
        text = read_regular(path, MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise CalibrationError(
            f"{folder}: expected a calibration set with {MANIFEST_NAME}, cannot read it ({error.strerror}): "
            f"make one with python -m calibration --output {folder}"
        ) from error
    try:
        if len(text) > MANIFEST_LIMIT_BYTES:
            raise ValueError(f"more than {MANIFEST_LIMIT_BYTES} bytes")
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or (manifest.get("kind"), manifest.get("schema")) != (KIND, SCHEMA):
            raise ValueError("another kind or schema")
        split_by: Literal["scenes", "time"] = "time" if manifest["split_by"] == "time" else "scenes"
        return [_entry(fields) for fields in manifest["files"]], str(manifest["sha256"]), split_by
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CalibrationError(
            f"{path}: expected the manifest of a calibration set, schema {SCHEMA}, got other content ({error}): {_AGAIN}"
        ) from error


def _entry(fields: Any) -> Entry:
    entry = Entry(**fields)
    if entry.split not in SPLITS or not isinstance(entry.sha256, str):
        raise ValueError("a picture without split or sha256")
    # Nothing outside the folder is ever read.
    if not re.fullmatch(rf"{entry.split}/\d{{8,}}\.png", str(entry.name)):
        raise ValueError(f"a picture named {str(entry.name)!r}")
    return entry


def _unlisted(folder: Path, entries: Iterable[Entry]) -> list[str]:
    listed = {entry.name for entry in entries} | {MANIFEST_NAME, SHEET_NAME, REPORT_NAME}
    found = {Path(root, name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names}
    return sorted(found - listed)


def sha256_of(entries: Iterable[Entry]) -> str:
    """Of all that a manifest says of its pictures."""
    text = json.dumps([asdict(entry) for entry in entries], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
