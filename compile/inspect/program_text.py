"""The layers of a program, as a person reads them: totals first, then the largest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from compile.inspect.program import Layer, Program, Share
from compile.inspect.table import SHOWN, field, percent, plural, shorten, size_text, table, work_text

_SHAPE_WIDTH = 16
# In an expression, the names that are no functions.
_NAME = re.compile(r"[A-Za-z_]\w*\b(?!\()")


def program_lines(program: Program, *, all_layers: bool, width: int) -> Iterator[str]:
    """Totals, and the largest layers, or all of them in the order in which they run."""
    total = program.total
    yield from field(
        "layers", f"{total.layers:,}, ONNX opset {program.opset}, written by {program.producer or 'unknown'}", width
    )
    yield from field("parameters", f"{total.parameters:,} in {size_text(total.weight_bytes)}", width)
    amount = work_text(total.multiply_accumulates) if total.multiply_accumulates else "no"
    shares = [
        f"{percent(share.multiply_accumulates, total.multiply_accumulates)} in {share.name}"
        for share in program.precisions
        if share.multiply_accumulates
    ]
    unknown = f"; and those of {plural(total.unknown, 'layer')} of unknown size" if total.unknown else ""
    yield from field(
        "work", f"{amount} multiply-accumulates for a frame{': ' if shares else ''}{', '.join(shares)}{unknown}", width
    )
    if program.external:
        yield from field("WARNING", f"{plural(program.external, 'tensor')} in other files, which nothing checks", width)
    yield ""
    yield from _share_table("precision", program.precisions, total, width)
    yield ""
    heavy = [share for share in program.operations if share.parameters or share.multiply_accumulates or share.unknown]
    if heavy:
        yield from _share_table("operation", heavy, total, width)
    light = [f"{share.name}×{share.layers}" for share in program.operations if share not in heavy]
    if light:
        yield from field("others", ", ".join(light), width)
    yield ""
    layers: Sequence[Layer] = program.layers
    if not all_layers:
        layers = sorted(layers, key=_work)[:SHOWN]
        if len(layers) < total.layers:
            yield f"  The {len(layers)} with the most work (--layers shows all, in the order in which they run)"
    columns = ("layer", "operation", "precision", "output", ">params", ">weights", ">work", ">share")
    rows = [
        (
            layer.name,
            layer.operation,
            layer.precision,
            shorten(_shape(layer.output_shape), _SHAPE_WIDTH),
            f"{layer.parameters:,}" if layer.parameters else "–",
            size_text(layer.weight_bytes) if layer.weight_bytes else "–",
            work_text(layer.multiply_accumulates),
            percent(layer.multiply_accumulates or 0, total.multiply_accumulates),
        )
        for layer in layers
    ]
    yield from table(columns, rows, width)


def _share_table(head: str, shares: Sequence[Share], total: Share, width: int) -> Iterator[str]:
    rows = [
        (
            share.name,
            f"{share.layers:,}",
            f"{share.parameters:,}" if share.parameters else "–",
            size_text(share.weight_bytes) if share.weight_bytes else "–",
            work_text(share.multiply_accumulates, share.unknown),
            percent(share.multiply_accumulates, total.multiply_accumulates),
        )
        for share in shares
    ]
    yield from table((head, ">layers", ">parameters", ">weights", ">work", ">share"), rows, width)


def _work(layer: Layer) -> tuple[float, int]:
    unknown = layer.multiply_accumulates is None  # it may be the largest
    return (float("-inf") if unknown else -float(layer.multiply_accumulates or 0), -layer.weight_bytes)


def _shape(shape: Sequence[int | str | None] | None) -> str:
    return "?" if shape is None else "×".join(_axis(axis) for axis in shape) or "one"


def _axis(axis: int | str | None) -> str:
    if axis is None:
        return "?"
    if isinstance(axis, int) or axis.isidentifier():
        return str(axis)
    # An expression such as 320*Max(1, ((H + 160)//320)): what it depends on is enough.
    return f"f({','.join(dict.fromkeys(_NAME.findall(axis)))})"
