"""What TensorRT tells of a plan's layers, and how long each takes: for looking at a plan, not for running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What TensorRT tells of a plan.

    Attributes:
        layers_json: its engine inspector's text, in which each version words things in its own way.
        weights_bytes: what all weights take; None if this version does not tell.
        activation_bytes: what a context takes for all that is between the layers.
    """

    layers_json: str
    weights_bytes: int | None
    activation_bytes: int


def facts_of(trt: ModuleType, engine: Any, context: Any) -> PlanFacts:
    """Ask a plan, with a context in which its frames have a size; its device is current."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context  # without it, formats depend on a size that nobody knows
    weights_bytes = None
    if hasattr(trt.ICudaEngine, "get_engine_stat"):
        weights_bytes = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return PlanFacts(text, weights_bytes, int(engine.device_memory_size_v2))


def layer_times(trt: ModuleType, context: Any, run: Callable[[], None], runs: int) -> dict[str, list[float]]:
    """Time each layer.

    Args:
        trt: the flavour of TensorRT.
        context: with frames, memory and no graph; it keeps its profiler.
        run: runs it once and waits for the end.
        runs: how often.

    Returns:
        Milliseconds by layer, in the order in which they run.
    """
    times_ms: dict[str, list[float]] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times_ms.setdefault(str(layer_name), []).append(float(ms))

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

    run()  # the first run of a shape sets TensorRT up
    profiler = Profiler()
    context.profiler = profiler
    run()  # and the first one with a profiler is slower
    times_ms.clear()
    for _ in range(runs):
        run()
    return times_ms
