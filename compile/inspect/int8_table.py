"""What the search for INT8 found, as a person reads it: which layers harm the masks, and what was tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compile.inspect.int8_search import Int8Layer, Int8Search, Int8Step
from compile.inspect.table import field, percent, plural, table

_SHOWN = 15


def search_lines(search: Int8Search, *, all_layers: bool, width: int) -> Iterator[str]:
    """The layers that do most damage, or all of them, and the steps of the search."""
    if search.share_of_work is not None:
        count = sum(layer.precision == "int8" for layer in search.layers)
        of = f" in {count:,} of {plural(len(search.layers), 'layer')}" if search.layers else ""
        yield from field("work", f"{percent(search.share_of_work, 1)} of the layers' work{of}", width)
    if search.problem is not None:
        yield from field("layers", f"not shown: {search.problem}", width)
        return
    exact = [layer for layer in search.layers if layer.exact_channels]
    if exact:
        names = ", ".join(f"{', '.join(map(str, layer.exact_channels))} of {layer.name}" for layer in exact)
        yield from field("left out", f"input channels that drown the others or do most of the damage: {names}", width)
    yield ""
    yield from _layer_lines(search.layers, all_layers, width)
    if search.steps:
        yield ""
        yield "  The steps, with agreement on the frames whose masks are hardest to keep"
        yield from table(
            ("step", ">in INT8", ">noise", ">IoU", ""),
            [_step_row(number, step) for number, step in enumerate(search.steps, 1)],
            width,
        )


def _layer_lines(layers: Sequence[Int8Layer], all_layers: bool, width: int) -> Iterator[str]:
    shown = layers if all_layers else layers[:_SHOWN]
    more = len(shown) < len(layers)
    which = f"The {len(shown)} layers that do most damage" if more else "All layers, most damage first"
    yield f"  {which}: their share of what INT8 did to the masks{' (--layers shows all)' if more else ''}"
    rows = [
        (
            layer.name,
            layer.precision,
            f"{100 * layer.share_of_work:.2f} %",
            "–" if layer.share_of_damage is None else f"{100 * layer.share_of_damage:.2f} %",
        )
        for layer in shown
    ]
    yield from table(("layer", "precision", ">work", ">damage"), rows, width)


def _step_row(number: int, step: Int8Step) -> tuple[str, str, str, str, str]:
    share = f"{100 * step.share_of_work:.2f} %"
    return f"{number}  {step.what}", share, f"{step.noise:.3f}", f"{step.iou:.4f}", "chosen" if step.chosen else ""
