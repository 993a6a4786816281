# Networks that are one convolution and a few other operations, and what they give computed beside them with torch.

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from compile.networks.contract import Contract
from compile.program.open_network import open_network
from pipeline.errors import CheckpointError, CompileError

SIZE_HW = (40, 56)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def weights_of(classes, seed=0):
    return np.random.default_rng(seed).normal(size=(classes, 3, 3, 3)).astype(np.float32)


def save(path, nodes, outputs, weights, input_shape, dtype=TensorProto.FLOAT, opset=18, functions=(), **extra):
    """Write a network with the input "picture"; ``outputs`` by name, shapes as ``input_shape``."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("picture", dtype, input_shape)],
        [
            helper.make_tensor_value_info(name, extra.get("output_dtype", dtype), shape)
            for name, shape in outputs.items()
        ],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *extra.get("opsets", ())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=extra.get("ir_version", 8), functions=functions)
    # As exporters do.
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input):
        item.doc_string = "/home/somebody/site-packages/net.py"
        item.metadata_props.add(key="trace", value="/home/somebody/site-packages/net.py")
    onnx.save(model, path)
    return path


def conv(name="scores", **attributes):
    return helper.make_node("Conv", ["picture", "weight"], [name], pads=[1, 1, 1, 1], **attributes)


def logits(path):
    return save(
        path, [conv()], {"scores": ["n", 1, "h", "w"]}, {"weight": weights_of(1) / 2}, ["n", 3, "h", "w"]
    ), Contract("x", SIZE_HW, mean=MEAN, std=STD)


def half_probability(path):
    nodes = [conv("logits"), helper.make_node("Sigmoid", ["logits"], ["scores"])]
    shapes = {"scores": [1, 1, *SIZE_HW]}, {"weight": weights_of(1).astype(np.float16) / 2}, [1, 3, *SIZE_HW]
    # The size of the file wins over the contract's.
    return save(path, nodes, *shapes, dtype=TensorProto.FLOAT16), Contract(
        "x", (64, 64), mean=MEAN, std=STD, activation="none"
    )


def channels_last(path):
    nodes = [
        helper.make_node("Transpose", ["picture"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight"], ["logits"], pads=[1, 1, 1, 1]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
        helper.make_node("Transpose", ["probability"], ["scores"], perm=[0, 2, 3, 1]),
    ]
    # How many classes there are, the file's output does not say.
    network = save(path, nodes, {"scores": ["n", "h", "w", "c"]}, {"weight": weights_of(4)}, ["n", "h", "w", 3])
    return network, Contract("x", SIZE_HW, channels="bgr", mean=MEAN, std=STD, activation="none", layout="nhwc")


def old_with_several_outputs(path):
    nodes = [
        conv("half", strides=[2, 2]),
        helper.make_node("Neg", ["half"], ["first"]),
        helper.make_node("Resize", ["half", "", "twice"], ["scores"], mode="nearest", nearest_mode="floor"),
    ]
    nodes[2].attribute.add(name="coordinate_transformation_mode", s=b"asymmetric", type=onnx.AttributeProto.STRING)
    shape = ["n", 4, "h", "w"]
    nodes[2].input[1] = "roi"
    weights = {"weight": weights_of(4), "twice": np.array([1, 1, 2, 2], np.float32), "roi": np.zeros(0, np.float32)}
    network = save(path, nodes, {"first": shape, "scores": shape}, weights, ["n", 3, "h", "w"], opset=11, ir_version=6)
    return network, Contract("x", SIZE_HW, mean=MEAN, std=STD, activation="softmax", output="scores")


def new_with_a_function(path):
    body = [helper.make_node("Gelu", ["a"], ["b"])]
    function = helper.make_function("mine", "Activation", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [conv("logits"), helper.make_node("Activation", ["logits"], ["scores"], domain="mine")]
    network = save(
        path,
        nodes,
        {"scores": ["n", 4, "h", "w"]},
        {"weight": weights_of(4)},
        ["n", 3, "h", "w"],
        opset=20,
        ir_version=9,
        functions=[function],
        opsets=[helper.make_opsetid("mine", 1)],
    )
    return network, Contract("x", SIZE_HW, mean=MEAN, std=STD)


def expected_masks(kind, frames):
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, SIZE_HW, mode="bilinear") / 255
    if kind is not channels_last:
        x = x.flip(1)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    if kind in (logits, half_probability):
        scores = F.conv2d(x, torch.from_numpy(weights_of(1) / 2), padding=1).sigmoid()
        scores = F.interpolate(scores, frames.shape[1:3], mode="bilinear")
        return (scores[:, 0] * 255).round().to(torch.uint8).numpy()
    stride = 2 if kind is old_with_several_outputs else 1
    scores = F.conv2d(x, torch.from_numpy(weights_of(4)), padding=1, stride=stride)
    if stride == 2:
        scores = scores.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if kind is new_with_a_function:
        scores = F.gelu(scores)
    index = scores.argmax(1, keepdim=True).float()
    return F.interpolate(index, frames.shape[1:3], mode="nearest")[:, 0].to(torch.uint8).numpy()


def masks_of(candidate, precision, frames):
    program = candidate.export(precision, None, ()).SerializeToString()
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return session.run(["masks"], {"frames": frames})[0]


class Wrapped:
    def __init__(self, kind, folder):
        path, contract = kind(folder / "network.onnx")
        self.kind = kind
        self.candidate = open_network(path, "stream", contract)
        self.model = self.candidate.export("fp32", None, ())
        self.session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(
    scope="module",
    params=[logits, half_probability, channels_last, old_with_several_outputs, new_with_a_function],
    ids=lambda kind: kind.__name__,
)
def wrapped(request, tmp_path_factory):
    return Wrapped(request.param, tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("shape", [(1, 50, 61), (3, 37, 70), (1, *SIZE_HW)], ids=str)
def test_masks_are_those_of_the_network(wrapped, pictures, shape):
    frames = pictures(*shape)
    (masks,) = wrapped.session.run(["masks"], {"frames": frames})
    expected = expected_masks(wrapped.kind, frames)
    assert (masks.shape, masks.dtype) == (shape, np.uint8)
    if wrapped.kind in (logits, half_probability):
        assert np.abs(masks.astype(int) - expected).max() <= (2 if wrapped.kind is half_probability else 1)
        assert np.ptp(expected) > 50
    else:
        assert np.mean(masks == expected) >= 0.999
        assert len(np.unique(expected)) > 1
    reference = np.concatenate([wrapped.candidate.reference(frame[None]).masks_nhw for frame in frames])
    assert np.mean(np.abs(masks.astype(int) - reference) <= 1) >= 0.999


def test_what_the_candidate_says(wrapped):
    candidate = wrapped.candidate
    assert candidate.class_count == (1 if wrapped.kind in (logits, half_probability) else 4)
    assert (candidate.family, candidate.architecture) == ("foreign", "network")
    assert candidate.contract.imgsz == SIZE_HW


def test_one_graph_of_standard_operations(wrapped):
    model = wrapped.model
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] == 18
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    # TensorRT takes uint8 at the border alone.
    assert {node.op_type for node in model.graph.node if "frames" in node.input} == {"Cast", "Shape"}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert TensorProto.UINT8 not in types.values()
    assert b"somebody" not in model.SerializeToString()
    assert ([value.name for value in model.graph.input], [value.name for value in model.graph.output]) == (
        ["frames"],
        ["masks", "not_finite"],
    )


def test_a_fixed_frame_size_and_smooth_borders(tmp_path, pictures):
    path, contract = channels_last(tmp_path / "network.onnx")
    candidate = open_network(path, "stream", contract, upsample="scores", classes=4)
    session = onnxruntime.InferenceSession(candidate.export("fp32", (50, 61), ()).SerializeToString())
    assert session.get_inputs()[0].shape == ["N", 50, 61, 3]
    frames = pictures(1, 50, 61)
    (masks,) = session.run(["masks"], {"frames": frames})
    assert np.mean(masks == candidate.reference(frames).masks_nhw) >= 0.999
    assert not np.array_equal(masks, expected_masks(channels_last, frames))


# --- refused

CONTRACT = Contract("mine", SIZE_HW)


def refused(path, message, contract=CONTRACT, error=CompileError, **options):
    with pytest.raises(error, match=message) as caught:
        open_network(path, "stream", contract, **options)
    assert "\n" not in str(caught.value)


def simple(path, classes=1, **options):
    shapes = {"scores": ["n", classes, "h", "w"]}, {"weight": weights_of(classes)}, ["n", 3, "h", "w"]
    return save(path, [conv()], *shapes, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.onnx"


def test_without_a_contract(path):
    with pytest.raises(CompileError, match=r"to compile it as it is, say how frames go in: --contract contract\.yaml"):
        open_network(simple(path), "stream")
    with pytest.raises(CompileError, match=r"none\.yaml: cannot be read"):
        open_network(simple(path), "none.yaml")
    # What finds one is asked where no file is named.
    assert open_network(simple(path), "stream", lambda: CONTRACT).contract.imgsz == SIZE_HW
    with pytest.raises(CompileError, match=r"none\.yaml: cannot be read"):
        open_network(simple(path), "none.yaml", lambda: CONTRACT)


def test_a_contract_file_makes_it_ours(path, tmp_path):
    contract = tmp_path / "contract.yaml"
    contract.write_text("imgsz: [40, 56]\nchannels: bgr\nclasses: [car]\n")
    candidate = open_network(simple(path), str(contract))
    assert candidate.contract == Contract("contract", SIZE_HW, channels="bgr", classes=("car",), output_layout="nchw")


@pytest.mark.parametrize("content", [b"\x08\x07garbage \xff\xff", b"hello world" * 99, bytes(range(256)) * 9])
def test_garbage(path, content):
    path.write_bytes(content)
    refused(path, "expected an ONNX file, got one that is cut short or damaged", error=CheckpointError)


def test_cut_short(path):
    content = simple(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "expected an ONNX file, got one that is cut short or damaged", error=CheckpointError)


def test_weights_in_another_file(path, pictures):
    expected = open_network(simple(path), "stream", CONTRACT).reference(pictures(1, 50, 60)).masks_nhw
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    candidate = open_network(path, "stream", CONTRACT)
    assert candidate.data_files == (path.parent / "weights.bin",)
    np.testing.assert_array_equal(candidate.reference(pictures(1, 50, 60)).masks_nhw, expected)
    (path.parent / "weights.bin").unlink()
    refused(path, r"expected them in 'weights\.bin' beside it")


def test_weights_in_another_folder(path, tmp_path_factory):
    onnx.save(onnx.load(simple(path)), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    secret = tmp_path_factory.mktemp("secret") / "weights.bin"
    (path.parent / "weights.bin").rename(secret)
    (path.parent / "weights.bin").symlink_to(secret)
    refused(path, "a link to another folder")


@pytest.mark.parametrize("as_constant", [True, False])
def test_weights_in_another_file_inside_a_branch(path, as_constant):
    secret = path.parent / "secret"
    secret.write_bytes(np.float32(1).tobytes())
    tensor = onnx.TensorProto(name="one", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret")
    nodes = [helper.make_node("Add", ["logits", "one"], ["inner"])]
    if as_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["one"], value=tensor))
    inner = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branch = helper.make_graph(nodes, "branch", [], inner, [] if as_constant else [tensor])
    choice = helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)
    weights = {"weight": weights_of(1), "yes": np.array(True)}
    save(path, [conv("logits"), choice], {"scores": ["n", 1, "h", "w"]}, weights, ["n", 3, "h", "w"])
    assert open_network(path, "stream", CONTRACT).data_files == (secret,)
    tensor.external_data[0].value = "/etc/passwd"
    branch = helper.make_graph(nodes, "branch", [], inner, [] if as_constant else [tensor])
    if as_constant:
        nodes[0] = helper.make_node("Constant", [], ["one"], value=tensor)
        branch = helper.make_graph(nodes, "branch", [], inner)
    choice = helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)
    save(path, [conv("logits"), choice], {"scores": ["n", 1, "h", "w"]}, weights, ["n", 3, "h", "w"])
    refused(path, "expected a file beside it, got '/etc/passwd', which is not opened")


def test_two_inputs(path):
    shape = ["n", 3, "h", "w"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "scores")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["scores"])], "two", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    refused(path, "expected a network with one input of 4 axes, got 2")


@pytest.mark.parametrize("opset", [21, 23])
def test_new_opsets(path, opset, pictures):
    old = open_network(simple(path), "stream", CONTRACT).reference(pictures(1, 50, 60)).masks_nhw
    candidate = open_network(simple(path, opset=opset, ir_version=10), "stream", CONTRACT)
    np.testing.assert_array_equal(masks_of(candidate, "fp32", pictures(1, 50, 60)), old)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_input_of_bytes(path, layout, pictures):
    last = layout == "nhwc"
    nodes = [
        helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        helper.make_node("Conv", ["planes", "weight"], ["scores"], pads=[1, 1, 1, 1]),
    ]
    entry = ["n", "h", "w", 3] if last else ["n", 3, "h", "w"]
    weights = {"weight": weights_of(1) / 100}
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, weights, entry, TensorProto.UINT8, output_dtype=TensorProto.FLOAT)
    candidate = open_network(path, "stream", Contract("mine", SIZE_HW, divide_by=1.0, layout=layout))
    assert (candidate.contract.layout, candidate.contract.output_layout) == (layout, "nchw")
    frames = pictures(1, 50, 60)
    expected = candidate.reference(frames).masks_nhw
    assert np.ptp(expected) > 50
    assert np.abs(masks_of(candidate, "fp32", frames).astype(int) - expected).max() <= 1


def test_bytes_are_rounded_before_they_are_halved(path):
    nodes = [
        helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["around"]),
        helper.make_node("Conv", ["around", "weight"], ["scores"]),
    ]
    weights = {"middle": np.array(200.5, np.float32), "weight": np.full((1, 3, 1, 1), 4, np.float32)}
    entry = ["n", 3, "h", "w"]
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, weights, entry, TensorProto.UINT8, output_dtype=TensorProto.FLOAT)
    candidate = open_network(path, "stream", Contract("mine", SIZE_HW, divide_by=1.0))
    frames = np.random.default_rng(0).integers(199, 203, (1, 50, 60, 3), dtype=np.uint8)
    expected = candidate.reference(frames).masks_nhw
    assert np.ptp(expected) > 200
    assert np.abs(masks_of(candidate, "fp16", frames).astype(int) - expected).max() <= 1


def test_a_batch_of_four(path):
    save(path, [conv()], {"scores": [4, 1, 40, 56]}, {"weight": weights_of(1)}, [4, 3, 40, 56])
    refused(path, "expected a network for single pictures or any number, got one for 4 at a time")


def test_indices_over_another_axis(path):
    nodes = [conv("logits"), helper.make_node("ArgMax", ["logits"], ["scores"], axis=2)]
    shapes = {"scores": ["n", 4, 1, "w"]}, {"weight": weights_of(4)}, ["n", 3, "h", "w"]
    save(path, nodes, *shapes, output_dtype=TensorProto.INT64)
    refused(path, r"output 'scores': expected height and width as the input's 40×56.*got 1×4×40×56: name another")


def test_output_of_two_axes(path):
    nodes = [conv("logits"), helper.make_node("Flatten", ["logits"], ["scores"])]
    save(path, nodes, {"scores": ["n", "m"]}, {"weight": weights_of(1)}, ["n", 3, "h", "w"])
    refused(path, r"output 'scores': expected height and width as the input's 40×56.*got 1×2240: name another")


def test_unknown_output(path):
    contract = Contract("mine", SIZE_HW, output="mask")
    refused(simple(path), "output: expected one of scores, got 'mask'", contract)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (Contract("mine", SIZE_HW, channels="grey", mean=(0.0,), std=(1.0,)), "expected 3 channels .*, got grey"),
        (Contract("mine", SIZE_HW, layout="nhwc"), None),
        (Contract("mine", SIZE_HW, activation="softmax"), "activation: expected sigmoid, or none .* got softmax"),
        (Contract("mine", SIZE_HW, classes=("a", "b")), "classes: expected 1 name as the network has classes, got 2"),
    ],
)
def test_contracts_that_do_not_fit(path, contract, message):
    if message is None:
        save(path, [conv()], {"scores": [1, 1, 40, 56]}, {"weight": weights_of(1)}, [1, 3, 40, 56])
        message = "layout: expected nchw for an input of 1×3×40×56, got nhwc: set layout"
    else:
        simple(path)
    refused(path, message, contract)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_an_input_in_the_other_order(path, layout):
    nodes = [
        helper.make_node("Transpose", ["picture"], ["planes"], perm=[0, 3, 1, 2] if layout == "nchw" else [0, 1, 2, 3])
    ]
    nodes += [helper.make_node("Conv", ["planes", "weight"], ["scores"], pads=[1, 1, 1, 1])]
    entry = ["n", "h", "w", 3] if layout == "nchw" else ["n", 3, "h", "w"]
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, {"weight": weights_of(1)}, entry)
    refused(path, f"layout: expected .* for an input of .*3.*, got {layout}", Contract("mine", SIZE_HW, layout=layout))


def test_branches_that_read_weights_around_them(path, pictures):
    def branch(name, operator):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, "h", "w"])]
        return helper.make_graph([helper.make_node(operator, ["logits", "two"], [name])], name, [], values)

    nodes = [
        conv("logits"),
        helper.make_node("ReduceMean", ["picture"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["bright"]),
        helper.make_node("If", ["bright"], ["scores"], then_branch=branch("a", "Add"), else_branch=branch("b", "Mul")),
    ]
    weights = {"weight": weights_of(1), "two": np.array(2, np.float32), "zero": np.array(0, np.float32)}
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, weights, ["n", 3, "h", "w"])
    candidate = open_network(path, "stream", CONTRACT)
    assert not candidate.has_layers
    frames = pictures(1, 50, 60)
    x = F.interpolate(torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float(), SIZE_HW, mode="bilinear")
    scores = F.conv2d(x / 255, torch.from_numpy(weights_of(1)), padding=1) + 2
    expected = F.interpolate(scores.sigmoid(), (50, 60), mode="bilinear")[:, 0].numpy() * 255
    assert np.abs(masks_of(candidate, "fp32", frames) - expected).max() <= 1


def test_more_classes_than_a_mask_can_tell_apart(path):
    refused(simple(path, classes=257), "expected at most 256 classes, .*, got 257")


def test_other_sizes_than_the_network_takes(path):
    save(path, [conv()], {"scores": [1, 1, 40, 56]}, {"weight": weights_of(1)}, [1, 3, 40, 56])
    refused(path, r"--imgsz: expected 40×56, the one size that .* takes, got 64×64", imgsz=(64, 64))
    assert open_network(path, "stream", CONTRACT, imgsz=SIZE_HW).contract.imgsz == SIZE_HW


def test_another_number_of_classes_than_asked_for(path):
    refused(simple(path, classes=4), "expected 2 classes, got 4: leave --classes out", classes=2)


def test_half_precision(path, pictures):
    candidate = open_network(simple(path), "stream", CONTRACT)
    frames = pictures(1, 50, 60)
    masks = masks_of(candidate, "fp16", frames)
    assert np.abs(masks.astype(int) - candidate.reference(frames).masks_nhw).max() <= 2


def test_operations_that_nobody_has(path):
    nodes = [conv("logits"), helper.make_node("Magic", ["logits"], ["scores"], domain="nobody")]
    shapes = {"scores": ["n", 1, "h", "w"]}, {"weight": weights_of(1)}, ["n", 3, "h", "w"]
    save(path, nodes, *shapes, opsets=[helper.make_opsetid("nobody", 1)])
    refused(path, "ONNX Runtime cannot run it.*nobody:Magic")


def test_a_size_at_which_the_network_does_not_run(path, pictures):
    nodes = [
        conv("half", strides=[2, 2]),
        helper.make_node("Resize", ["half", "", "twice"], ["again"], mode="nearest"),
        helper.make_node("Add", ["again", "picture"], ["scores"]),
    ]
    weights = {"weight": weights_of(3), "twice": np.array([1, 1, 2, 2], np.float32)}
    save(path, nodes, {"scores": ["n", 3, "h", "w"]}, weights, ["n", 3, "h", "w"])
    with pytest.raises(CompileError, match=r"ONNX Runtime cannot run it.*Add") as caught:
        open_network(path, "stream", Contract("mine", (41, 56)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("input_last", "output_last"), [(False, True), (True, False)])
def test_axes_of_input_and_output_may_differ(path, pictures, input_last, output_last, dynamic):
    nodes = [helper.make_node("Transpose", ["picture"], ["planes"], perm=[0, 3, 1, 2] if input_last else [0, 1, 2, 3])]
    nodes += [helper.make_node("Conv", ["planes", "weight"], ["logits"], kernel_shape=[1, 1])]
    nodes += [helper.make_node("Transpose", ["logits"], ["scores"], perm=[0, 2, 3, 1] if output_last else [0, 1, 2, 3])]
    height, width = ("h", "w") if dynamic else SIZE_HW
    entry, scores = (
        ["n", height, width, channels] if last else ["n", channels, height, width]
        for last, channels in ((input_last, 3), (output_last, 4))
    )
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    save(path, nodes, {"scores": scores}, {"weight": weight}, entry)
    layout = "nhwc" if input_last else "nchw"
    candidate = open_network(path, "stream", Contract("mine", SIZE_HW, layout=layout))
    assert candidate.class_count == 4
    assert candidate.contract.output_layout == ("nhwc" if output_last else "nchw")
    frames = pictures(1, *SIZE_HW)
    rgb = frames[0, :, :, ::-1].astype(np.float32) / 255
    assert np.mean(candidate.reference(frames).masks_nhw[0] == (rgb @ weight[:, :, 0, 0].T).argmax(-1)) > 0.999


def test_scores_that_are_no_picture(path):
    save(path, [conv("logits"), helper.make_node("Reshape", ["logits", "shape"], ["scores"])], {"scores": ["n", "a", "b", "c"]},
         {"weight": weights_of(1), "shape": np.array([1, 7, 8, 40])}, ["n", 3, "h", "w"])  # fmt: skip
    refused(path, r"output 'scores': expected height and width as the input's 40×56.*got 1×7×8×40")


def test_values_that_contradict_the_activation(path, pictures):
    nodes = [conv("logits"), helper.make_node("Mul", ["logits", "hundred"], ["scores"])]
    weights = {"weight": weights_of(1), "hundred": np.array(100, np.float32)}
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, weights, ["n", 3, "h", "w"])
    wrong = open_network(path, "stream", Contract("mine", SIZE_HW, activation="none"))
    wrong.reference(pictures(1, 50, 60))
    with pytest.raises(CompileError, match=r"activation: expected values from 0 to 1 .*set activation: sigmoid"):
        wrong.doubt()
    nodes = [conv("logits"), helper.make_node("Sigmoid", ["logits"], ["scores"])]
    save(path, nodes, {"scores": ["n", 1, "h", "w"]}, {"weight": weights_of(1)}, ["n", 3, "h", "w"])
    twice = open_network(path, "stream", Contract("mine", SIZE_HW))
    assert twice.contract.activation == "none"
    right = open_network(path, "stream", Contract("mine", SIZE_HW, activation="none"))
    np.testing.assert_array_equal(*(one.reference(pictures(1, 50, 60)).masks_nhw for one in (twice, right)))
    assert right.doubt() is None


# --- what cannot be brought into layers


def with_a_determinant(path, classes=1):
    """Its scores do not depend on the determinant, which has no counterpart among layers."""
    nodes = [
        conv("logits"),
        helper.make_node("MatMul", ["picture", "square"], ["squares"]),
        helper.make_node("Slice", ["squares", "from", "to", "axes"], ["cut"]),
        helper.make_node("Det", ["cut"], ["det"]),
        helper.make_node("ReduceMean", ["det"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["scores"]),
    ]
    some = {
        "weight": weights_of(classes),
        "square": np.eye(SIZE_HW[1], 2, dtype=np.float32),
        "from": np.array([0]),
        "to": np.array([2]),
        "axes": np.array([2]),
        "zero": np.array(0, np.float32),
    }
    return save(path, nodes, {"scores": ["n", classes, "h", "w"]}, some, ["n", 3, *SIZE_HW])


def test_an_operator_without_layers_leaves_fp32(path, pictures, caplog):
    caplog.set_level("INFO", "edgemask")
    candidate = open_network(with_a_determinant(path), "stream", CONTRACT)
    assert not candidate.has_layers
    (line,) = [message for message in caplog.messages if "FP32 alone" in message]
    assert "Det" in line
    assert "\n" not in line
    frames = pictures(2, 50, 60)
    expected = np.concatenate([candidate.reference(frame[None]).masks_nhw for frame in frames])
    assert np.abs(masks_of(candidate, "fp32", frames).astype(int) - expected).max() <= 1
    with pytest.raises(CompileError, match=r"--precision: expected fp32 for a network .*, got fp16"):
        candidate.export("fp16", None, ())


@pytest.mark.parametrize("opset", [21, 23])
def test_as_it_is_newer_opsets_are_refused(path, opset):
    model = onnx.load(with_a_determinant(path))
    model.opset_import[0].version, model.ir_version = opset, 10
    onnx.save(model, path)
    refused(path, f"expected ONNX opset 20 or older, got {opset}: export it with")


def test_as_it_is_of_an_older_ir(path, pictures):
    with_a_determinant(path)
    model = onnx.load(path)
    model.ir_version = 8
    onnx.save(model, path)
    candidate = open_network(path, "stream", CONTRACT)
    assert not candidate.has_layers
    assert np.ptp(candidate.reference(pictures(1, 50, 60)).masks_nhw) > 0


def test_as_it_is_with_weights_beside_it(path, pictures):
    frames = pictures(2, 50, 60)
    expected = masks_of(open_network(with_a_determinant(path), "stream", CONTRACT), "fp32", frames)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    candidate = open_network(path, "stream", CONTRACT)
    assert [file.name for file in candidate.data_files] == ["weights.bin"]
    np.testing.assert_array_equal(masks_of(candidate, "fp32", frames), expected)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (Contract("mine", SIZE_HW, output="mask"), "output: expected one of scores, got 'mask'"),
        (Contract("mine", SIZE_HW, activation="softmax"), "activation: expected sigmoid, or none .* got softmax"),
        (Contract("mine", SIZE_HW, classes=("a", "b")), "classes: expected 1 name as the network has classes, got 2"),
    ],
)
def test_as_it_is_contracts_must_fit(path, contract, message):
    refused(with_a_determinant(path), message, contract)


def test_as_it_is_classes_and_values(path, pictures):
    refused(with_a_determinant(path, 4), "expected 2 classes, got 4: leave --classes out", classes=2)
    wrong = open_network(with_a_determinant(path), "stream", Contract("mine", SIZE_HW, activation="none"))
    wrong.reference(pictures(1, 50, 60))
    with pytest.raises(CompileError, match=r"activation: expected values from 0 to 1 .*set activation: sigmoid"):
        wrong.doubt()
