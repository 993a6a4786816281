"""A plan, and its layers where the runtime told them, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compile.inspect.bundle_text import agreement_text, state_text
from compile.inspect.engine_layers import EngineLayer
from compile.inspect.program import Program
from compile.inspect.report import EngineReport, FileReport, PlanReport
from compile.inspect.table import LISTED, SHOWN, clean, field, listed, percent, plural, shorten, size_text, table
from pipeline.bundles.plan import NAMES
from pipeline.frames.pixels import frames_nhw

_TACTIC_WIDTH = 24


def plan_lines(
    plan: PlanReport, file: FileReport | None, program: Program | None, *, all_layers: bool, width: int
) -> Iterator[str]:
    """A plan.

    Args:
        plan: as it was found.
        file: its file; None if the manifest does not list it.
        program: that it was built from, for the names of layers; None if that could not be read.
        all_layers: every layer, in the order in which they run, and not the slowest alone.
        width: of a line, in characters.
    """
    entry, limit = plan.entry, None if all_layers else LISTED
    yield f"Plan {clean(plan.file)}"
    capabilities = ", ".join(f"{sm // 10}.{sm % 10}" for sm in entry.sms) or "?"
    wide = " and any from 8.0 on" if entry.hardware == "ampere+" else ""
    later = ", or a later one" if entry.version_compatible else ""
    runtime = NAMES.get(entry.runtime, entry.runtime or "?")
    yield from field(
        "runs with",
        f"{runtime} {entry.version or '?'}{later}, on GPUs of compute capability {capabilities}{wide}",
        width,
    )
    yield from field("built on", entry.device or "a machine without a GPU", width)
    if entry.profile:
        yield from field("frames", _profile(entry.profile), width)
    state = "not in the manifest's list of files" if file is None else state_text(file)
    yield from field("size", f"{size_text(entry.size_bytes)}, {state}", width)
    if entry.dla_core is not None:
        text = f"core {entry.dla_core}, {plural(len(entry.gpu_layers), 'layer')} left to the GPU"
        yield from field("DLA", f"{text}: {listed(entry.gpu_layers, limit)}" if entry.gpu_layers else text, width)
    if entry.float_scales:
        yield from field("INT8 scales", "FP32, for this TensorRT could not build with FP16 ones", width)
    checked = entry.verification
    yield from field("agreement", agreement_text(checked) if checked else "not checked on a GPU", width)
    if plan.engine is None:
        yield from field("layers", f"not shown: {plan.problem}", width)
    else:
        yield from _engine(plan.engine, program, all_layers, width)


def _engine(engine: EngineReport, program: Program | None, all_layers: bool, width: int) -> Iterator[str]:
    layers, names = engine.layers, {layer.node: layer.name for layer in program.layers} if program is not None else {}
    yield from field("loaded by", engine.runtime, width)
    memory = [("weights", engine.weights_bytes), ("between layers", engine.activation_bytes)]
    told = [f"{size_text(size_bytes)} {what}" for what, size_bytes in memory if size_bytes is not None]
    if told:
        yield from field("GPU memory", ", ".join(told), width)
    stand_for = {node for layer in layers for node in layer.nodes}
    fused = sum(len(layer.nodes) > 1 for layer in layers)
    of = f" of the program's {len(program.layers):,}" if program is not None else " of the program's"
    yield from field(
        "fusions",
        f"{plural(len(layers), 'layer')} for {len(stand_for):,}{of}; {fused:,} of them for more than one",
        width,
    )
    counts: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        counts.setdefault(layer.precision or "unknown", []).append(layer)
    parts = [
        f"{plural(len(group), 'layer')} in {name}"
        + (f" ({percent(_ms(group), engine.total_ms)} of the time)" if engine.total_ms and _ms(group) else "")
        for name, group in sorted(counts.items(), key=lambda item: -len(item[1]))
    ]
    yield from field("precision", ", ".join(parts), width)
    timed = engine.total_ms is not None
    if engine.total_ms is not None:
        frames = plural(engine.runs, "frame")
        yield from field(
            "time",
            f"{engine.total_ms:.3f} ms, mean of {frames} of the usual size; layers are launched one by one for this, "
            "which takes longer than a plan does as a whole",
            width,
        )
    yield ""
    shown: Sequence[EngineLayer] = layers
    if not all_layers:
        shown = sorted(layers, key=lambda layer: (-(layer.mean_ms or 0.0), -len(layer.nodes)))[:SHOWN]
        if len(shown) < len(layers):
            what = "that take most time" if timed else "that stand for most"
            yield f"  The {len(shown)} {what} (--layers shows all, in the order in which they run)"
    columns = ["layer", "type", "precision", ">nodes", "tactic", *([">ms", ">share"] if timed else [])]
    rows = [
        (
            " + ".join(names.get(node, node) for node in layer.nodes) or layer.name,
            layer.type or "–",
            _in_and_out(layer),
            str(len(layer.nodes)) if layer.nodes else "–",
            shorten(layer.tactic or "–", _TACTIC_WIDTH),
            *([_time(layer.mean_ms), percent(layer.time_share or 0, 1)] if timed else []),
        )
        for layer in shown
    ]
    yield from table(columns, rows, width)


def _in_and_out(layer: EngineLayer) -> str:
    before, after = (
        next((tensor.precision for tensor in side if tensor.precision), None) for side in (layer.inputs, layer.outputs)
    )
    if before and after and before != after:
        return f"{before}→{after}"
    return layer.precision or "–"


def _ms(layers: Sequence[EngineLayer]) -> float:
    return sum(layer.mean_ms for layer in layers if layer.mean_ms is not None)


def _time(mean_ms: float | None) -> str:
    return "–" if mean_ms is None else f"{mean_ms:.4f}"


def _profile(shapes: Sequence[Sequence[int]]) -> str:
    texts = [_frames(shape) for shape in shapes]
    if len(texts) != 3:
        return ", ".join(texts)
    if texts[0] == texts[2]:
        return f"{texts[0]} alone"
    return f"{texts[0]} to {texts[2]}, usually {texts[1]}"


def _frames(shape: Sequence[int]) -> str:
    nhw = frames_nhw("nv12", shape) if len(shape) == 3 else tuple(shape[:3]) if len(shape) == 4 else None
    return str(shape) if nhw is None else f"{nhw[0]} of {nhw[1]}×{nhw[2]}"
