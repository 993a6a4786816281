"""ONNX's operators with weights, its normalizations and its pooling, in the table of ``onnx_operators``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compile.networks.layered import GraphBuilder, Value, take_into
from compile.networks.onnx_operators import Step, operator_for, pad, permute, reshape
from pipeline.errors import NotConvertibleError

Pads = tuple[list[int], list[int]]
_Layer = TypeVar("_Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@operator_for("Conv")
def _conv(graph: GraphBuilder, step: Step) -> Value:
    x, weight, bias = step.x, step.input(1), step.optional(2)
    if len(weight.shape) == 3:  # over a line: a picture of one row
        flat = _conv_of(graph, step, graph.call(torch.unsqueeze, x, 2), graph.call(torch.unsqueeze, weight, 2), bias)
        return graph.call(torch.squeeze, flat, 2)
    return _conv_of(graph, step, x, weight, bias)


def _conv_of(graph: GraphBuilder, step: Step, x: Value, weight: Value, bias: Value | None) -> Value:
    _need_picture(x)
    kernel = weight.shape[2:]
    stride, dilation = _pair(step, "strides", 1), _pair(step, "dilations", 1)
    before, after = _pads(step, x.shape[2:], kernel, stride, dilation)
    if before != after:
        x, before = pad(graph, x, [0, 0, *before], [0, 0, *after], "constant", 0.0), [0, 0]
    groups = step.attributes.get("group", 1)
    if not weight.is_constant or (bias is not None and not bias.is_constant):
        return graph.call(F.conv2d, x, weight, bias, stride, before, dilation, groups)
    sizes = (
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride,
        tuple(before),
        dilation,
        groups,
        bias is not None,
    )
    return graph.layer(step.name, _filled(nn.Conv2d(*sizes, device="meta"), weight, bias), x)  # type: ignore[arg-type]


@operator_for("ConvTranspose")
def _conv_transpose(graph: GraphBuilder, step: Step) -> Value:
    x, weight, bias = step.x, step.input(1), step.optional(2)
    _need_picture(x)
    if not weight.is_constant or (bias is not None and not bias.is_constant):
        raise NotConvertibleError("expected weights that do not depend on the picture, got others")
    kernel, sides = weight.shape[2:], x.shape[2:]
    stride, dilation, extra = _pair(step, "strides", 1), _pair(step, "dilations", 1), _pair(step, "output_padding", 0)
    full = [
        s * (n - 1) + e + (k - 1) * d + 1 for s, n, e, k, d in zip(stride, sides, extra, kernel, dilation, strict=True)
    ]
    before, after = _transposed_pads(step, full, sides, stride)
    groups = step.attributes.get("group", 1)
    # What is not cut off equally is cut off behind the layer.
    padding = tuple(before) if before == after else (0, 0)
    sizes = (
        weight.shape[0],
        weight.shape[1] * groups,
        kernel,
        stride,
        padding,
        extra,
        groups,
        bias is not None,
        dilation,
    )
    layer = _filled(nn.ConvTranspose2d(*sizes, device="meta"), weight, bias)  # type: ignore[arg-type]
    y = graph.layer(step.name, layer, x)
    if before == after:
        return y
    return pad(graph, y, [0, 0, *(-side for side in before)], [0, 0, *(-side for side in after)], "constant", 0.0)


def _transposed_pads(step: Step, full: Sequence[int], sides: Sequence[int], stride: Sequence[int]) -> Pads:
    auto = step.attributes.get("auto_pad", "NOTSET")
    shape = step.attributes.get("output_shape")
    if shape is None and not auto.startswith("SAME"):
        pads = list(step.attributes.get("pads", [0, 0, 0, 0]))
        return ([0, 0], [0, 0]) if auto == "VALID" else (pads[:2], pads[2:])
    wanted = [side * by for side, by in zip(sides, stride, strict=True)] if shape is None else list(shape)[-2:]
    totals = [max(0, has - wants) for has, wants in zip(full, wanted, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


@operator_for("Gemm")
def _gemm(graph: GraphBuilder, step: Step) -> Value:
    x, weight, bias = step.x, step.input(1), step.optional(2)
    alpha, beta = float(step.attributes.get("alpha", 1.0)), float(step.attributes.get("beta", 1.0))
    if step.attributes.get("transA", 0):
        x = graph.call(torch.t, x)
    if not step.attributes.get("transB", 0):
        weight = graph.call(torch.t, weight)
    if weight.is_constant and (bias is None or (bias.is_constant and len(bias.shape) < 2)):
        added = None if bias is None else Value((bias.tensor * beta).expand(weight.shape[0]))
        return graph.layer(step.name, _linear(weight.tensor * alpha, added), x)
    y = graph.call(operator.mul, graph.call(torch.matmul, x, graph.call(torch.t, weight)), alpha)
    return y if bias is None else graph.call(operator.add, y, graph.call(operator.mul, bias, beta))


@operator_for("MatMul")
def _mat_mul(graph: GraphBuilder, step: Step) -> Value:
    x, weight = step.input(0), step.input(1)
    if weight.is_constant and len(weight.shape) == 2 and not x.is_constant:
        return graph.layer(step.name, _linear(weight.tensor.T, None), x)
    return graph.call(torch.matmul, x, weight)


def _linear(weight: Tensor, bias: Value | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _filled(layer, Value(weight), bias)


def _filled(layer: _Layer, weight: Value, bias: Value | None) -> _Layer:
    layer.weight = nn.Parameter(weight.tensor.float().contiguous().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.tensor.float().contiguous().clone())
    return layer


@operator_for("BatchNormalization")
def _batch_norm(graph: GraphBuilder, step: Step) -> Value:
    if step.attributes.get("training_mode", 0) or step.outputs > 1:
        raise NotConvertibleError(
            "expected batch normalization as it infers, got it as it trains: export in evaluation mode"
        )
    parts = [step.input(index) for index in range(1, 5)]
    for part in parts:
        part.numbers("statistics")
    scale, bias, mean, variance = (part.tensor.double() for part in parts)
    factor = scale / torch.sqrt(variance + step.attributes.get("epsilon", 1e-5))
    offset = bias - mean * factor
    layer = graph.module_of(step.x) if step.read_once[0] else None
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or (isinstance(layer, nn.Linear) and len(step.x.shape) == 2):
        take_into(layer, factor, offset)
        return step.x
    shape = [1, -1, *[1] * (len(step.x.shape) - 2)]
    scaled = graph.call(operator.mul, step.x, Value(factor.float().view(shape)))
    return graph.call(operator.add, scaled, Value(offset.float().view(shape)))


@operator_for("InstanceNormalization")
def _instance_norm(graph: GraphBuilder, step: Step) -> Value:
    epsilon = step.attributes.get("epsilon", 1e-5)
    return graph.call(F.instance_norm, step.x, None, None, step.input(1), step.input(2), True, 0.1, epsilon)


@operator_for("LayerNormalization", "RMSNormalization")
def _layer_norm(graph: GraphBuilder, step: Step) -> Value:
    if step.outputs > 1:
        raise NotConvertibleError("expected one output, got the statistics too")
    x, scale, bias = step.x, step.input(1), step.optional(2)
    sides, epsilon = list(x.shape[step.axis(-1) :]), step.attributes.get("epsilon", 1e-5)
    scale = graph.call(torch.Tensor.expand, scale, sides)
    if step.op_type == "RMSNormalization":
        return graph.call(F.rms_norm, x, sides, scale, epsilon)
    bias = None if bias is None else graph.call(torch.Tensor.expand, bias, sides)
    return graph.call(F.layer_norm, x, sides, scale, bias, epsilon)


@operator_for("GroupNormalization")
def _group_norm(graph: GraphBuilder, step: Step) -> Value:
    groups, channels = step.attributes["num_groups"], step.x.shape[1]
    scale, bias = step.input(1), step.input(2)
    if scale.shape[0] == groups != channels:  # before opset 21
        scale = graph.call(torch.repeat_interleave, scale, channels // groups)
        bias = graph.call(torch.repeat_interleave, bias, channels // groups)
    return graph.call(F.group_norm, step.x, groups, scale, bias, step.attributes.get("epsilon", 1e-5))


@operator_for("LpNormalization")
def _lp_norm(graph: GraphBuilder, step: Step) -> Value:
    length = graph.call(torch.linalg.vector_norm, step.x, step.attributes.get("p", 2), step.axis(-1), keepdim=True)
    return graph.call(operator.truediv, step.x, length)


@operator_for("LRN")
def _local_response_norm(graph: GraphBuilder, step: Step) -> Value:
    size = step.attributes["size"]
    if size % 2 == 0:
        raise NotConvertibleError(f"expected an odd size, got {size}")
    values = (step.attributes.get(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return graph.call(F.local_response_norm, step.x, size, *values)


@operator_for("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(graph: GraphBuilder, step: Step) -> Value:
    function: Callable[..., Tensor] = torch.mean if step.op_type == "GlobalAveragePool" else torch.amax
    return graph.call(function, step.x, list(range(2, len(step.x.shape))), keepdim=True)


@operator_for("MaxPool")
def _max_pool(graph: GraphBuilder, step: Step) -> Value:
    if step.outputs > 1:
        raise NotConvertibleError("expected one output, got the places of the maxima too")
    x, kernel, stride, before, after = _pool(step)
    dilation = _pair(step, "dilations", 1)
    if before != after or any(2 * side > size for side, size in zip(before, kernel, strict=True)):
        x, before = pad(graph, x, [0, 0, *before], [0, 0, *after], "constant", float("-inf")), [0, 0]
    ceil = bool(step.attributes.get("ceil_mode", 0))
    return graph.call(F.max_pool2d, x, kernel, stride, before, list(dilation), ceil)


@operator_for("AveragePool")
def _average_pool(graph: GraphBuilder, step: Step) -> Value:
    x, kernel, stride, before, after = _pool(step)
    if _pair(step, "dilations", 1) != (1, 1):
        raise NotConvertibleError("expected average pooling without dilation, got it with one")
    ceil, with_pads = bool(step.attributes.get("ceil_mode", 0)), bool(step.attributes.get("count_include_pad", 0))
    if before == after and all(2 * side <= size for side, size in zip(before, kernel, strict=True)):
        return graph.call(F.avg_pool2d, x, kernel, stride, before, ceil, with_pads)
    ones = Value(torch.ones(1, 1, *x.shape[2:]))
    sides = ([0, 0, *before], [0, 0, *after], "constant")
    x = pad(graph, x, *sides, 0.0)
    if with_pads:
        return graph.call(F.avg_pool2d, x, kernel, stride, [0, 0], ceil)
    # The mean over all places, by the share of them that are in the picture.
    share = graph.call(F.avg_pool2d, pad(graph, ones, *sides, 0.0), kernel, stride, [0, 0], ceil)
    return graph.call(operator.truediv, graph.call(F.avg_pool2d, x, kernel, stride, [0, 0], ceil), share)


@operator_for("Attention")
def _attention(graph: GraphBuilder, step: Step) -> Value:
    query, key, value, mask = step.input(0), step.input(1), step.input(2), step.optional(3)
    if step.outputs > 1 or len(step.inputs) > 4 or step.attributes.get("softcap", 0.0):
        raise NotConvertibleError("expected plain attention, got it with a past, a cap or more outputs")
    width = 0
    if len(query.shape) == 3:
        heads = step.attributes["q_num_heads"], step.attributes["kv_num_heads"], step.attributes["kv_num_heads"]
        width = query.shape[2]
        query, key, value = (
            permute(graph, reshape(graph, one, [*one.shape[:2], count, one.shape[2] // count]), [0, 2, 1, 3])
            for one, count in zip((query, key, value), heads, strict=True)
        )
    if query.shape[1] != key.shape[1]:
        raise NotConvertibleError("expected as many heads of keys as of queries, got others")
    causal, scale = bool(step.attributes.get("is_causal", 0)), step.attributes.get("scale")
    y = graph.call(F.scaled_dot_product_attention, query, key, value, mask, 0.0, causal, scale=scale)
    if not width:
        return y
    return reshape(graph, permute(graph, y, [0, 2, 1, 3]), [1, y.shape[2], prod((y.shape[1], y.shape[3]))])


def _pool(step: Step) -> tuple[Value, list[int], list[int], list[int], list[int]]:
    _need_picture(step.x)
    kernel, stride = list(step.attributes["kernel_shape"]), _pair(step, "strides", 1)
    before, after = _pads(step, step.x.shape[2:], kernel, stride, _pair(step, "dilations", 1))
    return step.x, kernel, list(stride), before, after


def _pads(
    step: Step, sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pads:
    auto = step.attributes.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        given = list(step.attributes.get("pads", [0] * 2 * len(kernel))) if auto == "NOTSET" else [0, 0, 0, 0]
        return ([0, given[0]], [0, given[1]]) if len(given) == 2 else (given[:2], given[2:])
    totals = [
        max(0, (-(-side // by) - 1) * by + (size - 1) * apart + 1 - side)
        for side, by, size, apart in zip(sides, stride, kernel, dilation, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _pair(step: Step, name: str, default: int) -> tuple[int, int]:
    given = step.attributes.get(name) or [default, default]
    return (default, int(given[0])) if len(given) == 1 else (int(given[0]), int(given[1]))


def _need_picture(x: Value) -> None:
    if len(x.shape) != 4:
        raise NotConvertibleError(f"expected an input of 4 axes, got {len(x.shape)}")
