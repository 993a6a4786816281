"""The kernels that TensorRT-RTX compiled for this GPU, kept beside the plan so that the next start need not compile again."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from pipeline.bundles.regular_file import open_without_waiting
from pipeline.bundles.whole_file import write_whole


class RuntimeCacheFile:
    """A file for TensorRT-RTX's ``IRuntimeCache``, which itself checks version, GPU and driver when it reads one.

    What cannot be read or written is left out without a word: it costs time, never a result.

    Args:
        plan_path: the plan that it belongs to.
        sm: compute capability of the GPU.
    """

    def __init__(self, plan_path: Path, sm: int) -> None:
        self.path = plan_path.with_name(f"{plan_path.name}.sm{sm}.cache")
        self._content = b""

    def load(self, cache: Any) -> bool:
        """Fill ``cache`` from the file; False if there is none that it takes, or that anyone could have written."""
        try:
            with open(self.path, "rb", opener=open_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IWOTH:
                    return False
                content = file.read()
        except OSError:
            return False
        if not content or not cache.deserialize(content):
            return False
        self._content = content
        return True

    def save(self, cache: Any) -> None:
        """Write ``cache`` to the file if it has changed."""
        serialized = cache.serialize()
        content = bytes(serialized) if serialized is not None else b""
        if not content or content == self._content:
            return
        with contextlib.suppress(OSError):
            write_whole(self.path, content)
            self._content = content
