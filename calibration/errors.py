"""The error of calibration."""

from __future__ import annotations

from pipeline.errors import EdgemaskError


class CalibrationError(EdgemaskError):
    """A calibration set cannot be collected, written or trusted."""
