"""The errors of the run half: one sentence each, saying what, expected, got and do.

EdgemaskError
├── BundleError               missing, damaged, or made for another version or device
│   └── PlanError             its plan does not fit this machine or was changed; rebuilding mends it
├── BackendUnavailableError   packages or a device are not here
├── BuildError                a network or a plan was to be made here first, and cannot be
├── ShapeError                an array does not fit what the model was compiled for
├── SourceError               frames cannot be read
├── SinkError                 frames cannot be written
└── OptionError               an option has no such value

A room above adds its own leaf: ``compile.errors.CompileError``, ``calibration.errors.CalibrationError``. The commands print the
sentence of an ``EdgemaskError`` and leave with status 2; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations


class EdgemaskError(Exception):
    """Something that the user can mend; the message says how."""


class BundleError(EdgemaskError):
    """A bundle is missing, damaged, or made for another version or device."""


class PlanError(BundleError):
    """A bundle's plan does not fit this machine, or was changed; rebuilding it from the bundle's program mends that.

    Attributes:
        problem: what is wrong, without the plan's path and the command.
    """

    def __init__(self, message: str, problem: str | None = None) -> None:
        super().__init__(message)
        self.problem = message if problem is None else problem


class BackendUnavailableError(EdgemaskError):
    """A backend's packages or its device are not on this machine."""


class BuildError(EdgemaskError):
    """A network or a plan was to be made on this machine first, and cannot be."""


class ShapeError(EdgemaskError, ValueError):
    """An array does not fit: wrong axes, size or dtype."""


class SourceError(EdgemaskError):
    """Frames cannot be read from a source."""


class SinkError(EdgemaskError):
    """Frames cannot be written to an output."""


class OptionError(EdgemaskError, ValueError):
    """An option was given a value that it does not take."""
