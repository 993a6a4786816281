"""Where frames go: one file a kind, imported only when asked for."""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING

from pipeline.errors import BackendUnavailableError, SinkError
from pipeline.sinks.naming import path_for_source, shown
from pipeline.sinks.options import DEFAULTS, SinkOptions

if TYPE_CHECKING:
    from pipeline.frames.frame import SourceInfo
    from pipeline.render.overlay import Renderer
    from pipeline.sinks.base import Sink

__all__ = [
    "OUTPUT_PICTURE_SUFFIXES",
    "SINKS",
    "VIDEO_SUFFIXES",
    "SinkOptions",
    "open_sink",
    "path_for_source",
    "sink_kind",
]

SINKS = {
    # kind: (module, class)
    "null": ("pipeline.sinks.null", "NullSink"),
    "video": ("pipeline.sinks.video", "VideoSink"),
    "recording": ("pipeline.sinks.recording", "RecordingSink"),
    "picture": ("pipeline.sinks.pictures", "OnePictureSink"),
    "folder": ("pipeline.sinks.pictures", "FolderSink"),
    "results": ("pipeline.sinks.json_lines", "JsonLinesSink"),
    "rtsp": ("pipeline.sinks.rtsp", "RtspSink"),
    "gstreamer": ("pipeline.sinks.gstreamer", "GStreamerSink"),
}

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv"))
OUTPUT_PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))
RESULT_SUFFIXES = frozenset((".jsonl", ".ndjson"))

_EXPECTED = (
    "expected a video (out.mp4), a picture (out.png), a folder, results (out.jsonl or jsonl:-), "
    "a stream (rtsp://host/name or gst:PIPELINE) or null"
)


def open_sink(spec: str, info: SourceInfo, renderer: Renderer | None = None, options: SinkOptions = DEFAULTS) -> Sink:
    """Open an output by its string.

    Args:
        spec: "null", a video (out.mp4), a picture (out.png, for a source of one picture), a folder, results (out.jsonl,
            "jsonl:-"), "rtsp://host/name" or "gst:PIPELINE".
        info: the source that will be written; a video of a live one is a recording.
        renderer: tells how masks are shown; a folder of masks holds the masks themselves. None: an overlay of one class.
        options: what else an output may need.

    Raises:
        SinkError: it cannot be written, or would overwrite what is read.
    """
    kind = sink_kind(spec)
    module_name, class_name = SINKS["recording" if kind == "video" and info.live else kind]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{shown(spec)}: cannot be written here ({error}): install what it needs with: pip install '.[cpu]'"
        ) from error
    if any(os.path.exists(spec) and os.path.samefile(spec, path) for path in info.paths if os.path.exists(path)):
        raise SinkError(f"{spec}: expected an output of its own, got the source itself: choose another --output")
    if renderer is None:
        from pipeline.render.look import Look  # not at the top: OpenCV, which nobody needs who only asks for a kind
        from pipeline.render.overlay import Renderer

        renderer = Renderer(Look(), "binary")
    sink: Sink = getattr(module, class_name)(spec, info, renderer, options)
    return sink


def sink_kind(spec: str) -> str:
    """Which row of ``SINKS`` an output's string names.

    Raises:
        SinkError: it is of a kind that is not understood.
    """
    if spec == "null":
        return "null"
    if spec == "jsonl:-":
        return "results"
    if spec.startswith("gst:"):
        return "gstreamer"
    if re.match(r"rtsps?://[^/]", spec):
        return "rtsp"
    if not spec or "://" in spec:
        raise SinkError(f"--output {shown(spec) if spec else 'with nothing'}: {_EXPECTED}")
    if os.path.isdir(spec) or spec.endswith(os.sep):
        return "folder"
    suffix = os.path.splitext(spec)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in OUTPUT_PICTURE_SUFFIXES:
        return "picture"
    if suffix in RESULT_SUFFIXES:
        return "results"
    if os.path.exists(spec):
        raise SinkError(f"--output {spec}: expected a folder or a name that ends in one of {_known()}, got a file")
    if re.fullmatch(r"\.[a-z][a-z0-9]{1,5}", suffix):  # a folder is not what out.webm or out.mpeg4 means
        raise SinkError(
            f"--output {spec}: expected a name that ends in one of {_known()}, got {suffix}: end it in / if it is a folder"
        )
    return "folder"


def _known() -> str:
    return " ".join(sorted(VIDEO_SUFFIXES | OUTPUT_PICTURE_SUFFIXES | RESULT_SUFFIXES))
