"""A camera by number or device path, through OpenCV."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import SourceError
from pipeline.frame import Frame, Image, SourceInfo
from pipeline.sources.base import Source


class CameraSource(Source):
    """``0``, ``/dev/video0`` or a stable path such as ``/dev/v4l/by-id/…``.

    Motion JPEG is asked for first: uncompressed YUYV over USB 2 allows 1080p only at a few frames per second. What the camera
    agreed to is in ``info.description``.
    """

    def __init__(self, spec: str) -> None:
        device = f"/dev/video{spec}" if spec.isdecimal() else spec
        on_linux = sys.platform.startswith("linux")
        if on_linux:
            _check_device(device)
        backend = cv2.CAP_V4L2 if on_linux else cv2.CAP_ANY
        target: int | str = device if on_linux else int(spec) if spec.isdecimal() else spec
        self._capture = cv2.VideoCapture(target, backend)
        if not self._capture.isOpened():
            raise SourceError(
                f"{device}: expected a camera, got a device that gives no pictures: is another program using it?"
            )
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        opened, first = self._capture.read()
        if not opened:
            self._capture.release()
            raise SourceError(f"{device}: expected pictures, got none: is another program using it?")
        self._first: Image | None = np.asarray(first, np.uint8)
        height, width = first.shape[:2]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._device = device
        self.info = SourceInfo(
            name=Path(device).name,
            description=f"camera {device}, {_fourcc(self._capture)}, {width}×{height}, {rate or 0:g} FPS",
            size_hw=(height, width),
            fps=Fraction(rate).limit_denominator(1001) if rate and rate > 0 else None,
            live=True,
        )

    def __iter__(self) -> Iterator[Frame]:
        start_ns = 0
        index = 0
        while True:
            image, self._first = self._first, None
            if image is None:
                read, picture = self._capture.read()
                if not read:
                    raise SourceError(
                        f"{self._device}: expected a picture, got none after {index} frames: was it unplugged?"
                    )
                image = np.asarray(picture, np.uint8)
            frame = Frame(image, index, 0.0, self.info.name, f"{self.info.name}_{index:06d}")
            start_ns = start_ns or frame.captured_ns
            frame.pts_s = (frame.captured_ns - start_ns) / 1e9
            yield frame
            index += 1

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()


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
