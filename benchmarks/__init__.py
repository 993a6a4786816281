"""Measurements, one file a question; each prints a table and can write JSON with the environment it ran in."""

import pipeline  # noqa: F401 - before any library is imported that would report to its maker
