"""Which backend was the fastest that agrees, kept for the next run on this machine with the same bundle."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, cache_folder
from pipeline.bundles.file_lock import take_lock
from pipeline.bundles.whole_file import write_whole
from pipeline.quick_dataclass import dataclass

_LIMIT_BYTES = 1 << 16
# What computes; a new version of one may be faster, or compute something else.
_PACKAGES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "torch", "torch-tensorrt")


class Way(NamedTuple):
    """How a program may be run.

    Attributes:
        backend: a key of ``ENGINES``.
        precision: as the backend takes it; empty: the program's own, and the only one.
    """

    backend: str
    precision: str = ""

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}".strip()

    @property
    def is_exact(self) -> bool:
        """Whether it computes the program as it is, which went through a gate when it was compiled."""
        return self.precision in ("", "f32")


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found out.

    Attributes:
        taken: the fastest way that agrees.
        ms: of each way that was timed, the time per frame.
        left_out: why others were not, by their names.
    """

    taken: Way
    ms: dict[str, float]
    left_out: dict[str, str]


class Choices:
    """The place where the choice for one bundle on this machine is kept.

    Args:
        bundle: that runs.
        ways: between which is chosen.
        overlap: whether as many frames a second as can be are asked for, or each as soon as can be.
    """

    def __init__(self, bundle: Bundle, ways: Sequence[Way], *, overlap: bool) -> None:
        files = bundle.manifest.files
        manifest = bundle.manifest
        # Layers that stay FP32 beside BF16 give the same program other masks.
        about = [_machine(Path("/")), _versions(), files[PROGRAM_NAME], dict(manifest.layers), manifest.frame_size_hw]
        plans = {entry.file: files.get(entry.file) for entry in bundle.manifest.engines}
        key = hashlib.sha256(json.dumps([*about, ways, overlap, plans]).encode()).hexdigest()
        self.path = cache_folder() / "choices" / f"{key[:32]}.json"
        self._ways = ways

    def read(self) -> Choice | None:
        """What is kept; None if nothing is, or nothing that makes sense."""
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(_LIMIT_BYTES))
            ms = {str(name): float(value) for name, value in found["ms"].items()}
            left_out = {str(name): str(reason) for name, reason in found["left_out"].items()}
            taken = Way(*map(str, found["taken"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return Choice(taken, ms, left_out) if taken in self._ways else None

    def write(self, choice: Choice) -> None:
        """Keep a choice; where nothing can be written the next run finds out again."""
        content = {"taken": list(choice.taken), "ms": choice.ms, "left_out": choice.left_out}
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(content, indent=2).encode() + b"\n")

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process finds out just now, which both would time too slow; as long as the block lasts."""
        handle = None
        try:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = take_lock(self.path.parent / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDONLY | os.O_CREAT)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            if handle is not None:
                os.close(handle)


def _machine(root: Path) -> list[str]:
    """What computes here, and its drivers."""
    found = [platform.machine(), platform.release(), str(len(os.sched_getaffinity(0)))]
    with suppress(OSError):
        lines = (root / "proc" / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found += sorted({line for line in lines if line.startswith(("model name", "CPU part", "flags", "Features"))})
    driver = root / "proc" / "driver" / "nvidia"
    for path in (driver / "version", *sorted(driver.glob("gpus/*/information"))):
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [line for line in lines if line.startswith(("NVRM", "Model", "GPU UUID"))]
    return found


def _versions() -> dict[str, str]:
    from importlib import metadata  # 25 ms, which one with nothing to choose between need not wait

    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
