"""Where frames come from: one file a kind, imported only when asked for."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from pipeline.sources.base import Source
    from pipeline.sources.options import LiveOptions

SOURCES = {
    # kind: (module, class)
    "test": ("pipeline.sources.synthetic", "SyntheticSource"),
    "camera": ("pipeline.sources.camera", "CameraSource"),
    "pictures": ("pipeline.sources.pictures", "PictureSource"),
    "video": ("pipeline.sources.video", "VideoSource"),
    "stream": ("pipeline.sources.stream", "StreamSource"),
    "gstreamer": ("pipeline.sources.gstreamer", "GstreamerSource"),
}
LIVE_KINDS = frozenset(("camera", "stream", "gstreamer"))

FORMS = "a camera number, /dev/video0, a video, a picture, a folder, a glob, rtsp://, http://, csi://0, gst:PIPELINE or test://"

PICTURE_SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".exr", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pic", ".png"),
        *(".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp"),
    )
)

_KINDS_BY_SCHEME = {
    **dict.fromkeys(("rtsp", "rtsps", "http", "https"), "stream"),
    **dict.fromkeys(("gst", "csi"), "gstreamer"),
}


def open_source(spec: str, live: LiveOptions | None = None) -> Source:
    """Open a source by its string.

    Args:
        spec: "0" or "/dev/video0" (camera), a video, a picture, a folder, a glob, "rtsp://user:password@host/path",
            "http://host/stream", "csi://0", "gst:PIPELINE", or "test://?size=1280x720&frames=300".
        live: deadlines and policies of cameras and streams; None: the defaults.

    Raises:
        SourceError: there is no such thing, or it holds no frames. A stream that does not answer is no error: it may come.
        BackendUnavailableError: what reads it is not on this machine.
    """
    kind = source_kind(spec)
    module_name, class_name = SOURCES[kind]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{redact(spec)}: cannot be read here ({error}): install what it needs with: pip install '.[cpu]'"
        ) from error
    make = getattr(module, class_name)
    source: Source = make(spec, live) if kind in LIVE_KINDS else make(spec)
    return source


def open_sources(specs: Sequence[str], live: LiveOptions | None = None) -> list[Source]:
    """Open several sources, with names that differ: those that do not get a number.

    Raises:
        SourceError: as ``open_source``; those before it are closed.
    """
    sources: list[Source] = []
    taken: set[str] = set()
    try:
        for spec in specs:
            source = open_source(spec, live)
            sources.append(source)
            name = source.info.name
            number = 1
            # Compared as files are named after them.
            while re.sub(r"[^\w.-]+", "_", name).casefold() in taken:
                number += 1
                name = f"{source.info.name}-{number}"
            taken.add(re.sub(r"[^\w.-]+", "_", name).casefold())
            if name != source.info.name:
                source.info = replace(source.info, name=name)
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources


def source_kind(spec: str) -> str:
    """Which row of ``SOURCES`` a source's string names.

    Raises:
        SourceError: it is empty, or a kind of address that is not understood.
    """
    if not spec:
        raise SourceError(f"--source: expected {FORMS}, got nothing")
    if spec.startswith("test:"):
        return "test"
    if re.fullmatch(r"\d{1,3}", spec) or (spec.startswith("/dev/") and not _holds_files(spec)):
        return "camera"
    if (match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", spec)) and not os.path.exists(spec):
        kind = _KINDS_BY_SCHEME.get(match[1].lower())
        if kind is None or not spec[match.end() :].startswith("//" if kind == "stream" else ""):
            raise SourceError(f"{_scheme(spec)}: expected {FORMS}, got an address of another kind")
        if re.search(r"[\x00-\x1f\x7f]", spec):
            raise SourceError(f"{_scheme(spec)}: expected an address, got one with control characters")
        return kind
    suffix = os.path.splitext(spec)[1].lower()
    is_glob = any(mark in spec for mark in "*?[") and not os.path.exists(spec)
    return "pictures" if os.path.isdir(spec) or is_glob or suffix in PICTURE_SUFFIXES else "video"


def _holds_files(spec: str) -> bool:
    # /dev/shm is a folder in memory, where videos and pictures may lie as well as anywhere else.
    return os.path.isfile(spec) or os.path.isdir(spec) or spec.startswith("/dev/shm/")


def _scheme(spec: str) -> str:
    # An address may carry a password: messages show the scheme alone.
    return spec.split(":", 1)[0] + "://…" if "://" in spec else spec.split(":", 1)[0] + ":…"
