"""FP32 scales for INT8 programs with FP16 ones, for a TensorRT that fails on those."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def has_half_scales(program: bytes) -> bool:
    """Whether an ONNX program quantizes with FP16 scales."""
    try:
        model = onnx.load_from_string(program)
    except Exception:  # noqa: BLE001 - protobuf has several; what is no program has no scales
        return False
    return bool(_half_scales(model.graph))


def with_float_scales(program: bytes) -> bytes:
    """The same ONNX program with FP32 scales, and casts where the values around them are FP16.

    TensorRT takes the casts into the quantisation. A scale's value does not change: every FP16 number is an FP32 number.
    """
    model = onnx.load_from_string(program)
    graph = model.graph
    scales = _half_scales(graph)
    for tensor in graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in graph.value_info:
        if value.name in scales:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = []
    for node in graph.node:
        if node.op_type not in (_QUANTIZE, _DEQUANTIZE) or node.input[1] not in scales:
            nodes.append(node)
        elif node.op_type == _QUANTIZE:
            single = f"{node.output[0]}_in_fp32"
            nodes.append(helper.make_node("Cast", [node.input[0]], [single], to=TensorProto.FLOAT))
            node.input[0] = single
            nodes.append(node)
        else:
            half, single = node.output[0], f"{node.output[0]}_in_fp32"
            node.output[0] = single
            nodes += [node, helper.make_node("Cast", [single], [half], to=TensorProto.FLOAT16)]
    del graph.node[:]
    graph.node.extend(nodes)
    changed: bytes = model.SerializeToString()
    return changed


def _half_scales(graph: onnx.GraphProto) -> set[str]:
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    return {node.input[1] for node in graph.node if node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.input[1] in half}
