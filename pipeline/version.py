"""Which version this is. Imported where it is asked for: the standard library takes 10 ms to load what tells it."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of the installed package; "clone" where it runs from a clone that was not installed."""
    try:
        return metadata.version("edgemask")
    except metadata.PackageNotFoundError:
        return "clone"
