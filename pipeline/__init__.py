"""The run half: frames in, masks over them out. Its public names, each loaded when it is first asked for."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle as Bundle
    from pipeline.bundles.bundle import Manifest as Manifest
    from pipeline.engines import ENGINES as ENGINES
    from pipeline.engines import open_engine as open_engine
    from pipeline.errors import BackendUnavailableError as BackendUnavailableError
    from pipeline.errors import BundleError as BundleError
    from pipeline.errors import EdgemaskError as EdgemaskError
    from pipeline.errors import OptionError as OptionError
    from pipeline.errors import ShapeError as ShapeError
    from pipeline.errors import SinkError as SinkError
    from pipeline.errors import SourceError as SourceError
    from pipeline.flow.events import Events as Events
    from pipeline.flow.run import run as run
    from pipeline.flow.views import Views as Views
    from pipeline.frames.frame import Frame as Frame
    from pipeline.frames.frame import SourceInfo as SourceInfo
    from pipeline.sinks import open_sink as open_sink
    from pipeline.sources import open_source as open_source

_HOMES = {
    **dict.fromkeys(("Bundle", "Manifest"), "pipeline.bundles.bundle"),
    **dict.fromkeys(("ENGINES", "open_engine"), "pipeline.engines"),
    **dict.fromkeys(
        (
            "BackendUnavailableError",
            "BundleError",
            "EdgemaskError",
            "OptionError",
            "ShapeError",
            "SinkError",
            "SourceError",
        ),
        "pipeline.errors",
    ),
    "Events": "pipeline.flow.events",
    "run": "pipeline.flow.run",
    "Views": "pipeline.flow.views",
    **dict.fromkeys(("Frame", "SourceInfo"), "pipeline.frames.frame"),
    "open_sink": "pipeline.sinks",
    "open_source": "pipeline.sources",
}

__all__ = sorted(_HOMES)

# ONNX Runtime and others report to their makers unless a variable says no before they are imported. Every package of the project
# does this first; child processes inherit it. What a user has set stays.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
