"""The layer that computes something else is named, whichever it is, and rounding is not taken for one."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.inspect.difference import difference, main
from pipeline.errors import CompileError

CHANNELS = (3, 8, 8, 16, 16, 8, 1)
LAYERS = len(CHANNELS) - 1
FRAMES = [np.random.default_rng(seed).integers(0, 255, (1, 20, 24, 3), np.uint8) for seed in range(2)]


def weights(layer):
    noise = np.random.default_rng(layer)
    inner = CHANNELS[layer] + (8 if layer == LAYERS - 1 else 0)  # the last one gets the first one's output too
    kernel = noise.normal(0, (2 / (9 * inner)) ** 0.5, (CHANNELS[layer + 1], inner, 3, 3)).astype(np.float32)
    return kernel, noise.normal(0, 0.05, CHANNELS[layer + 1]).astype(np.float32)


def program(*, half=False, int8=False, spoiled=None, factor=1.3, moved=None, prefix="conv"):
    """Six convolutions with a skip, as ONNX; one may be spoiled, and one's channels scaled, which the next one takes back."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.float16 if half else np.float32
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=kind),
        helper.make_node("Mul", ["numbers", "scale"], ["small"]),
        helper.make_node("Transpose", ["small"], ["input"], perm=[0, 3, 1, 2]),
    ]
    tensors = {"scale": np.array(1 / 255, dtype)}
    last, first = "input", None
    for layer in range(LAYERS):
        kernel, bias = weights(layer)
        if layer == spoiled:
            kernel = kernel * np.float32(factor)
        if moved is not None and layer == moved:
            by = np.linspace(0.4, 1.1, len(kernel), dtype=np.float32)
            kernel, bias = kernel * by[:, None, None, None], bias * by
        if moved is not None and layer == moved + 1:
            by = np.linspace(0.4, 1.1, kernel.shape[1], dtype=np.float32)
            kernel = kernel / by[None, :, None, None]
        name = f"{prefix}_{layer}"
        if layer == LAYERS - 1:
            nodes.append(helper.make_node("Concat", [last, first], ["joined"], axis=1))
            last = "joined"
        if int8:
            last = quantized(nodes, tensors, last, f"{name}.in", np.float32(2 / 127))
            steps = np.abs(kernel).max(axis=(1, 2, 3)) / 127
            tensors[f"{name}.weight"] = np.round(kernel / steps[:, None, None, None]).astype(np.int8)
            tensors |= {f"{name}.steps": steps.astype(np.float32), f"{name}.zeros": np.zeros(len(steps), np.int8)}
            made = [f"{name}.weight", f"{name}.steps", f"{name}.zeros"]
            nodes.append(helper.make_node("DequantizeLinear", made, [f"{name}.numbers"], axis=0))
        else:
            tensors[f"{name}.weight"] = kernel.astype(dtype)
        tensors[f"{name}.bias"] = bias.astype(dtype)
        inputs = [last, f"{name}.{'numbers' if int8 else 'weight'}", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"val_{len(nodes)}"], name=name, pads=[1, 1, 1, 1]))
        nodes.append(
            helper.make_node("Relu" if layer < LAYERS - 1 else "Sigmoid", [nodes[-1].output[0]], [f"act_{layer}"])
        )
        last = f"act_{layer}"
        first = first or last
    tensors["full"] = np.array(255, dtype)
    nodes += [
        helper.make_node("Mul", [last, "full"], ["levels"]),
        helper.make_node("Cast", ["levels"], ["whole"], to=TensorProto.UINT8),
        helper.make_node("Squeeze", ["whole", "axis"], ["masks"]),
    ]
    tensors["axis"] = np.array([1], np.int64)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def quantized(nodes, tensors, value, name, step):
    tensors |= {f"{name}.step": step, f"{name}.zero": np.int8(0)}
    nodes.append(helper.make_node("QuantizeLinear", [value, f"{name}.step", f"{name}.zero"], [f"{name}.q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.step", f"{name}.zero"], [f"{name}.d"]))
    return f"{name}.d"


PRECISIONS = {"fp32": {}, "fp16": {"half": True}, "int8": {"int8": True}}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spoiled", range(LAYERS))
def test_each_layer_is_named_when_it_is_spoiled(precision, spoiled):
    found = difference(program(spoiled=spoiled, **PRECISIONS[precision]), program(), FRAMES)
    assert [(fault.name, fault.operation) for fault in found.faults] == [(f"conv_{spoiled}", "Conv")]
    assert not found.equal


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_is_no_fault(precision):
    found = difference(program(**PRECISIONS[precision]), program(), FRAMES)
    assert found.faults == ()
    assert found.equal == (precision == "fp32")
    assert found.layers >= 2 * LAYERS
    assert found.largest.error < found.limit


def test_factors_that_are_moved_between_layers_are_no_fault():
    assert difference(program(int8=True, moved=2), program(), FRAMES).faults == ()
    found = difference(program(int8=True, moved=1, spoiled=4, factor=1.5), program(), FRAMES)
    assert [fault.name for fault in found.faults] == ["conv_4"]


def test_names_that_differ_do_no_harm():
    found = difference(program(prefix="layer", spoiled=3), program(), FRAMES)
    assert [fault.name for fault in found.faults] == ["layer_3"]


def test_the_frame_that_differs_most_is_told():
    dark = np.zeros_like(FRAMES[0])
    assert difference(program(spoiled=0), program(), [dark, FRAMES[0], dark]).frame == 1


def test_programs_of_two_networks_are_refused(red_bundle):
    with pytest.raises(CompileError, match="expected"):
        difference(onnx.load(red_bundle.program_path), program(), FRAMES)


def test_the_command_line(tmp_path, capsys):
    onnx.save(program(spoiled=2), tmp_path / "a.onnx")
    onnx.save(program(), tmp_path / "b.onnx")
    np.save(tmp_path / "000000.npy", FRAMES[0])
    assert main([str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["faults"][0]["name"] == "conv_2"
