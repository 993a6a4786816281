"""The frame program as a saved PyTorch program whose network is one TensorRT engine, for desktops with torch; two frames in flight.

    submit    frame -> page-locked memory ──upload──▶ device ──compute──▶ device ──download──▶ page-locked memory    collect -> mask

Loading a saved program runs what its author put into it: it holds Python pickles. So the bytes are checked against the manifest first
(``pipeline.bundles.plan``), and a bundle of unknown origin is not for this backend.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import NAMES, read_plan, rebuild_command
from pipeline.engines.base import Computed, Engine
from pipeline.engines.kinds import EngineKind
from pipeline.engines.torch_tensorrt_library import (
    RUNTIME,
    load_torch_tensorrt,
    one_line,
    public_version,
    quiet,
    tensorrt_version,
)
from pipeline.errors import BackendUnavailableError, PlanError, ShapeError

TORCH_TENSORRT = EngineKind(
    name="torch-tensorrt",
    opens="TorchTensorRTEngine",
    help="TensorRT inside PyTorch, on desktops that have it",
    order=30,
    extra="torch-tensorrt",
    gpu=True,
    plans=True,
    needs=("gpu", "torch_tensorrt", "opencv"),
)

CPU_SM = 0
"""Stands for the CPU in a manifest's compute capabilities."""


class TorchTensorRTEngine(Engine):
    """Runs the saved program of a bundle that fits this GPU and this Torch-TensorRT, its engine as a CUDA graph.

    Args:
        bundle: from a source that is trusted: loading a saved program runs what is in it.
        device: "cuda", one such as "cuda:1", or "cpu" for a program without a TensorRT engine.

    Raises:
        BackendUnavailableError: Torch-TensorRT or the GPU is not here.
        PlanError: the bundle has no program for this GPU and version, or it was changed, or it is none.
    """

    in_flight = 2

    def __init__(self, bundle: Bundle, *, device: str = "cuda") -> None:
        super().__init__(bundle)
        self._device = _Cuda(bundle, device) if torch.device(device).type == "cuda" else _Cpu(device)
        self._entry, content = read_plan(
            bundle, RUNTIME, self._device.version, self._device.sm, self._device.description
        )
        self._require_same_tensorrt()
        self._program = self._load(content)
        self._free = deque(_Slot() for _ in range(self.in_flight))
        self._busy: deque[_Slot] = deque()
        self.description = self._device.description

    def _require_same_tensorrt(self) -> None:
        built = self._entry.versions.get("tensorrt", "")
        if self._device.tensorrt_version and built != self._device.tensorrt_version:
            raise self._refused(f"expected a program of TensorRT {self._device.tensorrt_version}, got one of {built}")

    def _load(self, content: bytes) -> Any:
        try:
            with quiet():
                exported = torch.export.load(io.BytesIO(content))
                program = exported.module()
        except Exception as error:  # anything: it unpacks, unpickles and deserialises
            raise self._refused(
                f"{NAMES[RUNTIME]} {self._device.version} cannot load it ({one_line(error)})"
            ) from error
        inputs = [
            node.meta["val"] for node in exported.graph.nodes if node.name in exported.graph_signature.user_inputs
        ]
        values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
        outputs = [values.get(name) for name in exported.graph_signature.user_outputs]
        counted = [(getattr(value, "ndim", None), getattr(value, "dtype", None)) for value in outputs[1:]]
        self.counts = bool(counted)
        is_program = len(inputs) == 1 and inputs[0].ndim == 4 and inputs[0].dtype == torch.uint8
        if not is_program or not outputs or counted not in ([], [(1, torch.int32)]):
            raise self._refused(
                "expected frames (N, H, W, 3) uint8, and masks with counts (N,) int32 or alone, "
                f"got {len(inputs)} and {len(outputs)}: this is no frame program"
            )
        return program

    def _refused(self, reason: str) -> PlanError:
        path = self.bundle.folder / self._entry.file
        return PlanError(f"{path}: {reason}: rebuild it with: {rebuild_command(self.bundle, RUNTIME)}", reason)

    def _submit(self, frames_nhwc: NDArray[np.uint8]) -> None:
        largest = self._entry.profile[-1][0] if self._entry.profile else len(frames_nhwc)
        if len(frames_nhwc) > largest:
            raise ShapeError(
                f"frames: expected at most {largest} at once, got {len(frames_nhwc)}: compile with a larger batch"
            )
        slot = self._free[0]
        slot.fit(self._device, frames_nhwc.shape, self.counts)
        np.copyto(slot.host_frames.numpy(), frames_nhwc)
        device = self._device
        with torch.no_grad():
            with device.stage("upload"):
                slot.frames.copy_(slot.host_frames, non_blocking=True)
                uploaded = device.mark()
            with device.stage("compute", after=uploaded), device.graphs():
                try:
                    given = self._program(slot.frames)
                except Exception as error:
                    raise self._refused(f"cannot run on frames {frames_nhwc.shape} ({one_line(error)})") from error
                slot.masks, slot.not_finite = given if self.counts else (given, slot.host_not_finite)
                computed = device.mark()
            if slot.masks.shape != slot.host_masks.shape or slot.masks.dtype != torch.uint8:
                raise self._refused(
                    f"expected masks {tuple(slot.host_masks.shape)} uint8, got {tuple(slot.masks.shape)}"
                )
            with device.stage("download", after=computed):
                slot.host_masks.copy_(slot.masks, non_blocking=True)
                if self.counts:
                    slot.host_not_finite.copy_(slot.not_finite, non_blocking=True)
                slot.downloaded = device.mark()
        self._busy.append(self._free.popleft())

    def _collect(self) -> Computed:
        slot = self._busy.popleft()
        self._free.append(slot)
        self._device.wait(slot.downloaded)
        not_finite = slot.host_not_finite.numpy().copy() if self.counts else None
        return Computed(slot.host_masks.numpy().copy(), not_finite=not_finite)

    def _close(self) -> None:
        # Memory that the GPU still writes to must not be given back.
        self._device.finish()
        self._busy.clear()
        self._free.clear()
        self._program = None


class _Slot:
    """The memory of one submission in flight, on both sides, allocated once for each size."""

    def __init__(self) -> None:
        self.host_frames = self.host_masks = self.frames = torch.empty(0, dtype=torch.uint8)
        self.host_not_finite = torch.empty(0, dtype=torch.int32)
        # Kept until the next submission: their download may still be running.
        self.masks, self.not_finite = self.host_masks, self.host_not_finite
        self.downloaded: Any = None

    def fit(self, device: _Cpu | _Cuda, shape: tuple[int, ...], counts: bool) -> None:
        if tuple(self.host_frames.shape) != shape:
            self.host_frames, self.host_masks = device.host_memory(shape), device.host_memory(shape[:3])
            if counts:
                self.host_not_finite = device.host_memory(shape[:1], torch.int32)
            self.frames = torch.empty(shape, dtype=torch.uint8, device=device.name)


class _Cpu:
    """Plain PyTorch: every stage is done when it returns."""

    tensorrt_version = ""
    sm = CPU_SM

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = public_version(torch.__version__)
        self.description = f"PyTorch {self.version}, CPU"

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    @contextlib.contextmanager
    def stage(self, _: str, after: Any = None) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graphs(self) -> Iterator[None]:
        yield

    def mark(self) -> Any:
        return None

    def wait(self, _: Any) -> None:
        pass

    def finish(self) -> None:
        pass


class _Cuda:
    """A GPU: each stage is a stream of its own, and ends with an event that the next one waits for."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        if not cuda_is_here():
            read_plan(bundle, RUNTIME, "", None, "torch finds no CUDA device")  # which says what the program is for
        self._torch_tensorrt = load_torch_tensorrt()
        self.version = public_version(self._torch_tensorrt.__version__)
        self.tensorrt_version = tensorrt_version()
        try:
            properties = torch.cuda.get_device_properties(name)
        except (AssertionError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"{NAMES[RUNTIME]}: no device {name} ({one_line(error)}): choose another"
            ) from error
        self.name = name
        self.sm = 10 * properties.major + properties.minor
        self.description = f"{NAMES[RUNTIME]} {self.version}, {properties.name} ({properties.major}.{properties.minor})"
        self._streams = {
            stage: torch.cuda.Stream(name)  # type: ignore[no-untyped-call]
            for stage in ("upload", "compute", "download")
        }

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    @contextlib.contextmanager
    def stage(self, stage: str, after: Any = None) -> Iterator[None]:
        stream = self._streams[stage]
        if after is not None:
            stream.wait_event(after)
        with torch.cuda.stream(stream):
            yield

    @contextlib.contextmanager
    def graphs(self) -> Iterator[None]:
        """The TensorRT engine is recorded as a CUDA graph on its first run and replayed after that."""
        runtime = self._torch_tensorrt.runtime
        before = runtime.get_cudagraphs_mode()  # the mode belongs to the process: it is ours for one call only
        runtime.set_cudagraphs_mode(True)
        try:
            yield
        finally:
            runtime.set_cudagraphs_mode(before)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def finish(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


def cuda_is_here() -> bool:
    """Whether torch finds a CUDA device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old; then there is none
        return torch.cuda.is_available()
