"""Calibration sets: collected from any source, written complete or not at all, and read back with every byte checked.

manifest.json        where it comes from, and for each picture its sha256, split, scene, time and brightness
calibration/         pictures to calibrate on
verification/        pictures of other scenes, to verify on
contact_sheet.png    all of them at a glance
report.txt           what they cover
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal

import cv2

from calibration.contact_sheet import SheetPicture, coverage_report, draw_sheet
from calibration.errors import CalibrationError
from calibration.selection import Candidate, Pool, SplitName, choose, split
from pipeline.bundle import file_sha256
from pipeline.frame import Frame, Image, SourceInfo
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.sources.pictures import read_picture

SCHEMA = 1
KIND = "edgemask calibration set"
MANIFEST_NAME = "manifest.json"
SHEET_NAME = "contact_sheet.png"
REPORT_NAME = "report.txt"
MANIFEST_LIMIT_BYTES = 16 << 20
DEFAULT_COUNT = 256
LIVE_S = 600.0
_SPLITS: tuple[SplitName, SplitName] = ("calibration", "verification")
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


class Collector:
    """Takes all frames of a source and keeps the most different, losslessly, in a folder: the source may be a camera.

    Args:
        info: the source.
        folder: an empty folder for them; it holds at most half as many again as ``count``.
        count: how many will be chosen.
    """

    def __init__(self, info: SourceInfo, folder: Path, count: int) -> None:
        self.pool = Pool(count + max(count // 2, 8), moving=info.live or info.fps is not None)
        self._folder = folder

    def add(self, frame: Frame) -> None:
        """Look at the next frame.

        Raises:
            OSError: it cannot be kept.
        """
        kept, replaced = self.pool.add(frame.image, frame.index, frame.name, frame.pts_s)
        if replaced is not None:
            self.path(replaced).unlink()
        if kept:
            (self._folder / f"{frame.index:08d}.png").write_bytes(_png(frame.image))

    def path(self, candidate: Candidate) -> Path:
        """Where a candidate's picture lies."""
        return self._folder / f"{candidate.index:08d}.png"


class SetWriter:
    """Collects a set beside its place, in a ``with`` block; nothing is there before ``finish`` and nothing stays without it.

    Args:
        output: the set's folder; a set that is there is replaced.
        info: the source.
        count: how many pictures, for both splits together.

    Raises:
        CalibrationError: the folder holds something else, or cannot be written.
    """

    def __init__(self, output: str | os.PathLike[str], info: SourceInfo, count: int = DEFAULT_COUNT) -> None:
        check_output(Path(output), info)
        self._output = Path(output)
        self._place = Path(os.path.realpath(output))
        self._scratch = self._place.with_name(f".edgemask.{secrets.token_hex(8)}")
        self._info = info
        self._count = count
        self._collector = Collector(info, self._scratch / "frames", count)

    def __enter__(self) -> SetWriter:
        try:
            (self._scratch / "frames").mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Leave nothing of what was kept on the way; safe to call twice."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, frame: Frame) -> None:
        """Look at the next frame.

        Raises:
            CalibrationError: the disk is full.
        """
        try:
            self._collector.add(frame)
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self, verify_share: float = 0.2) -> tuple[CalibrationSet, str]:
        """Choose the pictures and write the set.

        Args:
            verify_share: more than 0, at most 0.5.

        Returns:
            The set and its coverage report.

        Raises:
            CalibrationError: fewer than 2 frames differ, or the set cannot be written.
        """
        candidates = self._collector.pool.result()
        seen = self._collector.pool.seen
        if len(candidates) < 2:
            raise CalibrationError(
                f"{self._info.name}: expected at least 2 frames that differ, got {len(candidates)} of {seen.frames} read "
                f"({seen.duplicates} near-duplicates, {seen.blank} of one colour): "
                + (
                    "is the lens covered?"
                    if seen.blank and not candidates
                    else "give more scenes, or more of the source"
                )
            )
        chosen = split(candidates, self._count, verify_share)
        report = coverage_report(self._info, seen, chosen, self._count)
        try:
            entries = [
                self._place_picture(candidate, part)
                for part, frames in zip(_SPLITS, (chosen.calibration, chosen.verification), strict=True)
                for candidate in frames
            ]
            digest = _sha256_of(entries)
            manifest = {
                "schema": SCHEMA,
                "kind": KIND,
                "source": {"name": self._info.name, "description": self._info.description},
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "count": len(entries),
                "split_by": chosen.by,
                "verify_share": verify_share,
                "read": {"frames": seen.frames, "near_duplicates": seen.duplicates, "blank": seen.blank},
                "sha256": digest,
                "files": [asdict(entry) for entry in entries],
            }
            self._write_text(MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
            self._write_text(REPORT_NAME, report)
            has_times = self._info.live or self._info.fps is not None
            pictures = [
                SheetPicture(
                    self._scratch / "set" / entry.name, entry.split, entry.scene, entry.pts_s if has_times else None
                )
                for entry in entries
            ]
            (self._scratch / "set" / SHEET_NAME).write_bytes(_png(draw_sheet(self._info.name, pictures), small=True))
            self._exchange()
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self.discard()
        return CalibrationSet(self._output, tuple(entries), digest, chosen.by), report

    def _place_picture(self, candidate: Candidate, part: SplitName) -> Entry:
        kept = self._collector.path(candidate)
        name = f"{part}/{kept.name}"
        place = self._scratch / "set" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept, place)
        return Entry(
            name,
            file_sha256(place),
            part,
            candidate.scene,
            candidate.index,
            candidate.name,
            round(candidate.pts_s, 6),
            round(candidate.brightness, 4),
        )

    def _write_text(self, name: str, text: str) -> None:
        # A file's name need not be UTF-8.
        (self._scratch / "set" / name).write_bytes(text.encode("utf-8", errors="replace"))

    def _exchange(self) -> None:
        old = self._scratch / "old"
        if self._place.exists():
            os.replace(self._place, old)
        try:
            os.replace(self._scratch / "set", self._place)
        except BaseException:
            if old.exists():
                os.replace(old, self._place)
            raise

    def _unwritable(self, error: OSError) -> CalibrationError:
        return CalibrationError(
            f"{self._output}: cannot be written ({error.strerror}): make room, or choose another --output"
        )


class SetSource(Source):
    """The pictures of one split of a set, in order of time."""

    def __init__(self, calibration_set: CalibrationSet, split: SplitName = "calibration") -> None:
        self._paths = calibration_set.paths(split)
        self.info = SourceInfo(
            name=calibration_set.folder.name,
            description=f"calibration set, {len(self._paths)} pictures for {split}",
            frame_count=len(self._paths),
            paths=tuple(str(path) for path in self._paths),
        )

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            yield Frame(read_picture(path), index, float(index), self.info.name, path.stem)


class ChosenSource(Source):
    """The most different frames of any source, chosen as for a set when the iteration begins."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._count = count
        known = source.info.frame_count
        self.info = replace(source.info, frame_count=None if known is None else min(known, count), live=False)

    def __iter__(self) -> Iterator[Frame]:
        info = self._source.info
        with tempfile.TemporaryDirectory(prefix="edgemask.") as folder:
            collector = Collector(info, Path(folder), self._count)
            try:
                for frame in within_limits(self._source):
                    collector.add(frame)
            except OSError as error:
                raise CalibrationError(
                    f"{folder}: cannot be written ({error.strerror}): make room, or set TMPDIR to a larger place"
                ) from error
            chosen = choose(collector.pool.result(), self._count)
            if not chosen:
                raise CalibrationError(
                    f"{info.name}: expected frames to calibrate on, got {collector.pool.seen.frames} of one colour: "
                    "is the lens covered?"
                )
            for candidate in chosen:
                image = read_picture(collector.path(candidate))
                yield Frame(image, candidate.index, candidate.pts_s, info.name, candidate.name)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class HashedFrames:
    """Passes frames on and adds them up: what was calibrated on, as a key for what was made of it."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = frames
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            self._digest.update(repr(frame.image.shape).encode())
            self._digest.update(frame.image.data if frame.image.flags.c_contiguous else frame.image.tobytes())
            yield frame

    @property
    def sha256(self) -> str:
        """Of the sizes and pixels of the frames so far, in their order."""
        return self._digest.hexdigest()


def open_calibration(spec: str, count: int = DEFAULT_COUNT) -> Source:
    """Open what to calibrate on.

    Args:
        spec: the folder of a calibration set, or any source.
        count: of a source, how many of its frames at most; a set is used as a whole.

    Returns:
        The frames for calibration: those of the set, or the most different ones of the source.

    Raises:
        CalibrationError: the set was changed or is damaged.
        SourceError: there is no such source, or it holds no frames.
    """
    if is_set(spec):
        return SetSource(read_set(spec))
    return ChosenSource(open_source(spec), count)


def within_limits(source: Source, max_frames: int | None = None) -> Iterator[Frame]:
    """The frames of a source to look at: at most so many; without a number, all, or ten minutes of a live source."""
    if max_frames is None and source.info.live:
        return takewhile(lambda frame: frame.pts_s < LIVE_S, source)
    return islice(source, max_frames)


def is_set(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a calibration set, whole or damaged."""
    return os.path.isfile(Path(folder) / MANIFEST_NAME) and os.path.isdir(Path(folder) / _SPLITS[0])


def read_set(folder: str | os.PathLike[str]) -> CalibrationSet:
    """Open a set and check every picture against its sha256.

    Raises:
        CalibrationError: no set, damaged, or with a changed, missing or additional picture.
    """
    folder = Path(folder)
    entries, digest, split_by = _read_manifest(folder)
    if (got := _sha256_of(entries)) != digest:
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
    if extra := [name for name in _unlisted(folder, entries) if name.split("/")[0] in _SPLITS]:
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
        with path.open("rb") as file:
            text = file.read(MANIFEST_LIMIT_BYTES + 1)
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
    if entry.split not in _SPLITS or not isinstance(entry.sha256, str):
        raise ValueError("a picture without split or sha256")
    # Nothing outside the folder is ever read.
    if not re.fullmatch(rf"{entry.split}/\d{{8,}}\.png", str(entry.name)):
        raise ValueError(f"a picture named {str(entry.name)!r}")
    return entry


def _unlisted(folder: Path, entries: Iterable[Entry]) -> list[str]:
    listed = {entry.name for entry in entries} | {MANIFEST_NAME, SHEET_NAME, REPORT_NAME}
    found = {Path(root, name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names}
    return sorted(found - listed)


def _sha256_of(entries: Iterable[Entry]) -> str:
    text = json.dumps([asdict(entry) for entry in entries], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def _png(image: Image, *, small: bool = False) -> bytes:
    # Every frame of a lively camera may be kept for a while: fast before small.
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6 if small else 1])[1].tobytes()
