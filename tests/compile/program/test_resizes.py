import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compile.networks.contract import Contract
from compile.program.onnx_export import export_module, export_program
from compile.program.program import FrameProgram
from compile.program.resizes import with_constant_scales


def resizing(after_hw, before_hw=(4, 6), branch=False):
    """A batch's own size, with the height and width given, as the exporter writes it."""
    tail = numpy_helper.from_array(np.array([3, *after_hw], np.int64), "tail")
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Shape", ["positive"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "tail"], ["size"], axis=0),
        helper.make_node("Resize", ["positive", "", "", "size"], ["large"], mode="linear"),
    ]
    if branch:
        then = helper.make_graph(
            [helper.make_node("Squeeze", ["batch"], ["one"])],
            "then",
            [],
            [helper.make_tensor_value_info("one", TensorProto.INT64, [])],
        )
        other = helper.make_graph(
            [helper.make_node("Constant", [], ["none"], value_int=0)],
            "other",
            [],
            [helper.make_tensor_value_info("none", TensorProto.INT64, [])],
        )
        nodes.append(helper.make_node("If", ["which"], ["count"], then_branch=then, else_branch=other))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *before_hw])]
    outputs = [helper.make_tensor_value_info("large", TensorProto.FLOAT, ["N", 3, *after_hw])]
    if branch:
        inputs.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
        outputs.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    values = [helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["N", 3, *before_hw])]
    graph = helper.make_graph(nodes, "resizing", inputs, outputs, [tail], value_info=values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, **more):
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32), **more}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("after_hw", [(8, 12), (12, 6), (4, 6)])
def test_a_whole_multiple_becomes_constant_scales_and_its_arithmetic_goes(after_hw):
    before = resizing(after_hw)
    after = with_constant_scales(copy.deepcopy(before))
    onnx.checker.check_model(after, full_check=True)
    assert operators(after) == ["Relu", "Resize"]
    (scales,) = after.graph.initializer
    assert numpy_helper.to_array(scales).tolist() == [1, 1, after_hw[0] / 4, after_hw[1] / 6]
    np.testing.assert_allclose(run(after)[0], run(before)[0], atol=1e-6)


@pytest.mark.parametrize("after_hw", [(9, 12), (8, 13), (2, 3)])
def test_what_is_no_whole_multiple_stays(after_hw):
    before = resizing(after_hw)
    assert with_constant_scales(copy.deepcopy(before)) == before


def test_free_sides_stay():
    before = resizing((8, 12), before_hw=("H", "W"))
    assert with_constant_scales(copy.deepcopy(before)) == before


def test_what_a_branch_reads_stays():
    before = resizing((8, 12), branch=True)
    after = with_constant_scales(copy.deepcopy(before))
    onnx.checker.check_model(after, full_check=True)
    assert operators(after) == ["Relu", "Shape", "Resize", "If"]
    assert run(after, which=np.array(True))[1] == 2


def test_programs_of_a_network_compute_no_size_inside_it(tiny_u2net):
    model = export_program(FrameProgram(tiny_u2net(1), Contract("x", (64, 32))).eval())
    computed = [node for node in model.graph.node if node.op_type == "Resize" and len(node.input) == 4]
    # The frame's on the way in and the mask's on the way out.
    assert len(computed) == 2
    assert sum(node.op_type == "Resize" for node in model.graph.node) > 10


def test_corners_that_align_are_enlarged_the_same():
    module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    x = torch.rand(2, 3, 5, 7)
    model = export_module(module, (x,), ({0: torch.export.Dim("N", max=8)},), ("x",), ("y",))
    assert operators(model) == ["Resize"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), atol=1e-5)
