"""Where frames go: one file a kind, which says what it takes; imported only when asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.errors import SinkError
from pipeline.sinks.kinds import SINKS, SinkKind, forms, kind_of, shown
from pipeline.sinks.naming import path_for_source
from pipeline.sinks.options import DEFAULTS, SinkOptions

if TYPE_CHECKING:
    from pipeline.frames.frame import SourceInfo
    from pipeline.render.overlay import Renderer
    from pipeline.sinks.base import Sink

__all__ = ["SINKS", "SinkKind", "SinkOptions", "forms", "open_sink", "path_for_source", "sink_kind"]


def open_sink(spec: str, info: SourceInfo, renderer: Renderer | None = None, options: SinkOptions = DEFAULTS) -> Sink:
    """Open an output by its string.

    Args:
        spec: "null", a video (out.mp4), a picture (out.png, for a source of one picture), a folder, results (out.jsonl,
            "jsonl:-"), "rtsp://host/name", "gst:PIPELINE", or what a row of another package takes.
        info: the source that will be written; a video of a live one is a recording.
        renderer: tells how masks are shown; a folder of masks holds the masks themselves. None: an overlay of one class.
        options: what else an output may need.

    Raises:
        SinkError: it cannot be written, or would overwrite what is read.
        BackendUnavailableError: what writes it is not on this machine.
    """
    kind = kind_of(spec, live=info.live, labels=options.labels is not None)
    make = SINKS.load(kind, f"{shown(spec)}: cannot be written here")
    if any(os.path.exists(spec) and os.path.samefile(spec, path) for path in info.paths if os.path.exists(path)):
        raise SinkError(f"{spec}: expected an output of its own, got the source itself: choose another --output")
    if renderer is None:
        from pipeline.render.look import Look  # not at the top: OpenCV, which nobody needs who only asks for a kind
        from pipeline.render.overlay import Renderer

        renderer = Renderer(Look(), "binary")
    sink: Sink = make(spec, info, renderer, options)
    return sink


def sink_kind(spec: str) -> str:
    """The name of the row of ``SINKS`` that an output's string names.

    Raises:
        SinkError: it is of a kind that is not understood.
    """
    return kind_of(spec).name
