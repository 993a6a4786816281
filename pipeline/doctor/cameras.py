"""Cameras and what they give, asked of the kernel (Video4Linux 2) without starting them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.machine.machine import read_board
from pipeline.machine.probe import Facts, Finding, Question
from pipeline.machine.system_file import read_text

Ioctl = Callable[[int, int, bytearray], object]
"""``fcntl.ioctl``: descriptor, request, structure that is read and changed."""

_CODE = """
from pathlib import Path
from pipeline.doctor.cameras import read_cameras
found["cameras"] = read_cameras(Path({root!r}))
"""

# linux/videodev2.h: requests, and their structures in native byte order.
QUERYCAP, CAPABILITY = (
    0x80685600,
    struct.Struct("=16s32s32s3I12x"),
)  # driver, card, bus, version, all and this node's abilities
ENUM_FMT, FORMAT = 0xC0405602, struct.Struct("=3I32s4s16x")  # index, type, flags, description, four characters
ENUM_FRAMESIZES, FRAME_SIZE = 0xC02C564A, struct.Struct("=I4sI6I8x")  # index, format, kind, sizes
_HAS_NODE_ABILITIES = 0x80000000
_CAPTURES = {0x00000001: 1, 0x00001000: 9}  # ability -> buffer type: one plane, several planes
_DISCRETE = 1
_MOST = 256  # of formats or sizes; a driver that never ends its list must not hold us

# What OpenCV turns into pictures.
_PICTURES = frozenset(
    ("MJPG", "JPEG", "YUYV", "UYVY", "NV12", "NV21", "YU12", "YV12", "BGR3", "RGB3", "XR24", "AR24", "GREY", "Y16")
)
# RG10, BG12, pRAA, …: what a sensor sees before an image processor made a picture of it.
_BAYER = re.compile(r"(RG|BG|GB|BA|GR)(8|10|12|14|16)|p[RBGg][A-Z0-9]{2}|BA81|GBRG|GRBG|RGGB")


@dataclass
class Camera:
    """A device that captures.

    Attributes:
        formats: four characters -> (width, height) of each size, or of the smallest and the largest where all between are
            allowed; none where the driver does not list them.
        problem: why it cannot be asked, one of "permission", "busy" or the system's words.
    """

    device: str
    name: str
    formats: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    problem: str | None = None


def questions(root: Path, _: Mapping[str, str]) -> dict[str, Question]:
    """What is asked in a process of its own: a driver may hang."""
    return {"cameras": Question(_CODE.format(root=str(root)))} if any(root.glob("dev/video*")) else {}


def read_cameras(root: Path, ioctl: Ioctl = fcntl.ioctl) -> list[dict[str, Any]]:
    """Ask every ``/dev/video*`` below ``root``; the fields of a ``Camera`` each. Nodes that do not capture are left out."""
    nodes = [path for path in root.glob("dev/video*") if path.name[5:].isdecimal()]
    cameras = (_read_camera(root, path, ioctl) for path in sorted(nodes, key=lambda path: int(path.name[5:])))
    return [asdict(camera) for camera in cameras if camera is not None]


def camera_findings(facts: Facts) -> list[Finding]:
    """A row for each camera."""
    answer = facts.answers.get("cameras")
    if answer is not None and answer.problem:
        return [Finding("cameras", "Cameras", "note", f"cannot be asked: {answer.problem}")]
    cameras = [Camera(**entry) for entry in answer.found["cameras"]] if answer else []
    if not cameras:
        return [Finding("cameras", "Cameras", "note", "none (no /dev/video* that captures)")]
    jetson = read_board(facts.root).jetson
    return [_finding(camera, jetson) for camera in cameras]


def _finding(camera: Camera, jetson: bool) -> Finding:
    title = (f"camera_{Path(camera.device).name}", f"Camera {camera.device.removeprefix('/dev/video')}")
    words = f"{camera.device}, {camera.name}"
    if camera.problem == "permission":
        words += ": no permission; after this command log in again"
        return Finding(*title, "missing", words, "sudo usermod -aG video $USER")
    if camera.problem == "busy":
        return Finding(*title, "note", f"{words}: in use by another program", f"fuser -v {camera.device}")
    if camera.problem:
        return Finding(*title, "note", f"{words}: {camera.problem}")
    if not camera.formats:
        return Finding(*title, "note", f"{words}: it lists no formats")
    words += ": " + ", ".join(_format(*entry) for entry in camera.formats.items())
    if _PICTURES & camera.formats.keys():
        return Finding(*title, "ok", words)
    if any(_BAYER.fullmatch(code) for code in camera.formats):
        way = "GStreamer's nvarguscamerasrc makes pictures of it" if jetson else "OpenCV makes no pictures of it"
        return Finding(*title, "note", f"{words}; a bare sensor: {way}")
    return Finding(*title, "note", f"{words}; none that OpenCV reads")


def _format(code: str, sizes_wh: list[tuple[int, int]]) -> str:
    if not sizes_wh:
        return code
    width, height = max(sizes_wh, key=lambda size: size[0] * size[1])
    return f"{code} to {width}×{height}"


def _read_camera(root: Path, path: Path, ioctl: Ioctl) -> Camera | None:
    name = read_text(root / "sys/class/video4linux" / path.name / "name")
    camera = Camera(f"/dev/{path.name}", name or "without a name")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        camera.problem = _problem(error)
        return camera
    try:
        buffer = bytearray(CAPABILITY.size)
        ioctl(descriptor, QUERYCAP, buffer)
        _, card, _, _, device, node = CAPABILITY.unpack(buffer)
        camera.name = name or card.split(b"\0")[0].decode(errors="replace")
        abilities = node if device & _HAS_NODE_ABILITIES else device
        kinds = [kind for ability, kind in _CAPTURES.items() if abilities & ability]
        if not kinds:
            return None  # the second node of a USB camera gives data about frames
        camera.formats = {
            code.decode("latin-1").rstrip(): list(_sizes_wh(descriptor, code, ioctl))
            for kind in kinds
            for code in _codes(descriptor, kind, ioctl)
        }
    except OSError as error:
        camera.problem = _problem(error)
    finally:
        os.close(descriptor)
    return camera


def _codes(descriptor: int, kind: int, ioctl: Ioctl) -> Iterator[bytes]:
    for index in range(_MOST):
        buffer = bytearray(FORMAT.pack(index, kind, 0, b"", b""))
        if not _next(descriptor, ENUM_FMT, buffer, ioctl):
            return
        yield FORMAT.unpack(buffer)[4]


def _sizes_wh(descriptor: int, code: bytes, ioctl: Ioctl) -> Iterator[tuple[int, int]]:
    for index in range(_MOST):
        buffer = bytearray(FRAME_SIZE.pack(index, code, 0, *(0,) * 6))
        if not _next(descriptor, ENUM_FRAMESIZES, buffer, ioctl):
            return
        _, _, kind, *sizes = FRAME_SIZE.unpack(buffer)
        if kind != _DISCRETE:
            # One entry holds it all: smallest width, largest, step, and the same of heights.
            yield sizes[0], sizes[3]
            yield sizes[1], sizes[4]
            return
        yield sizes[0], sizes[1]


def _next(descriptor: int, request: int, buffer: bytearray, ioctl: Ioctl) -> bool:
    """Ask for one entry of a list; False at its end, or where a driver has no such list."""
    try:
        ioctl(descriptor, request, buffer)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTTY):
            return False
        raise
    return True


def _problem(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission"
    return "busy" if error.errno == errno.EBUSY else error.strerror or str(error)
