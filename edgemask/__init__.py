"""Real-time segmentation masks: the public names of the project, each loaded when it is first asked for.

    from edgemask import Model, open_sink, open_source

    model = Model("u2netp")
    with open_source("video.mp4") as source, open_sink("out.mp4", source.info) as out:
        for frame in model.stream(source):
            frame.view = model.draw(frame, mode="overlay", alpha=0.5)
            out.write(frame)

``build`` and ``BuildOptions`` make bundles out of trained networks and need the extra ``compile``; everything else needs ``cpu`` or
one of the GPU extras. Everything that can go wrong is an ``EdgemaskError``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compile.build import build as build
    from compile.options import BuildOptions as BuildOptions
    from pipeline.bundles.bundle import Bundle as Bundle
    from pipeline.engines.server_options import ServerOptions as ServerOptions
    from pipeline.errors import BackendUnavailableError as BackendUnavailableError
    from pipeline.errors import BuildError as BuildError
    from pipeline.errors import BundleError as BundleError
    from pipeline.errors import CalibrationError as CalibrationError
    from pipeline.errors import CheckpointError as CheckpointError
    from pipeline.errors import CompileError as CompileError
    from pipeline.errors import EdgemaskError as EdgemaskError
    from pipeline.errors import ModelError as ModelError
    from pipeline.errors import OptionError as OptionError
    from pipeline.errors import PlanError as PlanError
    from pipeline.errors import ShapeError as ShapeError
    from pipeline.errors import SinkError as SinkError
    from pipeline.errors import SourceError as SourceError
    from pipeline.errors import WeightsUnavailableError as WeightsUnavailableError
    from pipeline.frames.frame import Frame as Frame
    from pipeline.frames.frame import SourceInfo as SourceInfo
    from pipeline.model import Model as Model
    from pipeline.render.look import Look as Look
    from pipeline.results.regions import regions as regions
    from pipeline.shapes.region import Region as Region
    from pipeline.sinks import SinkOptions as SinkOptions
    from pipeline.sinks import open_sink as open_sink
    from pipeline.sources import open_source as open_source
    from pipeline.sources import open_sources as open_sources

_HOMES = {
    "Model": "pipeline.model",
    "open_source": "pipeline.sources",
    "open_sources": "pipeline.sources",
    "open_sink": "pipeline.sinks",
    "SinkOptions": "pipeline.sinks",
    "Look": "pipeline.render.look",
    "regions": "pipeline.results.regions",
    "Region": "pipeline.shapes.region",
    "ServerOptions": "pipeline.engines.server_options",
    "Frame": "pipeline.frames.frame",
    "SourceInfo": "pipeline.frames.frame",
    "Bundle": "pipeline.bundles.bundle",
    "build": "compile.build",
    "BuildOptions": "compile.options",
    **dict.fromkeys(
        (
            "BackendUnavailableError",
            "BuildError",
            "BundleError",
            "CalibrationError",
            "CheckpointError",
            "CompileError",
            "EdgemaskError",
            "ModelError",
            "OptionError",
            "PlanError",
            "ShapeError",
            "SinkError",
            "SourceError",
            "WeightsUnavailableError",
        ),
        "pipeline.errors",
    ),
}

__all__ = sorted([*_HOMES, "__version__"])


_PLACE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACKAGES = ("pipeline", "calibration", "compile", "benchmarks")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgemask' has no attribute {name!r}")
    _find_packages()
    if name == "__version__":
        from pipeline.version import version

        return version()
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ImportError as error:
        from pipeline.errors import BackendUnavailableError

        extra = "compile" if _HOMES[name].startswith("compile") else "cpu"
        raise BackendUnavailableError(
            f"edgemask.{name} needs packages that are not here ({error}): install them with: pip install 'edgemask[{extra}]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _find_packages() -> None:
    """Load this project's packages from where this one is: the current folder comes first, and may have some of these names."""
    for name in _PACKAGES:
        path = os.path.join(_PLACE, name, "__init__.py")
        loaded = sys.modules.get(name)
        if loaded is None:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        elif os.path.abspath(getattr(loaded, "__file__", None) or "") != path:
            raise ImportError(
                f"edgemask: expected its own package {name!r} from {_PLACE}, got that of {loaded.__file__}, which was imported before: "
                "use edgemask before it is imported, or call it something else"
            )
