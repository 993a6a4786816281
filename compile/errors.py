"""The error of the build half."""

from __future__ import annotations

from pipeline.errors import EdgemaskError


class CompileError(EdgemaskError):
    """A network cannot be compiled, or what came out does not agree with it."""
