"""Where frames go: one file a kind, imported only when asked for."""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING

from pipeline.errors import BackendUnavailableError, SinkError

if TYPE_CHECKING:
    from pipeline.frame import SourceInfo
    from pipeline.overlay import Renderer
    from pipeline.sinks.base import Sink

SINKS = {
    # kind: (module, class)
    "null": ("pipeline.sinks.null", "NullSink"),
    "video": ("pipeline.sinks.video", "VideoSink"),
    "picture": ("pipeline.sinks.pictures", "OnePictureSink"),
    "folder": ("pipeline.sinks.pictures", "FolderSink"),
}

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv"))
OUTPUT_PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))


def open_sink(spec: str, info: SourceInfo, renderer: Renderer) -> Sink:
    """Open an output by its string.

    Args:
        spec: "null", a video (out.mp4), a picture (out.png, for a source of one picture) or a folder.
        info: the source that will be written.
        renderer: tells how masks are shown; a folder of masks holds the masks themselves.

    Raises:
        SinkError: it cannot be written, or would overwrite what is read.
    """
    kind = sink_kind(spec)
    module_name, class_name = SINKS[kind]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{spec}: cannot be written here ({error}): install what it needs with: pip install '.[cpu]'"
        ) from error
    if any(os.path.exists(spec) and os.path.samefile(spec, path) for path in info.paths if os.path.exists(path)):
        raise SinkError(f"{spec}: expected an output of its own, got the source itself: choose another --output")
    sink: Sink = getattr(module, class_name)(spec, info, renderer)
    return sink


def sink_kind(spec: str) -> str:
    """Which row of ``SINKS`` an output's string names.

    Raises:
        SinkError: it is of a kind that is not understood.
    """
    if spec == "null":
        return "null"
    if not spec or "://" in spec:
        raise SinkError(
            f"--output {spec or 'with nothing'}: expected a video (out.mp4), a picture (out.png), a folder or null"
        )
    if os.path.isdir(spec) or spec.endswith(os.sep):
        return "folder"
    suffix = os.path.splitext(spec)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in OUTPUT_PICTURE_SUFFIXES:
        return "picture"
    if os.path.exists(spec):
        raise SinkError(f"--output {spec}: expected a folder or a name that ends in one of {_known()}, got a file")
    if re.fullmatch(r"\.[a-z][a-z0-9]{1,5}", suffix):  # a folder is not what out.webm or out.mpeg4 means
        raise SinkError(
            f"--output {spec}: expected a name that ends in one of {_known()}, got {suffix}: end it in / if it is a folder"
        )
    return "folder"


def _known() -> str:
    return " ".join(sorted(VIDEO_SUFFIXES | OUTPUT_PICTURE_SUFFIXES))
