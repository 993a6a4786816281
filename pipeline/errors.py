"""The errors of the whole project: one sentence each, saying what, expected, got and do.

EdgemaskError
├── BundleError               missing, damaged, or made for another version or device
│   └── PlanError             its plan does not fit this machine or was changed; rebuilding mends it
├── BackendUnavailableError   packages or a device are not here
├── BuildError                a network or a plan was to be made here first, and cannot be
├── ServerAwayError           a frame has no mask, for the servers that compute masks are gone or busy
├── ShapeError                an array does not fit what the model was compiled for
├── SourceError               frames cannot be read
├── SinkError                 frames cannot be written
├── OptionError               an option has no such value
├── CalibrationError          a calibration set cannot be collected, written or trusted
├── CompileError              a network cannot be compiled, or what came out does not agree with it
│   └── NotConvertibleError   its file is sound, but not of a form that the searches for FP16 and INT8 take
└── ModelError                a trained network cannot be had
    ├── CheckpointError           its file of weights cannot be used
    │   └── NotOurNetworkError    the file is whole, but holds another network than U-Net or U²-Net
    └── WeightsUnavailableError   published weights cannot be had here

The commands print the
sentence of an ``EdgemaskError`` and leave with status 2; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

ERRORS_VARIABLE = "EDGEMASK_ERRORS_FD"
"""A file descriptor that gets a command's error in place of the user: of the process that started it and tells it itself."""


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


class ServerAwayError(EdgemaskError):
    """A frame has no mask, for the servers that compute masks are gone or busy; the next one may have one."""


class ShapeError(EdgemaskError, ValueError):
    """An array does not fit: wrong axes, size or dtype."""


class SourceError(EdgemaskError):
    """Frames cannot be read from a source."""


class TruncatedError(SourceError):
    """A file ends before its frames do.

    Attributes:
        end_s: time of the last frame that could be read, in seconds from the first.
    """

    def __init__(self, message: str, end_s: float = 0.0) -> None:
        super().__init__(message)
        self.end_s = end_s


class EngineHungError(EdgemaskError):
    """The engine does not come back, as when a GPU is lost. Its thread cannot be stopped: the process is to be left without it."""


class SinkError(EdgemaskError):
    """Frames cannot be written to an output."""


class OptionError(EdgemaskError, ValueError):
    """An option was given a value that it does not take."""


class CalibrationError(EdgemaskError):
    """A calibration set cannot be collected, written or trusted."""


class CompileError(EdgemaskError):
    """A network cannot be compiled, or what came out does not agree with it."""


class NotConvertibleError(CompileError):
    """A network's file is sound, but holds what the one form of networks lacks; a caller may compile it in FP32 as it is."""


class ModelError(EdgemaskError):
    """A trained network cannot be had: its weights, its file or its name."""


class CheckpointError(ModelError):
    """A file of weights cannot be used: missing, damaged, unsafe, or made for another network."""


class NotOurNetworkError(CheckpointError):
    """The file is whole, but its network is neither U-Net nor U²-Net; a caller may take it as a foreign network."""


class WeightsUnavailableError(ModelError):
    """Published weights cannot be downloaded, or are not the ones that were published."""
