"""Which precision an ONNX file has already: networks come quantized or halved by other tools."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.bundles.bundle import Precision
from pipeline.errors import CompileError

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SINGLES = (TensorProto.FLOAT, TensorProto.DOUBLE)
# What a manifest has no word for, and the gate's own runtime no kernels.
_OTHERS = ("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")
# Of ONNX and of ONNX Runtime's own domain.
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "ConvInteger", "MatMulInteger", "QLinear", "QGemm"),
    *("MatMulNBits", "QAttention", "QOrdered"),
)


def precision_of(nodes: Iterable[onnx.NodeProto], tensors: Iterable[TensorProto], what: str) -> Precision:
    """What a file's network computes in: "int8" where it holds operators of quantization, "fp16" where most weights are FP16 or BF16.

    Args:
        nodes: all of the file.
        tensors: all of the file.
        what: its name in messages.

    Raises:
        CompileError: it is quantized to something else, such as FP8.
    """
    halves = singles = 0
    for tensor in tensors:
        name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type else ""
        if name.startswith(_OTHERS):
            raise CompileError(
                f"{what}: expected a network in FP32, FP16 or INT8, got weights of {name}: give the file before it was quantized"
            )
        count = 1
        for side in tensor.dims:
            count *= side
        halves += count * (tensor.data_type in _HALVES)
        singles += count * (tensor.data_type in _SINGLES)
    if any(node.op_type.startswith(_QUANTIZED) for node in nodes):
        return "int8"
    return "fp16" if halves > singles else "fp32"


def with_float_biases(graph: onnx.GraphProto) -> None:
    """Write out in FP32 what is dequantized from INT32, in place: biases, as ONNX Runtime writes them and TensorRT does not read.

    The numbers are those that the operator gives.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        tensors = [constants.get(name) for name in node.input]
        known = [tensor for tensor in tensors if tensor is not None]
        if node.op_type != "DequantizeLinear" or len(known) < len(tensors) or known[0].data_type != TensorProto.INT32:
            continue
        values, scale, *zeros = (numpy_helper.to_array(tensor) for tensor in known)
        if scale.dtype != np.float32 or scale.ndim > 1 or any(zero.any() for zero in zeros):
            continue
        if scale.size > 1:
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1) if values.ndim > 1 else 0
            scale = scale.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32) * scale, node.output[0]))
        graph.node.remove(node)
