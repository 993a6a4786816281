"""INT8 programs with FP16 scales, made to have FP32 ones."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.plans import tensorrt_build
from compile.plans.scales import has_half_scales, with_float_scales
from compile.plans.tensorrt_build import PlanOptions, build_plan
from pipeline.errors import CompileError


def quantized_program(scale_type):
    """frames -> cast -> quantise -> dequantise -> convolution with quantised weights -> masks, FP16 in the middle."""
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (1, 3, 1, 1)).astype(np.int8)
    initializers = [
        numpy_helper.from_array(np.array(0.0157, scale_type), "x_scale"),
        numpy_helper.from_array(np.array([0.002], scale_type), "w_scale"),
        numpy_helper.from_array(np.array(0, np.int8), "x_zero"),
        numpy_helper.from_array(np.array([0], np.int8), "w_zero"),
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array(127.0, np.float16), "divisor"),
    ]
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["f"], to=TensorProto.FLOAT),
        node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        node("Cast", ["t"], ["h"], to=TensorProto.FLOAT16),
        node("Div", ["h", "divisor"], ["x"]),
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        node("Conv", ["xd", "wd"], ["y"]),
        node("Sigmoid", ["y"], ["p"]),
        node("Cast", ["p"], ["pf"], to=TensorProto.FLOAT),
        node("Mul", ["pf", "full"], ["m"]),
        node("Squeeze", ["m", "axis"], ["s"]),
        node("Cast", ["s"], ["masks"], to=TensorProto.UINT8),
    ]
    initializers += [
        numpy_helper.from_array(np.array(255.0, np.float32), "full"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    shape = ["N", "H", "W"]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [*shape, 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def masks(program, frames):
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return session.run(None, {"frames": frames})[0]


def test_only_fp16_scales_are_found():
    assert has_half_scales(quantized_program(np.float16))
    assert not has_half_scales(with_float_scales(quantized_program(np.float16)))
    assert not has_half_scales(b"no program")


def test_the_masks_stay_and_no_fp16_scale_is_left(pictures):
    program = quantized_program(np.float16)
    changed = with_float_scales(program)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    frames = pictures(2, 20, 30)
    before, after = masks(program, frames), masks(changed, frames)
    assert np.ptp(before) > 10
    assert np.abs(before.astype(int) - after).max() <= 1


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_both_become_plans():
    for program in (quantized_program(np.float16), with_float_scales(quantized_program(np.float16))):
        plan = build_plan(program, PlanOptions("tensorrt-rtx", (89,)))
        assert not plan.float_scales
        assert len(plan.content) > 1000


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_a_build_that_fails_with_fp16_scales_is_tried_again_with_fp32_ones(monkeypatch):
    build, tried = tensorrt_build._build, []

    def fails_as_on_orin(program, options, step, **others):
        tried.append(has_half_scales(program))
        if tried[-1]:
            raise CompileError("TensorRT 10.16.2 built no plan: [myelin] autotuning failed")
        return build(program, options, step, **others)

    monkeypatch.setattr(tensorrt_build, "_build", fails_as_on_orin)
    plan = build_plan(quantized_program(np.float16), PlanOptions("tensorrt-rtx", (89,)))
    assert tried == [True, False]
    assert plan.float_scales
    assert plan.entry("int8").float_scales


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_a_build_that_fails_for_another_reason_is_not_tried_again(monkeypatch):
    tried = []

    def fails(*arguments, **_):
        tried.append(arguments)
        raise CompileError("built no plan: out of memory")

    monkeypatch.setattr(tensorrt_build, "_build", fails)
    with pytest.raises(CompileError, match="out of memory"):
        build_plan(with_float_scales(quantized_program(np.float16)), PlanOptions("tensorrt-rtx", (89,)))
    assert len(tried) == 1
