"""Pictures: a folder with one for each frame, or a single file."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.render.modes import MODES
from pipeline.render.overlay import Renderer, picture_of
from pipeline.sinks.base import Sink, scratch_path
from pipeline.sinks.disk import FreeSpace
from pipeline.sinks.kinds import SinkKind

PICTURE = SinkKind(
    name="picture",
    opens="OnePictureSink",
    help="one picture, of a source that is one",
    order=30,
    extra="cpu",
    forms=("a picture (out.png)",),
    suffixes=(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"),
)
FOLDER = SinkKind(
    name="folder",
    opens="FolderSink",
    help="a folder with a PNG file for each frame",
    order=40,
    extra="cpu",
    forms=("a folder",),
    folders=True,
)

_LOSSY = frozenset((".jpg", ".jpeg", ".webp"))
_WITHOUT_ALPHA = frozenset((".jpg", ".jpeg"))
_PNG, _PNG_HEAD_BYTES = b"\x89PNG\r\n\x1a\n", 33  # the signature; with the header, of 25 bytes


class FolderSink(Sink):
    """Writes ``FOLDER/<name>.png`` for every frame, each complete or not at all.

    With the render mode "mask" it is the mask itself: 8-bit gray of the frame's size, probability × 255 or class index. With
    "cutout" it is the subject with its mask as alpha channel. Else it is the view.

    Of a live source no file is replaced: where an earlier run has written, numbers go on behind its last one. A full disk, or a folder
    that was taken away, stops it for as long as that lasts.
    """

    def _open(self) -> None:
        self._folder = Path(self._spec)
        self._sources = {os.path.realpath(path) for path in self._info.paths}
        self.written = f"{self._folder}{os.sep}"
        self.comes_back = self._info.live
        self._space = FreeSpace(self._folder, self._options.min_free_bytes) if self._info.live else None
        self._before = 0  # numbers that were taken when this run began
        make_folder(self._folder)

    def write(self, frame: Frame) -> None:
        """Write the frame's picture.

        Raises:
            SinkError: it cannot be written, or the disk is nearly full.
        """
        path = self._path(frame)
        try:
            if self._space is not None:
                self._space.check()
        except SinkError as error:
            raise SinkError(f"{self.written}: {error}") from error
        if os.path.realpath(path) in self._sources:
            raise SinkError(
                f"{path}: expected an output of its own, got a picture of the source: choose another --output"
            )
        if path.parent != self._folder:
            make_folder(path.parent)
        write_picture(path, content_of(frame, self._renderer), self._options.comment)

    def again(self) -> bool:
        """Look whether pictures could be written, after that has failed."""
        try:
            make_folder(self._folder)
            if self._space is not None:
                self._space.check(now=True)
        except SinkError:
            return False
        return True

    def _path(self, frame: Frame) -> Path:
        path = self._folder / f"{frame.name}.png"
        numbered = re.fullmatch(r"(.+_)(\d{6,})", frame.name) if self._info.live else None
        if numbered is None:
            return path
        stem, number = numbered[1], int(numbered[2])
        path = self._folder / f"{stem}{self._before + number:06d}.png"
        if os.path.lexists(path):
            taken = re.compile(rf"{re.escape(stem)}(\d{{6,12}})\.png")
            last = max(int(match[1]) for name in os.listdir(self._folder) if (match := taken.fullmatch(name)))
            self._before = last + 1 - number
            path = self._folder / f"{stem}{last + 1:06d}.png"
        return path


class OnePictureSink(Sink):
    """Writes one file (``out.png``, ``out.jpg``, …) for a source of one picture.

    Content as in a folder, except that a cut-out in a format without an alpha channel is the view.
    """

    def _open(self) -> None:
        spec, count, renderer = self._spec, self._info.frame_count, self._renderer
        if count != 1:
            got = "an unknown number of" if count is None else count
            raise SinkError(
                f"--output {spec}: expected a source of one picture, got {got} frames: write a video (out.mp4) or a folder"
            )
        self._path = Path(spec)
        if MODES[renderer.look.mode].exact and renderer.task == "classes" and self._path.suffix.lower() in _LOSSY:
            raise SinkError(f"--output {spec}: expected .png, .bmp or .tif: this format would change the class numbers")
        self.written = spec
        make_folder(self._path.parent)

    def write(self, frame: Frame) -> None:
        """Write the picture."""
        picture = content_of(frame, self._renderer)
        if picture.shape[2:] == (4,) and self._path.suffix.lower() in _WITHOUT_ALPHA and frame.view is not None:
            picture = frame.view
        write_picture(self._path, picture, self._options.comment)


def content_of(frame: Frame, renderer: Renderer) -> NDArray[np.uint8]:
    """What a picture of a frame holds: its view, the mask itself, or a cut-out with opacity, as the render mode says.

    Returns:
        (H, W), (H, W, 3) or (H, W, 4) uint8: gray, BGR or BGRA; not to be changed.
    """
    if frame.mask is None or frame.view is None:
        raise ValueError(f"{frame!r} has no mask or view yet")
    picture = picture_of(frame.image, frame.mask, frame.view, renderer)
    if frame.alpha is not None and picture.shape[2:] == (4,):
        # What its source hid stays hidden.
        picture[..., 3] = np.minimum(picture[..., 3], frame.alpha)
    return picture


def write_picture(path: Path, picture: NDArray[np.uint8], comment: str = "") -> None:
    """Write a picture file, complete or not at all.

    Args:
        path: its suffix names the format.
        picture: (H, W), (H, W, 3) or (H, W, 4) uint8: gray, BGR or BGRA.
        comment: kept in a PNG file; other formats go without.

    Raises:
        SinkError: it cannot be written.
    """
    size = f"{picture.shape[1]}×{picture.shape[0]}"
    try:
        encoded, content = cv2.imencode(path.suffix.lower(), picture)
    except cv2.error as error:
        raise SinkError(f"{path}: OpenCV cannot write this kind of picture at {size}: use .png") from error
    if not encoded:
        raise SinkError(f"{path}: OpenCV cannot write this kind of picture at {size}: use .png")
    scratch = scratch_path(path)
    try:
        with scratch.open("xb") as file:
            file.write(_commented(content.tobytes(), comment))
        os.replace(scratch, path)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written ({error.strerror})") from error
    finally:  # also when a signal comes
        if os.path.exists(scratch):
            scratch.unlink()


def _commented(content: bytes, comment: str) -> bytes:
    """A PNG file with a comment behind its header, where readers find it at once; of another format as it is."""
    if not comment or not content.startswith(_PNG):
        return content
    text = b"tEXtComment\0" + comment.encode("latin-1")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return content[:_PNG_HEAD_BYTES] + chunk + content[_PNG_HEAD_BYTES:]


def make_folder(folder: Path) -> None:
    """Make a folder that will be written to.

    Raises:
        SinkError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"{folder}: cannot be made ({error.strerror}): choose another --output") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"{folder}: cannot be written (no permission): choose another --output")
