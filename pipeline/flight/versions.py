"""Which versions a recording was made by, without importing any package."""

from __future__ import annotations

import platform
from importlib import metadata

from pipeline.version import version

_PACKAGES = ("numpy", "av", "opencv-python", "onnxruntime", "tensorrt", "torch-tensorrt", "tritonclient")


def versions() -> dict[str, str]:
    """Of this project, of Python, of the machine's system, and of the packages that frames and masks go through."""
    found = {"edgemask": version(), "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
