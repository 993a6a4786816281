"""A folder of pictures and labels, as other programs train on them: COCO's, YOLO's, or masks as PNG files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.render.look import subject_level
from pipeline.results.finder import Finder
from pipeline.shapes.found import Found
from pipeline.sinks.base import Sink, scratch_path
from pipeline.sinks.disk import FreeSpace
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.pictures import make_folder, write_picture
from pipeline.terminal import logger_of

log = logger_of(__name__)

LABELS = SinkKind(
    name="labels",
    opens="LabelsSink",
    help="a folder of pictures with labels for training: COCO, YOLO or PNG",
    order=45,
    extra="cpu",
    labels_form_of="folder",
    option="--labels",
)

_WRITE_EVERY_S = 60.0
_COPY_BYTES = 1 << 20


class LabelsSink(Sink):
    """Writes ``FOLDER/images/NAME.jpg`` for every frame, and its regions as labels beside it.

    Frames whose mask is known to be wrong or old (``Frame.not_finite``, ``Frame.stale``) are left out, and counted. The folder must
    not hold labels already: two runs in one would give frames of one the labels of another.
    """

    leaves_views = True

    def _open(self) -> None:
        self._folder = Path(self._spec)
        self.written = f"{self._folder}{os.sep}"
        self._find = self._options.finder or Finder(self._renderer, self._options.classes, [self._info])
        self._left_out = 0
        writer = _WRITERS[self._options.labels or "coco"]
        for other in _WRITERS.values():
            if (self._folder / other.main).exists():
                raise SinkError(
                    f"--output {self._spec}: expected a folder without labels, got one with {other.main}: choose another --output"
                )
        make_folder(self._folder)
        self._place = self._folder.stat()
        self.comes_back = self._info.live
        self._space = FreeSpace(self._folder, self._options.min_free_bytes) if self._info.live else None
        self._writer: Writer | None = writer(self._folder, self._find)

    def write(self, frame: Frame) -> None:
        """Write the frame's picture and its labels.

        Raises:
            SinkError: they cannot be written; those until then are kept.
        """
        assert self._writer is not None, "the output is closed"
        found = self._find(frame)
        if frame.not_finite or frame.stale:
            self._left_out += 1
            return
        try:
            self._check(now=False)
            picture = self._folder / "images" / f"{frame.name}.jpg"
            make_folder(picture.parent)
            write_picture(picture, frame.image)
            self._writer.add(frame, found)
        except OSError as error:
            raise SinkError(f"{self._folder}: cannot be written ({error.strerror})") from error

    def again(self) -> bool:
        """Look whether labels could be written, after that has failed: into the same folder, for they belong together."""
        try:
            self._check(now=True)
        except (SinkError, OSError):
            return False
        return True

    def _check(self, *, now: bool) -> None:
        if not os.path.samestat(self._place, self._folder.stat()):
            raise SinkError(f"{self._folder}: it was replaced, or its disk is gone")
        if self._space is not None:
            self._space.check(now=now)

    def close(self) -> None:
        """Finish the labels."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._left_out:
            log.info(f"{self._folder}: {self._left_out} frames were left out: their masks are old or not finite")
        try:
            writer.close()
        except OSError as error:
            raise SinkError(f"{self._folder}: cannot be finished ({error.strerror})") from error


class Writer(ABC):
    """A form of labels.

    Args:
        folder: where; it is there.
        find: knows the classes.

    Attributes:
        main: the file, or folder, by which a folder of such labels is known.
    """

    main = ""

    def __init__(self, folder: Path, find: Finder) -> None:
        self._folder = folder
        self._find = find

    @abstractmethod
    def add(self, frame: Frame, found: Found) -> None:
        """Write a frame's labels."""

    def close(self) -> None:
        """Finish."""
        return


class CocoLabels(Writer):
    """``annotations.json``, whole at any moment from the first minute on: pictures, regions and classes, as COCO's tools read them.

    A region's ``segmentation`` is a polygon, its ``area`` the number of its pixels. Entries go to files of their own until all
    are put together, so that memory does not grow with the run.
    """

    main = "annotations.json"

    def __init__(self, folder: Path, find: Finder) -> None:
        super().__init__(folder, find)
        self._pictures = self._annotations = 0
        self._entries: dict[str, IO[bytes]] = {}
        self._due_s = time.monotonic() + _WRITE_EVERY_S
        for name in ("images", "annotations"):
            # Has no name on the disk: whatever ends the run, nothing is left of it.
            self._entries[name] = os.fdopen(_unnamed(folder), "w+b")

    def add(self, frame: Frame, found: Found) -> None:
        """Write a frame's labels."""
        self._pictures += 1
        height, width = frame.size_hw
        self._append(
            "images", {"id": self._pictures, "file_name": f"{frame.name}.jpg", "width": width, "height": height}
        )
        for region in (region for one in found.classes for region in one.regions):
            self._annotations += 1
            self._append(
                "annotations",
                {
                    "id": self._annotations,
                    "image_id": self._pictures,
                    "category_id": region.label + 1,
                    "segmentation": [region.polygon().ravel().tolist()],
                    "area": region.pixels,
                    "bbox": list(region.xywh),
                    "iscrowd": 0,
                },
            )
        begun_s = time.monotonic()
        if begun_s >= self._due_s:
            self._write()
            # The longer it takes, the rarer it is done.
            self._due_s = time.monotonic() + max(_WRITE_EVERY_S, 100 * (time.monotonic() - begun_s))

    def close(self) -> None:
        """Write the file for the last time."""
        try:
            self._write()
        finally:
            for file in self._entries.values():
                file.close()

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        file = self._entries[name]
        file.seek(0, os.SEEK_END)
        file.write(b",\n" if file.tell() else b"\n")
        file.write(json.dumps(entry, separators=(",", ":")).encode("utf-8", "replace"))

    def _write(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self._find.classes, 1)]
        path = self._folder / self.main
        scratch = scratch_path(path)
        try:
            with scratch.open("xb") as whole:
                for name, file in self._entries.items():
                    whole.write(b'{"' if name == "images" else b',\n"')
                    whole.write(name.encode() + b'":[')
                    file.flush()
                    file.seek(0)
                    while part := file.read(_COPY_BYTES):
                        whole.write(part)
                    whole.write(b"]")
                whole.write(b',\n"categories":' + json.dumps(categories).encode() + b"}\n")
                whole.flush()
                os.fsync(whole.fileno())
            os.replace(scratch, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                scratch.unlink()


class YoloLabels(Writer):
    """``labels/NAME.txt`` with a line for each region, and ``data.yaml``, which Ultralytics trains with as it is."""

    main = "data.yaml"

    def __init__(self, folder: Path, find: Finder) -> None:
        super().__init__(folder, find)
        names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(find.classes))
        # Trains and validates with the same pictures until somebody divides them.
        text = f"path: {json.dumps(str(folder.resolve()))}\ntrain: images\nval: images\nnames:\n{names}"
        _write_text(folder / self.main, text)

    def add(self, frame: Frame, found: Found) -> None:
        """Write a frame's labels: an empty file where there is nothing, which is an example too."""
        path = self._folder / "labels" / f"{frame.name}.txt"
        make_folder(path.parent)
        _write_text(path, "".join(f"{region.yolo()}\n" for one in found.classes for region in one.regions))


class PngLabels(Writer):
    """``masks/NAME.png``, the number of each pixel's class, and ``classes.txt`` with a name for each number, from 0 on."""

    main = "classes.txt"

    def __init__(self, folder: Path, find: Finder) -> None:
        super().__init__(folder, find)
        _write_text(folder / self.main, "".join(f"{name}\n" for name in find.all_classes))

    def add(self, frame: Frame, found: Found) -> None:
        """Write a frame's class map."""
        mask = frame.mask
        assert mask is not None
        path = self._folder / "masks" / f"{frame.name}.png"
        make_folder(path.parent)
        if self._find.is_binary:
            mask = np.asarray(
                cv2.threshold(mask, subject_level(self._find.threshold) - 1, 1, cv2.THRESH_BINARY)[1], np.uint8
            )
        write_picture(path, mask)


_WRITERS: dict[str, type[Writer]] = {"coco": CocoLabels, "yolo": YoloLabels, "png": PngLabels}


def _write_text(path: Path, text: str) -> None:
    scratch = scratch_path(path)
    try:
        scratch.write_bytes(text.encode("utf-8", "replace"))
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def _unnamed(folder: Path) -> int:
    path = scratch_path(folder / "entries.tmp")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return descriptor
