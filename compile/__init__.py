"""The build half: trained weights to a bundle that the run half can trust. Always ``from compile.x import y``."""

import pipeline  # noqa: F401 - before any library is imported that would report to its maker
