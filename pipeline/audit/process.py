"""The parent's side of the process that computes audited frames."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from pipeline.bundles.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.frames.frame import Frame, Image
from pipeline.own_process import module_command

# Read when NumPy and OpenCV are first imported.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "SILENT"}


class AuditProcess:
    """Starts it, asks it and ends it; all but ``kill`` on one thread, whose end is its end too.

    Args:
        bundle: whose program in FP32 it computes.

    Attributes:
        bundle: as given.
        pid: its number; None where there is none.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.pid: int | None = None
        self.bundle = bundle
        self._popen: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_over = False

    def start(self) -> None:
        """Start it, and wait until it can compute.

        Raises:
            BundleError: the program cannot be used.
            EOFError: it has ended; or ``OSError``.
        """
        ours, its = Pipe()
        try:
            self._popen = subprocess.Popen(
                [*module_command("pipeline.audit.child"), str(os.getpid()), str(its.fileno())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what reads ours must not wait for it
                env={**os.environ, **_ENVIRONMENT},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._connection, self.pid = ours, self._popen.pid
        if self._is_over:  # killed as it was started
            self._popen.kill()
        begin = {"folder": str(self.bundle.folder), "manifest": self.bundle.manifest.to_json()}
        ours.send_bytes(json.dumps(begin).encode())
        self._hear()

    def ask(self, frame: Frame, mask_hw: Image) -> dict[str, Any]:
        """Have a frame computed and compared.

        Args:
            frame: as it was decoded.
            mask_hw: (H, W) uint8, what the run has made of it.

        Returns:
            iou, mae, empty and judged, as ``pipeline.frames.audited.Audited`` has them.

        Raises:
            BundleError: the program cannot be run.
            EOFError: the process has ended; or ``OSError``.
        """
        assert self._connection is not None
        header = {
            "index": frame.index,
            "source": frame.source,
            "format": frame.format,
            "dtype": frame.pixels.dtype.str,
            "shape": frame.pixels.shape,
            "size_hw": mask_hw.shape,
            "not_finite": frame.not_finite,
        }
        self._connection.send_bytes(json.dumps(header).encode())
        for array in (frame.pixels, mask_hw):
            self._connection.send_bytes(np.ascontiguousarray(array).data.cast("B"))
        return self._hear()

    def kill(self, *, for_good: bool = False) -> None:
        """End it now, from any thread; who waits for it gets an ``EOFError``.

        Args:
            for_good: one that is being started, too.
        """
        self._is_over = self._is_over or for_good
        if (popen := self._popen) is not None:
            popen.kill()

    def ended(self) -> str:
        """End it and wait for that; in words how it ended, where it did so by itself."""
        popen, connection = self._popen, self._connection
        self._popen = self._connection = self.pid = None
        if connection is not None:
            connection.close()
        if popen is None:
            return "cannot be started"
        try:
            code = popen.wait(1)  # it may still be writing why
        except subprocess.TimeoutExpired:
            popen.kill()
            code = popen.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def _hear(self) -> dict[str, Any]:
        assert self._connection is not None
        said: dict[str, Any] = json.loads(self._connection.recv_bytes())
        if "unusable" in said:
            raise BundleError(said["unusable"])
        return said
