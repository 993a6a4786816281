"""A camera by number or device path, through OpenCV."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.frames.frame import Image, SourceInfo
from pipeline.sources.kinds import SourceKind
from pipeline.sources.live import Connection, LiveSource, LostError, Picture
from pipeline.sources.options import LiveOptions

CAMERA = SourceKind(
    name="camera",
    opens="CameraSource",
    help="a camera by number or device, through OpenCV",
    order=10,
    extra="cpu",
    forms=("a camera number", "/dev/video0"),
    live=True,
    pattern=r"\d{1,3}|/dev/(?!shm(?:/|$)).*",
)

# A read that fails sooner than a time-out says that the camera is gone. OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT sets that time-out, in
# whole seconds; the command sets it before it imports OpenCV.
_AT_ONCE_S = 0.7
_VIDEO4LINUX = 81  # the major number of its devices

Opened = tuple[cv2.VideoCapture, Image]


class CameraSource(LiveSource):
    """``0``, ``/dev/video0`` or a stable path such as ``/dev/v4l/by-id/…``.

    Motion JPEG is asked for first: uncompressed YUYV over USB 2 allows 1080p only at a few frames per second. What the camera
    agreed to is in ``info.description``. One that is not there, at the start where ``LiveOptions.refused_s`` says so, is opened by
    its path once it is.
    """

    def __init__(self, spec: str, live: LiveOptions | None = None) -> None:
        device = f"/dev/video{spec}" if spec.isdecimal() else spec
        self._opened: Opened | None = None
        try:
            self._opened = _open(device)
        except SourceError:
            if live is None or not live.refused_s or _is_other_device(device):
                raise
        info = SourceInfo(Path(device).name, f"camera {device}, which is not there yet", live=True)
        if self._opened is not None:
            info = _info(device, *self._opened)

        def connect() -> Connection:
            opened, self._opened = self._opened, None
            return CameraConnection(device, opened)

        super().__init__(info, connect, live)

    def close(self) -> None:
        """Give the camera back."""
        super().close()
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].release()


class CameraConnection(Connection):
    """A camera from its opening to its loss.

    Args:
        device: its path.
        opened: the camera and its first picture, where it is open already.
    """

    def __init__(self, device: str, opened: Opened | None = None) -> None:
        self._device = device
        self._opened = opened
        self._cancelled = False

    def __iter__(self) -> Iterator[Picture]:
        capture, image = self._opened or _open(self._device)
        try:
            yield Picture(image)
            while not self._cancelled:
                start_s = time.monotonic()
                read, picture = capture.read()
                if read:
                    yield Picture(np.asarray(picture, np.uint8))
                elif time.monotonic() - start_s < _AT_ONCE_S:
                    raise LostError("no picture came: was it unplugged?")
        finally:
            capture.release()

    def cancel(self) -> None:
        """End after the picture that is waited for."""
        self._cancelled = True


def _info(device: str, capture: cv2.VideoCapture, image: Image) -> SourceInfo:
    height, width = image.shape[:2]
    rate = capture.get(cv2.CAP_PROP_FPS)
    return SourceInfo(
        name=Path(device).name,
        description=f"camera {device}, {_fourcc(capture)}, {width}×{height}, {rate or 0:g} FPS",
        size_hw=(height, width),
        fps=Fraction(rate).limit_denominator(1001) if rate and rate > 0 else None,
        live=True,
    )


def _open(device: str) -> Opened:
    """Open a camera, and read its first picture: some tell only then that they cannot."""
    on_linux = sys.platform.startswith("linux")
    if on_linux:
        _check_device(device)
    number = device.removeprefix("/dev/video")
    target: int | str = int(number) if number.isdecimal() and not on_linux else device
    capture = cv2.VideoCapture(target, cv2.CAP_V4L2 if on_linux else cv2.CAP_ANY)
    if not capture.isOpened():
        raise SourceError(
            f"{device}: expected a camera, got a device that gives no pictures: is another program using it?"
        )
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    read, picture = capture.read()
    if not read:
        capture.release()
        raise SourceError(f"{device}: expected pictures, got none: is another program using it?")
    return capture, np.asarray(picture, np.uint8)


def _is_other_device(device: str) -> bool:
    """Whether a device is there that will never be a camera."""
    try:
        found = os.stat(device)
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) != _VIDEO4LINUX


def _check_device(device: str) -> None:
    path = Path(device)
    if not path.exists():
        found = sorted(str(entry) for entry in Path("/dev").glob("video*"))
        raise SourceError(
            f"{device}: no such camera: {'there are ' + ', '.join(found) if found else 'this machine has none'}"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(f"{device}: no permission: add yourself to its group with: sudo usermod -aG video $USER")


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    letters = "".join(chr((code >> shift) & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
    return letters if letters.isprintable() and letters else "format unknown"
