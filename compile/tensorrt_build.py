"""The frame program as a TensorRT-RTX plan, for any GPU, on any machine.

Types live in the ONNX program (strongly typed), never in builder flags, so a plan has exactly the precision that was verified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from compile.errors import CompileError
from pipeline.command_line import uninterrupted
from pipeline.engines.tensorrt_library import load_tensorrt_rtx

SizeHW = tuple[int, int]

# Frames that one plan takes when their size is not fixed: smallest, the one it is tuned for, largest.
FRAME_RANGE: tuple[SizeHW, SizeHW, SizeHW] = ((64, 64), (720, 1280), (2160, 3840))
_LOG_LINES = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan and what it is for.

    Attributes:
        content: as TensorRT serialised it: no prefix, nothing renamed, so that NVIDIA's own tools load it.
        version: of the TensorRT-RTX that built it; no other loads it.
        sms: compute capabilities as NVIDIA writes them without the dot, such as 86 for 8.6.
        profile: smallest, usual and largest frames as (N, H, W, 3).
    """

    content: bytes
    version: str
    sms: tuple[int, ...]
    profile: tuple[tuple[int, int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """All but the content, in the form of the manifest."""
        return {
            "runtime": "tensorrt-rtx",
            "version": self.version,
            "sms": list(self.sms),
            "profile": list(self.profile),
        }

    def file_name(self, precision: str) -> str:
        """Where it lies in a bundle, such as ``engines/tensorrt_rtx-1.7-sm86+sm89-fp16.plan``."""
        version = ".".join(self.version.split(".")[:2])
        return f"engines/tensorrt_rtx-{version}-{'+'.join(f'sm{sm}' for sm in self.sms)}-{precision}.plan"


def check_sms(sms: Sequence[int]) -> None:
    """Refuse GPUs that TensorRT-RTX does not know, before any work is done.

    Raises:
        BackendUnavailableError: TensorRT-RTX is not here.
        CompileError: an unknown compute capability.
    """
    trt = load_tensorrt_rtx()
    for sm in sms:
        _capability(trt, sm)


def build_rtx_plan(
    program: bytes,
    sms: Sequence[int],
    *,
    frame_size_hw: SizeHW | None = None,
    batch: int = 1,
    step: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Build a plan for GPUs that need not be here.

    Args:
        program: a frame program as ONNX, with frames as its one input.
        sms: compute capabilities without the dot; one plan holds them all.
        frame_size_hw: the fixed (height, width) of the frames, or None for ``FRAME_RANGE``.
        batch: the most frames at once.
        step: told of each step: phase, steps done, steps in all.

    Raises:
        BackendUnavailableError: TensorRT-RTX is not here.
        CompileError: an unknown GPU, or TensorRT refuses the program; with TensorRT's own log lines.
    """
    trt = load_tensorrt_rtx()
    capabilities = [_capability(trt, sm) for sm in sms]
    log = _log(trt)
    log.lines.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(program):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = [f"{error.node_operator()} {error.node_name()}: {error.desc()}".strip() for error in found]
        raise CompileError(f"TensorRT-RTX {trt.__version__} cannot read the program: {_one_line(errors or log.lines)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)
    sizes = (frame_size_hw,) * 3 if frame_size_hw else FRAME_RANGE
    counts = (1, batch, batch)
    shapes = tuple((count, *size, 3) for count, size in zip(counts, sizes, strict=True))
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise CompileError(f"TensorRT-RTX refuses frames of {shapes}: {_one_line(log.lines)}")
    with uninterrupted() as signals:
        # A Python exception must not travel through TensorRT: a signal makes the next step say no, and is raised afterwards.
        config.progress_monitor = _monitor(trt)(lambda *told: not signals and (step is None or step(*told) is None))
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(f"TensorRT-RTX {trt.__version__} built no plan: {_one_line(log.lines)}")
    return Plan(bytes(plan), str(trt.__version__), tuple(sms), shapes)


def _capability(trt: ModuleType, sm: int) -> Any:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if f"SM{sm}" not in known:
        there = ", ".join(name[2:] for name in sorted(known, key=lambda name: int(name[2:])))
        raise CompileError(
            f"--sm: expected compute capabilities of {there} as TensorRT-RTX {trt.__version__} knows, got {sm}"
        )
    return known[f"SM{sm}"]


@functools.cache
def _log(trt: ModuleType) -> Any:
    """The one logger of the process: TensorRT keeps the first that it is given."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(message)

    return Log()


@functools.cache
def _monitor(trt: ModuleType) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, go_on: Callable[[str, int, int], bool]) -> None:
            trt.IProgressMonitor.__init__(self)
            self._go_on = go_on
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._go_on(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor


def _one_line(lines: Sequence[str]) -> str:
    """TensorRT's last lines as one."""
    return " | ".join(" ".join(line.split()) for line in lines[-_LOG_LINES:]) or "it gives no reason"
