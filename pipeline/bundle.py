"""``pipeline.bundles.bundle`` under the name that it had at first, for scripts that import it from here."""

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest

__all__ = ["PROGRAM_NAME", "Bundle", "Manifest"]
