"""OpenVINO without its reports."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def load_openvino() -> Any:
    """Import OpenVINO.

    Being imported, it reports so to its makers and writes down a number for this machine, by a package that it does without where
    that cannot be imported. No variable switches that off.

    Raises:
        ImportError: it is not here.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what cannot be imported, as the import system has it
    return importlib.import_module("openvino")
