"""Calibration sets collected from any source and written complete or not at all, and what compiles with ``--calib``.

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
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration.sets.additions import worth_adding
from calibration.sets.calibration_set import (
    KIND,
    MANIFEST_NAME,
    REPORT_NAME,
    SCHEMA,
    SHEET_NAME,
    SPLITS,
    CalibrationSet,
    Entry,
    check_output,
    is_set,
    read_set,
    sha256_of,
)
from calibration.sets.contact_sheet import SheetPicture, coverage_report, draw_sheet
from calibration.sets.selection import Candidate, Pool, SplitName, choose, split
from pipeline.bundles.bundle import file_sha256
from pipeline.bundles.file_lock import locked
from pipeline.bundles.whole_folder import put_folder
from pipeline.errors import CalibrationError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.frames.pixels import bands_of
from pipeline.sources import open_source
from pipeline.sources.bands import NUMPY_SUFFIX, read_bands
from pipeline.sources.base import Source
from pipeline.sources.picture_file import read_picture

DEFAULT_COUNT = 256
LIVE_S = 600.0


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
            self.path(replaced).unlink(missing_ok=True)
            self.path(replaced).with_suffix(NUMPY_SUFFIX).unlink(missing_ok=True)
        if not kept:
            return
        if bands_of(frame.format) is None:
            self.path(frame).write_bytes(_png(frame.image))
        else:
            np.save(self.path(frame).with_suffix(NUMPY_SUFFIX), frame.pixels)

    def path(self, candidate: Candidate | Frame) -> Path:
        """Where a candidate's picture lies; one with channels as in its file lies beside it, as ``.npy``."""
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
                f"({seen.duplicates} near-duplicates, {seen.blank} of one color): "
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
                for part, frames in zip(SPLITS, (chosen.calibration, chosen.verification), strict=True)
                for candidate in frames
            ]
            digest = sha256_of(entries)
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
            self._put(manifest, report, entries)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self.discard()
        return CalibrationSet(self._output, tuple(entries), digest, chosen.by), report

    def finish_onto(self, there: CalibrationSet) -> tuple[CalibrationSet, str]:
        """Write a set that is there again, with frames to calibrate on that it lacks; its own pictures stay as they are.

        Args:
            there: the set, in the place of this one.

        Returns:
            The set and its report.

        Raises:
            CalibrationError: no frame is worth adding, or the set cannot be written.
        """
        found = self._collector.pool.result()
        worth = worth_adding(there, found, [self._collector.path(candidate) for candidate in found])
        if not worth:
            raise CalibrationError(
                f"{self._info.name}: expected frames that {there.folder} has nothing like, got none of "
                f"{self._collector.pool.seen.frames} read: each is a near-duplicate, blank, or of a scene that is for verification"
            )
        chosen = choose(worth, self._count)
        try:
            for entry in there.entries:
                place = self._scratch / "set" / entry.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there.folder / entry.name, place)
            first = max(entry.index for entry in there.entries) + 1
            scenes = max(entry.scene for entry in there.entries)
            added = [self._place_picture(candidate, "calibration", first, scenes) for candidate in chosen]
            old = [[entry for entry in there.entries if entry.split == part] for part in SPLITS]
            entries = [*old[0], *added, *old[1]]
            digest = sha256_of(entries)
            manifest = json.loads((there.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            more = {"name": self._info.name, "description": self._info.description, "count": len(added)}
            manifest |= {
                "count": len(entries),
                "sha256": digest,
                "added": [*manifest.get("added", []), more],
                "files": [asdict(entry) for entry in entries],
            }
            report = f"{_old_report(there)}added: {len(added)} of {self._info.name}: {self._info.description}\n"
            self._put(manifest, report, entries)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self.discard()
        return CalibrationSet(self._output, tuple(entries), digest, there.split_by), report

    def _put(self, manifest: Mapping[str, Any], report: str, entries: Sequence[Entry]) -> None:
        self._write_text(MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
        self._write_text(REPORT_NAME, report)
        self._write_sheet(entries)
        with locked(self._place.parent):
            put_folder(self._scratch / "set", self._place)

    def _write_sheet(self, entries: Iterable[Entry]) -> None:
        folder, has_times = self._scratch / "set", self._info.live or self._info.fps is not None
        pictures = [
            SheetPicture(folder / entry.name, entry.split, entry.scene, entry.pts_s if has_times else None)
            for entry in entries
        ]
        (folder / SHEET_NAME).write_bytes(_png(draw_sheet(self._info.name, pictures), small=True))

    def _place_picture(self, candidate: Candidate, part: SplitName, first: int = 0, scenes: int = 0) -> Entry:
        """Put a candidate where it belongs; ``first`` and ``scenes`` come before its own number and that of its scene."""
        kept = self._collector.path(candidate)
        name = f"{part}/{first + candidate.index:08d}{kept.suffix}"
        place = self._scratch / "set" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept, place)
        return Entry(
            name,
            file_sha256(place),
            part,
            scenes + candidate.scene,
            first + candidate.index,
            candidate.name,
            round(candidate.pts_s, 6),
            round(candidate.brightness, 4),
        )

    def _write_text(self, name: str, text: str) -> None:
        # A file's name need not be UTF-8.
        (self._scratch / "set" / name).write_bytes(text.encode("utf-8", errors="replace"))

    def _unwritable(self, error: OSError) -> CalibrationError:
        return CalibrationError(
            f"{self._output}: cannot be written ({error.strerror}): make room, or choose another --output"
        )


class SetSource(Source):
    """The pictures of one split of a set, in order of time."""

    def __init__(self, calibration_set: CalibrationSet, split: SplitName = "calibration") -> None:
        self.set = calibration_set
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
    """The most different frames of any source, chosen as for a set when they are first asked for; each iteration gives the same frames.

    Args:
        source: where frames come from; read once.
        count: how many to iterate over at most.
        held_back: how many more to choose, of other scenes where there is more than one, for ``held_back``.
    """

    def __init__(self, source: Source, count: int, held_back: int = 0) -> None:
        self._source = source
        self._count, self._count_held_back = count, held_back
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._chosen: list[tuple[Path, Candidate]] = []
        self._held_back: list[tuple[Path, Candidate]] = []
        self.by: str | None = None
        known = source.info.frame_count
        self.info = replace(source.info, frame_count=None if known is None else min(known, count), live=False)

    def __iter__(self) -> Iterator[Frame]:
        self.choose()
        yield from self._read(self._chosen)

    def held_back(self) -> list[Frame]:
        """The frames that were held back; none where the source has no two that differ."""
        self.choose()
        return list(self._read(self._held_back))

    @property
    def in_one_scene(self) -> bool:
        """Whether what was held back shows the scene that is iterated over, at a later time."""
        return self.by == "time"

    def choose(self) -> None:
        """Read the source and choose, if that was not done yet; ``info`` has the number of frames from then on.

        Raises:
            CalibrationError: all frames are of one color, or the disk is full.
            SourceError: the source breaks off.
        """
        if self._folder is not None:
            return
        info = self._source.info
        folder = tempfile.TemporaryDirectory(prefix="edgemask.")
        total = self._count + self._count_held_back
        try:
            collector = Collector(info, Path(folder.name), total)
            self._source.pixels = self.pixels
            for frame in within_limits(self._source):
                collector.add(frame)
            candidates = collector.pool.result()
            if not candidates:
                raise CalibrationError(
                    f"{info.name}: expected frames to calibrate on, got {collector.pool.seen.frames} of one color: "
                    "is the lens covered?"
                )
            held_back: list[Candidate] = []
            if self._count_held_back and len(candidates) > 1:
                parts = split(candidates, total, min(self._count_held_back / total, 0.5))
                chosen, held_back, self.by = parts.calibration, parts.verification, parts.by
            else:
                chosen = choose(candidates, self._count)
        except OSError as error:
            folder.cleanup()
            raise CalibrationError(
                f"{folder.name}: cannot be written ({error.strerror}): make room, or set TMPDIR to a larger place"
            ) from error
        except BaseException:
            folder.cleanup()
            raise
        self._folder = folder
        self._chosen = [(collector.path(candidate), candidate) for candidate in chosen]
        self._held_back = [(collector.path(candidate), candidate) for candidate in held_back]
        self.info = replace(self.info, frame_count=len(chosen))

    def close(self) -> None:
        """Close the source, and remove the frames that were kept."""
        self._source.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _read(self, chosen: list[tuple[Path, Candidate]]) -> Iterator[Frame]:
        bands = bands_of(self.pixels)
        for path, candidate in chosen:
            pixels = read_picture(path) if bands is None else read_bands(path.with_suffix(NUMPY_SUFFIX), bands)
            kind = "bgr" if bands is None else self.pixels
            yield Frame(pixels, candidate.index, candidate.pts_s, self.info.name, candidate.name, kind)


class HashedFrames:
    """Passes frames on and adds them up: what was calibrated on, as a key for what was made of it.

    Attributes:
        count: of the frames so far.
    """

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.count = 0
        self._frames = frames
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            self.count += 1
            picture = frame.input_hwc
            self._digest.update(repr(picture.shape).encode())
            self._digest.update(picture.data if picture.flags.c_contiguous else picture.tobytes())
            yield frame

    @property
    def sha256(self) -> str:
        """Of the sizes and pixels of the frames so far, in their order."""
        return self._digest.hexdigest()


def open_calibration(spec: str, count: int = DEFAULT_COUNT, held_back: int = 0) -> SetSource | ChosenSource:
    """Open what to calibrate on.

    Args:
        spec: the folder of a calibration set, or any source.
        count: of a source, how many of its frames at most; a set is used as a whole.
        held_back: of a source, how many more to hold back; a set has frames for verification.

    Returns:
        The frames for calibration: those of the set, or the most different ones of the source.

    Raises:
        CalibrationError: the set was changed or is damaged.
        SourceError: there is no such source, or it holds no frames.
    """
    if is_set(spec):
        return SetSource(read_set(spec))
    return ChosenSource(open_source(spec), count, held_back)


def within_limits(source: Source, max_frames: int | None = None) -> Iterator[Frame]:
    """The frames of a source to look at: at most so many; without a number, all, or ten minutes of a live source."""
    if max_frames is None and source.info.live:
        return takewhile(lambda frame: frame.pts_s < LIVE_S, source)
    return islice(source, max_frames)


def _old_report(there: CalibrationSet) -> str:
    try:
        return (there.folder / REPORT_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _png(image: Image, *, small: bool = False) -> bytes:
    # Every frame of a lively camera may be kept for a while: fast before small.
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6 if small else 1])[1].tobytes()
