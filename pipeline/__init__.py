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
from pipeline.flow.run import run
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks import open_sink
from pipeline.sources import open_source

__all__ = [
    "ENGINES",
    "BackendUnavailableError",
    "Bundle",
    "BundleError",
    "EdgemaskError",
    "Frame",
    "Manifest",
    "OptionError",
    "ShapeError",
    "SinkError",
    "SourceError",
    "SourceInfo",
    "open_engine",
    "open_sink",
    "open_source",
    "run",
]
