"""The run half: frames in, masks over them out. Imports no heavy package until a source, engine or sink needs it."""

from pipeline.bundles.bundle import Bundle, Manifest
from pipeline.engines import ENGINES, open_engine
from pipeline.errors import (
    BackendUnavailableError,
    BundleError,
    EdgemaskError,
    OptionError,
    ShapeError,
    SinkError,
    SourceError,
)
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks import open_sink
from pipeline.sources import open_source

__all__ = [
    "ENGINES",
    "BackendUnavailableError",
    "Bundle",
    "BundleError",
    "EdgemaskError",
    "Events",
    "Frame",
    "Manifest",
    "OptionError",
    "ShapeError",
    "SinkError",
    "SourceError",
    "SourceInfo",
    "Views",
    "open_engine",
    "open_sink",
    "open_source",
    "run",
]
