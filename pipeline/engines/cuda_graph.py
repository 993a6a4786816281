"""CUDA graphs, which PyCUDA cannot make: the work of one enqueue, recorded once and launched with one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from pipeline.errors import BackendUnavailableError


class CudaGraph:
    """What ``enqueue`` puts onto a stream, recorded and not run.

    Addresses and shapes are recorded with it: they must stay what they were. Work that was never run before must not be recorded,
    for libraries set themselves up on their first run.

    Args:
        stream_handle: address of a stream that is not the default one; the context that it belongs to is current.
        enqueue: puts the work onto that stream, and does nothing that waits.

    Raises:
        BackendUnavailableError: the work cannot be recorded.
    """

    def __init__(self, stream_handle: int, enqueue: Callable[[], None]) -> None:
        self._stream = driver.CUstream(stream_handle)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(driver.cuStreamBeginCapture, self._stream, mode)
        try:
            enqueue()
        except BaseException:  # the stream must not stay in capture
            status, *unfinished = driver.cuStreamEndCapture(self._stream)
            if status == driver.CUresult.CUDA_SUCCESS:
                driver.cuGraphDestroy(*unfinished)
            raise
        graph = _call(driver.cuStreamEndCapture, self._stream)
        try:
            self._executable = _call(driver.cuGraphInstantiate, graph, 0)
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Put the recorded work onto the stream.

        Raises:
            BackendUnavailableError: CUDA refuses it.
        """
        _call(driver.cuGraphLaunch, self._executable, self._stream)

    def close(self) -> None:
        """Give it back; it must not be running."""
        driver.cuGraphExecDestroy(self._executable)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:  # a driver that is too old for the package lacks the function
        raise BackendUnavailableError(f"CUDA graph: {error}") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailableError(f"CUDA graph: {driver.CUresult(status).name}")
    return values[0] if values else None
