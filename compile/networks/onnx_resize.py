"""ONNX's resizes, of all versions, in the table of ``onnx_operators``.

What PyTorch's ``F.interpolate`` computes in the same way it does; it becomes one operator again when it is exported. All other kinds
are separable and linear, so they are a matrix of weights for each axis, written by ONNX's definition, or where each output is one
input, indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from compile.networks.layered import GraphBuilder, Value, check_elements
from compile.networks.onnx_operators import Step, operator_for
from pipeline.errors import NotConvertibleError


@dataclass(frozen=True)
class Resize:
    """How a picture is resized.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        coordinates: ONNX's ``coordinate_transformation_mode``.
        rounding: ONNX's ``nearest_mode``, or "simple": down where the picture grows, up where it shrinks.
        antialias: whether filters widen where the picture shrinks.
        cubic_a: of the cubic filter.
        exclude_outside: whether weights outside the picture are left out.
    """

    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    antialias: bool = False
    cubic_a: float = -0.75
    exclude_outside: bool = False


@operator_for("Upsample")
def _upsample_any(graph: GraphBuilder, step: Step) -> Value:
    return _upsample(graph, step)


def _upsample(graph: GraphBuilder, step: Step) -> Value:
    if "scales" in step.attributes:  # opset 7
        scales = [float(scale) for scale in step.attributes["scales"]]
    else:
        scales = [float(scale) for scale in step.input(1).numbers("scales")]
    sizes = [floor(side * scale) for side, scale in zip(step.x.shape, scales, strict=True)]
    return _resize(graph, step.x, sizes, scales, Resize(step.attributes.get("mode", "nearest"), "asymmetric", "simple"))


@operator_for("Resize")
def _resize_any(graph: GraphBuilder, step: Step) -> Value:
    x = step.x
    if step.opset < 11:
        return _upsample(graph, step)
    mode = step.attributes.get("mode", "nearest")
    kind = Resize(
        mode,
        step.attributes.get("coordinate_transformation_mode", "half_pixel"),
        step.attributes.get("nearest_mode", "round_prefer_floor"),
        bool(step.attributes.get("antialias", 0)),
        float(step.attributes.get("cubic_coeff_a", -0.75)),
        bool(step.attributes.get("exclude_outside", 0)),
    )
    axes = [axis % len(x.shape) for axis in step.attributes.get("axes") or range(len(x.shape))]
    sizes, scales = list(x.shape), [1.0] * len(x.shape)
    given_scales = step.optional(2)
    if given_scales is not None and given_scales.shape[0]:
        for axis, scale in zip(axes, given_scales.numbers("scales"), strict=True):
            sizes[axis], scales[axis] = floor(x.shape[axis] * scale), float(scale)
    else:
        wanted = [int(side) for side in step.input(3).numbers("sizes")]
        policy = step.attributes.get("keep_aspect_ratio_policy", "stretch")
        ratios = [side / x.shape[axis] for axis, side in zip(axes, wanted, strict=True)]
        if policy != "stretch":
            one = min(ratios) if policy == "not_larger" else max(ratios)
            wanted, ratios = [floor(one * x.shape[axis] + 0.5) for axis in axes], [one] * len(axes)
        for axis, side, ratio in zip(axes, wanted, ratios, strict=True):
            sizes[axis], scales[axis] = side, ratio
    if kind.coordinates == "tf_crop_and_resize":
        raise NotConvertibleError("expected a resize of the whole picture, got tf_crop_and_resize")
    return _resize(graph, x, sizes, scales, kind)


def _resize(graph: GraphBuilder, x: Value, sizes: list[int], scales: list[float], kind: Resize) -> Value:
    check_elements(sizes)
    changed = [axis for axis, side in enumerate(x.shape) if sizes[axis] != side or scales[axis] != 1]
    if not changed:
        return x
    if min(sizes) < 1:
        raise NotConvertibleError(f"expected sizes of 1 or more, got {sizes}")
    if len(x.shape) == 4 and min(changed) > 1:
        options = _as_interpolate(x.shape[2:], sizes[2:], scales[2:], kind)
        if options is not None:
            return graph.call(F.interpolate, x, sizes[2:], **options)
    for axis in changed:
        x = _along(graph, x, axis, sizes[axis], scales[axis], kind)
    return x


def _as_interpolate(
    sides: Sequence[int], sizes: Sequence[int], scales: Sequence[float], kind: Resize
) -> dict[str, Any] | None:
    """The arguments of ``F.interpolate`` that compute the same; None if none do."""
    if any(abs(side * scale - size) > 1e-3 for side, scale, size in zip(sides, scales, sizes, strict=True)):
        return None  # a scale that is not that of the sizes moves the places
    if kind.mode == "nearest":
        whole = all(size % side == 0 for side, size in zip(sides, sizes, strict=True))
        down = kind.rounding in ("floor", "simple")
        if whole and (kind.coordinates in ("half_pixel", "pytorch_half_pixel") and kind.rounding.startswith("round")):
            return {"mode": "nearest"}
        return {"mode": "nearest"} if whole and kind.coordinates == "asymmetric" and down else None
    if kind.exclude_outside or kind.antialias or (kind.mode == "cubic" and kind.cubic_a != -0.75):
        return None
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(kind.mode)
    if mode is None:
        raise NotConvertibleError(f"expected mode nearest, linear or cubic, got {kind.mode}")
    if kind.coordinates == "align_corners":
        return {"mode": mode, "align_corners": True}
    if kind.coordinates == "half_pixel" or (kind.coordinates == "pytorch_half_pixel" and min(sizes) > 1):
        return {"mode": mode, "align_corners": False}
    return None


def _along(graph: GraphBuilder, x: Value, axis: int, size: int, scale: float, kind: Resize) -> Value:
    """Resize one axis."""
    side = x.shape[axis]
    places = _places(side, size, scale, kind.coordinates)
    if kind.mode == "nearest":
        index = np.clip(_rounded(places, kind.rounding, scale), 0, side - 1)
        return graph.call(torch.index_select, x, axis, Value(torch.from_numpy(index.astype(np.int64))))
    check_elements([size, side])
    weights = torch.from_numpy(_weights(places, side, scale, kind).astype(np.float32))
    if axis == len(x.shape) - 1:
        return graph.call(torch.matmul, x, Value(weights.T.contiguous()))
    if axis == len(x.shape) - 2:
        return graph.call(torch.matmul, Value(weights), x)
    moved = graph.call(torch.transpose, x, axis, -1)
    return graph.call(torch.transpose, graph.call(torch.matmul, moved, Value(weights.T.contiguous())), axis, -1)


def _places(side: int, size: int, scale: float, coordinates: str) -> NDArray[np.float64]:
    """Where each output lies in the input."""
    # As ONNX Runtime does it, in float32: which of two equally near inputs is taken depends on it.
    x, by = np.arange(size, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    if coordinates == "align_corners":
        found = x * np.float32(side - 1) / np.float32(size - 1) if size > 1 else np.zeros(1, np.float32)
    elif coordinates == "asymmetric":
        found = x / by
    elif coordinates == "tf_half_pixel_for_nn":
        found = (x + half) / by
    elif coordinates == "half_pixel_symmetric":
        adjustment = size / (scale * side)
        found = (x + half) / by - half + np.float32(side / 2 * (1 - adjustment))
    elif coordinates in ("half_pixel", "pytorch_half_pixel"):
        found = (x + half) / by - half
        if coordinates == "pytorch_half_pixel" and size == 1:
            found = np.zeros(1, np.float32)
    else:
        raise NotConvertibleError(f"expected a known coordinate_transformation_mode, got {coordinates}")
    return np.asarray(found, np.float64)


def _rounded(places: NDArray[np.float64], rounding: str, scale: float) -> NDArray[np.float64]:
    if rounding == "simple":
        rounding = "floor" if scale >= 1 else "ceil"
    if rounding == "floor":
        return np.floor(places)
    if rounding == "ceil":
        return np.ceil(places)
    if rounding == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(places + 0.5)
    raise NotConvertibleError(f"expected a known nearest_mode, got {rounding}")


def _weights(places: NDArray[np.float64], side: int, scale: float, kind: Resize) -> NDArray[np.float64]:
    """(outputs, inputs) weights of a linear or cubic filter."""
    stretch = max(1.0, 1.0 / scale) if kind.antialias else 1.0
    reach = (1 if kind.mode == "linear" else 2) * stretch
    matrix = np.zeros((len(places), side))
    if kind.mode == "linear" and not kind.antialias:
        places = np.clip(places, 0, side - 1)
    for row, place in enumerate(places):
        columns = np.arange(floor(place - reach), ceil(place + reach) + 1)
        distance = np.abs(columns - place) / stretch
        values = np.clip(1 - distance, 0, None) if kind.mode == "linear" else _cubic(distance, kind.cubic_a)
        inside = (columns >= 0) & (columns < side)
        if kind.exclude_outside:
            values = np.where(inside, values, 0)
        np.add.at(matrix[row], np.clip(columns, 0, side - 1), values / values.sum())
    return matrix


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    found: NDArray[np.float64] = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return found


@operator_for("GridSample")
def _grid_sample(graph: GraphBuilder, step: Step) -> Value:
    mode = step.attributes.get("mode", "bilinear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    border, corners = step.attributes.get("padding_mode", "zeros"), bool(step.attributes.get("align_corners", 0))
    return graph.call(F.grid_sample, step.x, step.input(1), mode, border, corners)
