"""The frame program as a plan: one code path for TensorRT 10.3 to 11 and for TensorRT-RTX.

Types live in the ONNX program (strongly typed), never in builder flags, so a plan has exactly the precision that was verified, and the
same calls work in a TensorRT that still has such flags and in one that has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from compile.plans.build_progress import monitor_class
from compile.plans.scales import has_half_scales, with_float_scales
from pipeline.bundles.plan import NAMES
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.bundles.whole_file import write_whole
from pipeline.engines.gpu import Gpu
from pipeline.engines.tensorrt_library import Log, load_tensorrt, log_of, one_line
from pipeline.errors import CompileError
from pipeline.frames.pixels import Pixels, frames_shape
from pipeline.signals import uninterrupted

SizeHW = tuple[int, int]

# Frames that one plan takes when their size is not fixed: smallest, the one it is tuned for, largest.
FRAME_RANGE: tuple[SizeHW, SizeHW, SizeHW] = ((1, 1), (720, 1280), (2160, 3840))


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan is built for.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        sms: tensorrt-rtx: compute capabilities without the dot; one plan holds them all, and they need not be here.
        gpu: the GPU of this machine; None if there is none, or it does not matter.
        frame_size_hw: the fixed (height, width) of the frames, or None for ``FRAME_RANGE``.
        batch: the most frames at once.
        workspace_bytes: memory that a layer may use while it runs; None: half of what is free.
        timing_cache: file with the times of earlier builds; TensorRT proper alone has one.
        version_compatible: a plan that later versions of TensorRT load too.
        hardware_compatible: a plan for every GPU from compute capability 8.0 on; slower.
        dla_core: the deep learning accelerator of a Jetson to run on; what it cannot run is left to the GPU.
        pixels: how the program takes frames.
    """

    runtime: str
    sms: tuple[int, ...] = ()
    gpu: Gpu | None = None
    frame_size_hw: SizeHW | None = None
    batch: int = 1
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    pixels: Pixels = "bgr"

    @property
    def profile(self) -> tuple[tuple[int, ...], ...]:
        """Smallest, usual and largest frames, as the shapes of the program's input."""
        sizes: Sequence[SizeHW] = (self.frame_size_hw,) * 3 if self.frame_size_hw else FRAME_RANGE
        if self.pixels == "nv12":
            sizes = [(height + height % 2, width + width % 2) for height, width in sizes]
        # An accelerator takes one shape alone.
        counts = (1 if self.dla_core is None else self.batch, self.batch, self.batch)
        return tuple(frames_shape(self.pixels, count, size) for count, size in zip(counts, sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan and what it is for.

    Attributes:
        content: as TensorRT serialised it: no prefix, nothing renamed, so that NVIDIA's own tools load it.
        version: of the TensorRT that built it.
        sms: compute capabilities as NVIDIA writes them without the dot, such as 86 for 8.6.
        options: what it was built for.
        gpu_layers: layers that the accelerator left to the GPU, if it was to run on one.
        float_scales: the scales of its INT8 layers were made FP32, for this TensorRT could not build with FP16 ones.
    """

    content: bytes
    version: str
    sms: tuple[int, ...]
    options: PlanOptions
    gpu_layers: tuple[str, ...] = ()
    float_scales: bool = False

    def entry(self, precision: str) -> PlanEntry:
        """All but the content, for the manifest."""
        options = self.options
        return PlanEntry(
            file=self.file_name(precision),
            runtime=options.runtime,
            version=self.version,
            sms=self.sms,
            hardware="ampere+" if options.hardware_compatible else "same",
            version_compatible=options.version_compatible,
            device=None if options.gpu is None else options.gpu.name,
            profile=options.profile,
            dla_core=options.dla_core,
            gpu_layers=self.gpu_layers,
            float_scales=self.float_scales,
            size_bytes=len(self.content),
        )

    def file_name(self, precision: str) -> str:
        """Where it lies in a bundle, such as ``engines/tensorrt_rtx-1.7-sm86+sm89-fp16.plan``."""
        options = self.options
        version = ".".join(self.version.split(".")[:2]) + ("+" if options.version_compatible else "")
        gpus = "+".join(f"sm{sm}" for sm in self.sms) + ("+" if options.hardware_compatible else "")
        dla = "" if options.dla_core is None else f"-dla{options.dla_core}"
        return f"engines/{options.runtime.replace('-', '_')}-{version}-{gpus}-{precision}{dla}.plan"


def check_options(options: PlanOptions) -> None:
    """Refuse what cannot be built here, before any work is done.

    Raises:
        BackendUnavailableError: the flavour of TensorRT is not here.
        CompileError: an unknown compute capability, or TensorRT proper without a GPU.
    """
    trt = load_tensorrt(options.runtime)
    for sm in options.sms:
        _capability(trt, sm, options.gpu)
    if options.runtime == "tensorrt" and options.gpu is None:
        raise CompileError(
            "--target tensorrt: expected the GPU that the plan is for in this machine, got none: build it there with "
            "python -m compile --bundle DIR --target tensorrt, or for RTX GPUs here with --target tensorrt-rtx --sm 86,89,120"
        )


def build_plan(program: bytes, options: PlanOptions, *, step: Callable[[str, int, int], None] | None = None) -> Plan:
    """Build a plan.

    Args:
        program: a frame program as ONNX, with frames as its one input.
        options: what for.
        step: told of each step: phase, steps done, steps in all.

    Raises:
        BackendUnavailableError: the flavour of TensorRT is not here.
        CompileError: an unknown GPU, or TensorRT refuses the program; with TensorRT's own log lines.
    """
    try:
        return _build(program, options, step)
    except CompileError:
        # On Orin TensorRT 10.16 fails inside on INT8 with FP16 scales; what it needs is the same program with FP32 ones.
        if not has_half_scales(program):
            raise
    return _build(with_float_scales(program), options, step, float_scales=True)


def _build(
    program: bytes,
    options: PlanOptions,
    step: Callable[[str, int, int], None] | None,
    *,
    float_scales: bool = False,
) -> Plan:
    trt = load_tensorrt(options.runtime)
    log = log_of(trt)
    log.clear()
    name = f"{NAMES[options.runtime]} {trt.__version__}"
    capabilities = [_capability(trt, sm, options.gpu) for sm in options.sms]
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(program):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = [f"{error.node_operator()} {error.node_name()}: {error.desc()}".strip() for error in found]
        reason = one_line(errors) if errors else log.last_words
        raise CompileError(f"{name} cannot read the program: {reason}")
    config = builder.create_builder_config()
    # Off, so that FP32 is FP32: TF32 has the precision of FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers, for compile.inspect
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *options.profile)
    if config.add_optimization_profile(profile) < 0:
        raise CompileError(f"{name} refuses frames of {options.profile}: {log.last_words}")
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    gpu_layers: tuple[str, ...] = ()
    timing_cache = None
    if options.runtime == "tensorrt-rtx":
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(capability, index)
        sms = options.sms
    else:
        assert options.gpu is not None
        sms = (options.gpu.sm,)
        if options.workspace_bytes is None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.gpu.free_bytes // 2)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.dla_core is not None:
            gpu_layers = _use_dla(trt, builder, network, config, options.dla_core)
        timing_cache = config.create_timing_cache(_read(options.timing_cache))
        if timing_cache is None or not config.set_timing_cache(timing_cache, False):
            timing_cache = config.create_timing_cache(b"")  # of another version or GPU, or damaged: it is made anew
            config.set_timing_cache(timing_cache, False)
    content = _serialize(trt, builder, network, config, step, log, name)
    if timing_cache is not None and options.timing_cache is not None:
        _write(options.timing_cache, bytes(timing_cache.serialize()))
    return Plan(content, str(trt.__version__), sms, options, gpu_layers, float_scales)


def _serialize(
    trt: ModuleType,
    builder: Any,
    network: Any,
    config: Any,
    step: Callable[[str, int, int], None] | None,
    log: Log,
    name: str,
) -> bytes:
    with uninterrupted() as signals:
        # A Python exception must not travel through TensorRT: a signal makes the next step say no, and is raised afterwards.
        config.progress_monitor = monitor_class(trt)(
            lambda *told: not signals and (step is None or step(*told) is None)
        )
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(f"{name} built no plan: {log.last_words}")
    return bytes(plan)


def _capability(trt: ModuleType, sm: int, gpu: Gpu | None) -> Any:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if f"SM{sm}" in known:
        return known[f"SM{sm}"]
    if gpu is not None and gpu.sm == sm:
        return trt.ComputeCapability.CURRENT  # a GPU that it has no name for may work all the same: it is asked
    there = ", ".join(name[2:] for name in sorted(known, key=lambda name: int(name[2:])))
    raise CompileError(
        f"--sm: expected compute capabilities of {there} as TensorRT-RTX {trt.__version__} knows, got {sm}"
    )


def _use_dla(trt: ModuleType, builder: Any, network: Any, config: Any, core: int) -> tuple[str, ...]:
    """Run on an accelerator what can run there; gives the names of the layers that cannot."""
    if core >= builder.num_DLA_cores:
        there = f"a core from 0 to {builder.num_DLA_cores - 1}" if builder.num_DLA_cores else "a machine that has one"
        raise CompileError(f"--dla: expected {there}, got core {core} of {builder.num_DLA_cores}: leave --dla out")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers: Sequence[Any] = [network.get_layer(index) for index in range(network.num_layers)]
    return tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))


def _read(path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CompileError(f"--timing-cache {path}: cannot be read ({error.strerror})") from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise CompileError(f"--timing-cache {path}: cannot be written ({error.strerror})") from error
