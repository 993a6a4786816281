"""INT8 as other tools make it by default: ONNX Runtime's quantizer, NNCF of OpenVINO and NVIDIA's ModelOpt, from calibration inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from pipeline.errors import CompileError

Inputs = NDArray[np.float32]
"""(N, C, h, w): what the network gets for the calibration pictures."""


class _Reader:
    """Calibration data as ONNX Runtime asks for it."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, Inputs] | None:
        entry = next(self._inputs, None)
        return None if entry is None else {"input": entry[None]}


def _by_onnxruntime(
    network: nn.Module, exported: Path, inputs: Inputs, quantised: Path, *, per_channel: bool = False
) -> None:
    # As its documentation says: quant_pre_process first; and per_channel where the default loses much.
    prepared = quantised.with_suffix(".prepared.onnx")
    quant_pre_process(str(exported), str(prepared))
    quantize_static(str(prepared), str(quantised), _Reader(inputs), per_channel=per_channel)


def _by_modelopt_onnx(network: nn.Module, exported: Path, inputs: Inputs, quantised: Path) -> None:
    quantization = importlib.import_module("modelopt.onnx.quantization")
    quantization.quantize(
        str(exported),
        calibration_data=inputs,
        calibration_eps=["cpu"],
        # What is not INT8 is FP16 by default, which ONNX Runtime 1.24 computes wrongly around Q/DQ, and 1.32 as FP32 here.
        high_precision_dtype="fp32",
        output_path=str(quantised),
        log_level="ERROR",
    )


def _by_modelopt_torch(network: nn.Module, exported: Path, inputs: Inputs, quantised: Path) -> None:
    quantization = importlib.import_module("modelopt.torch.quantization")

    def run(model: nn.Module) -> None:
        for entry in inputs:
            model(torch.from_numpy(entry[None].copy()))

    with torch.no_grad():
        quantization.quantize(network, quantization.INT8_DEFAULT_CFG, run)
    example = torch.from_numpy(inputs[:1].copy())
    # Its quantizers do not go through the newer exporter.
    torch.onnx.export(
        network,
        (example,),
        str(quantised),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["scores"],
    )


def _by_nncf(network: nn.Module, exported: Path, inputs: Inputs, quantised: Path) -> None:
    nncf = importlib.import_module("nncf")
    data = nncf.Dataset(list(inputs), lambda entry: {"input": entry[None]})
    onnx.save(nncf.quantize(onnx.load(exported), data, subset_size=len(inputs)), quantised)


@dataclass(frozen=True)
class Peer:
    """A tool: what the table calls it, the package it is in, and what makes INT8 of a network with it."""

    label: str
    package: str
    quantise: Callable[[nn.Module, Path, Inputs, Path], None]


PEERS: dict[str, Peer] = {
    # ONNX Runtime first: ModelOpt replaces parts of its quantizer in this process, after which that one fails.
    "onnxruntime": Peer("ONNX Runtime, quantize_static", "onnxruntime", _by_onnxruntime),
    "onnxruntime_per_channel": Peer(
        "ONNX Runtime, per_channel=True", "onnxruntime", partial(_by_onnxruntime, per_channel=True)
    ),
    "nncf": Peer("NNCF, quantize", "nncf", _by_nncf),
    "modelopt": Peer("ModelOpt, modelopt.onnx", "nvidia-modelopt", _by_modelopt_onnx),
    "modelopt_torch": Peer("ModelOpt, INT8_DEFAULT_CFG", "nvidia-modelopt", _by_modelopt_torch),
}
"""Other tools by the key of their row; each is given a copy of the network, the same as ONNX, its calibration inputs, and where
to write what it makes."""


def int8_share(network: onnx.ModelProto) -> float:
    """How much of a network's convolutions is INT8: the share of multiply-accumulates whose input and weight both come from 8 bits.

    Args:
        network: of a fixed size, with explicit Q/DQ.

    Returns:
        0 to 1; 0 without convolutions.

    Raises:
        CompileError: the size of a convolution is not known.
    """
    graph = onnx.shape_inference.infer_shapes(network).graph
    makers = {name: node for node in graph.node for name in node.output}
    values = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes = {name: [axis.dim_value for axis in value.shape.dim] for name, value in values.items()}
    types = {name: value.elem_type for name, value in values.items()}
    for tensor in graph.initializer:
        shapes[tensor.name], types[tensor.name] = list(tensor.dims), tensor.data_type

    def is_from_int8(name: str) -> bool:
        maker = makers.get(name)
        return (
            maker is not None
            and maker.op_type == "DequantizeLinear"
            and types.get(maker.input[0]) in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        )

    work = in_int8 = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        macs = prod(shapes.get(node.input[1], [0])) * prod(shapes.get(node.output[0], [0])[2:])
        if not macs or node.output[0] not in shapes:
            raise CompileError(f"{node.name}: expected a convolution of a known size, got none: fix the network's size")
        work += macs
        in_int8 += macs if all(map(is_from_int8, node.input[:2])) else 0
    return in_int8 / max(1, work)
