# A small network that nobody here wrote, trained for seconds, from ONNX and from torch.export, through the whole command.

import copy
import json
import re
import warnings

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from calibration.int8.search import GROUPED, Int8Search
from calibration.int8.sensitivity import Example
from compile.__main__ import main
from compile.inspect.__main__ import main as inspect
from compile.networks.contract import Contract
from compile.networks.layered import GraphBuilder, Value
from compile.options import BuildOptions
from compile.program.fp16 import LARGEST, RangeRecorder
from compile.program.open_network import open_network
from compile.program.program import FrameProgram
from compile.steps import open_trained
from pipeline.bundles.bundle import Bundle
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame
from pipeline.frames.nv12 import to_bgr, to_nv12

SIZE = 64


class Mobile(nn.Module):
    """A stem, a depthwise convolution with squeeze-and-excitation, a wide one, and a head that is enlarged."""

    def __init__(self, classes=1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )
        self.wide = nn.Sequential(nn.Conv2d(16, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, x):
        y = self.stem(x)
        z = self.depthwise(y)
        z = self.wide(z * self.squeeze(z) + y)
        return F.interpolate(self.head(z), x.shape[2:], mode="bilinear", align_corners=False)


class Ending(nn.Module):
    """The same with probabilities at its output."""

    def __init__(self, network, kind):
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, x):
        scores = self.network(x)
        if self.kind == "clip":  # probabilities that no activation at the end tells
            return scores.sigmoid().clamp(0.0, 1.0)
        return scores.sigmoid() if self.kind == "sigmoid" else scores.softmax(1)


def subject(images, classes):
    """What the network is to find: where red is more than green, or which of three colors is most."""
    smooth = F.avg_pool2d(images, 5, 1, 2)
    return (smooth[:, :1] > smooth[:, 1:2]).float() if classes == 1 else smooth.argmax(1)


@pytest.fixture(scope="session")
def trained(pictures):
    def train(classes):
        torch.manual_seed(classes)
        network = Mobile(classes).train()
        images = torch.from_numpy(pictures(48, SIZE, SIZE, seed=9)[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        truth = subject(images, classes)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for step in range(160):
            some = torch.arange(8) + 8 * (step % 6)
            scores = network(images[some])
            loss = F.binary_cross_entropy_with_logits if classes == 1 else F.cross_entropy
            optimizer.zero_grad()
            loss(scores, truth[some]).backward()
            optimizer.step()
        return network.eval()

    with torch.enable_grad():
        return {classes: train(classes) for classes in (1, 3)}


def exported(network, path, *, dynamo=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"verbose": False} if dynamo else {"opset_version": 17}
        # Of one that is not, the exporter leaves every part in training mode.
        torch.onnx.export(network.eval(), (torch.randn(1, 3, SIZE, SIZE),), str(path), dynamo=dynamo, **options)
    return path


@pytest.fixture(scope="session")
def place(trained, pictures, tmp_path_factory):
    """A folder with the network, contracts, and pictures to calibrate on and to judge on."""
    folder = tmp_path_factory.mktemp("graph")
    exported(trained[1], folder / "net.onnx")
    for name, seed, count in (("calib", 1, 16), ("judged", 2, 8)):
        (folder / name).mkdir()
        for index, picture in enumerate(pictures(count, 96, 128, seed=seed)):
            cv2.imwrite(str(folder / name / f"{index}.png"), picture)
    (folder / "sigmoid.yaml").write_text(f"imgsz: {SIZE}\nfilter: bilinear\nactivation: sigmoid\n")
    return folder


@pytest.fixture
def compiled(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))

    def run(weights, *options, status=0):
        arguments = ["-w", weights, "-o", tmp_path / "bundle", "--contract", place / "sigmoid.yaml"]
        arguments += ["--verify", place / "judged", "--verify-count", "8", *options]
        assert main([str(argument) for argument in arguments]) == status
        said = capsys.readouterr()
        return (Bundle.read(tmp_path / "bundle") if status == 0 else None), said.out + said.err

    return run


def original_masks(path, frames, activation="sigmoid"):
    """What ONNX Runtime makes of the file as it is, computed beside the frame program."""
    x = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (SIZE, SIZE), mode="bilinear").numpy() / 255
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = torch.from_numpy(np.concatenate([session.run(None, {name: one[None]})[0] for one in x]))
    if scores.shape[1] > 1:
        return F.interpolate(scores.argmax(1, keepdim=True).float(), frames.shape[1:3])[:, 0].numpy().astype(np.uint8)
    probability = scores.sigmoid() if activation == "sigmoid" else scores
    return (F.interpolate(probability, frames.shape[1:3], mode="bilinear")[:, 0] * 255).round().numpy().astype(np.uint8)


def masks_of(bundle, frames, **more):
    session = onnxruntime.InferenceSession(str(bundle.program_path), providers=["CPUExecutionProvider"])
    return session.run(["masks"], {"frames": frames, **more})[0]


def iou(one, other):
    one, other = one > 127, other > 127
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.995), ("fp16", 0.995), ("int8", 0.99)])
def test_precisions_with_decoders_frames_and_views(place, compiled, pictures, capsys, precision, least):
    options = ["--calib", place / "calib", "--strict"] if precision == "int8" else []
    bundle, said = compiled(
        place / "net.onnx", "--precision", precision, "--pixels", "nv12", "--compose", "device", *options
    )
    manifest = bundle.manifest
    assert (manifest.precision, manifest.pixels, manifest.composes) == (precision, "nv12", True)
    assert (manifest.weights["family"], manifest.weights["architecture"]) == ("foreign", "net")
    assert [value.name for value in onnx.load(bundle.program_path).graph.output] == ["masks", "not_finite", "views"]
    taken = np.stack([to_nv12(frame) for frame in pictures(8, 96, 128, seed=3)])
    expected = original_masks(place / "net.onnx", np.stack([to_bgr(frame) for frame in taken]))
    assert 0.2 < (expected > 127).mean() < 0.8
    assert iou(masks_of(bundle, taken, look=np.zeros(6, np.float32)), expected) >= least
    assert f"{precision} agrees with the trained network" in said
    if precision == "int8":
        left = {name.rpartition("stem.")[2]: why for name, why in manifest.calibration["left"].items()}
        assert (left["0"], left["head"]) == ("the first layer", "a last layer")
        assert GROUPED in left.values()
        assert not any("wide" in name for name in left)
        assert 0 < manifest.calibration["share_of_work"] < 0.97
        assert inspect([str(bundle.folder), "--layers"]) == 0
        said = capsys.readouterr().out
        assert re.search(r"wide\.0.*int8", said)
        for name in manifest.calibration["left"]:
            assert name in said


def test_int8_on_a_cpu(place, compiled, pictures):
    options = ["--precision", "int8", "--calib", place / "calib", "--strict", "--target", "onnxruntime"]
    bundle, _ = compiled(place / "net.onnx", *options, "--min-iou", "0.9")
    assert {name.rpartition(".")[2] for name in bundle.manifest.layers} >= {"0", "head"}
    frames = pictures(8, 96, 128, seed=3)
    assert iou(masks_of(bundle, frames), original_masks(place / "net.onnx", frames)) >= 0.97


def frames_of(images):
    return [Frame(image, index, float(index), "blobs", str(index)) for index, image in enumerate(images)]


@pytest.mark.parametrize("kind", ["sigmoid", "softmax", "clip"])
def test_probabilities_at_the_output(trained, tmp_path, pictures, kind):
    classes = 3 if kind == "softmax" else 1
    path = exported(Ending(trained[classes], kind), tmp_path / "net.onnx")
    contract = Contract("mine", (SIZE, SIZE), activation="none", filter="bilinear")
    candidate = open_network(path, "stream", contract)
    assert candidate.contract.activation == "none"
    frames = pictures(8, 96, 128, seed=3)
    expected = original_masks(path, frames, "none")
    masks = candidate.module("fp32", ()).eval()(torch.from_numpy(frames))[0].numpy()
    assert np.mean(masks == expected) > 0.9995 if classes > 1 else np.abs(masks.astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) >= 3
    np.testing.assert_allclose(candidate.reference(frames).masks_nhw.astype(int), masks, atol=3 if classes > 1 else 1)
    assert candidate.doubt() is None
    recipe = candidate.search_int8(frames_of(pictures(16, 96, 128, seed=1)), "mse", lambda _: None)
    # What the search looked at are logits: with probabilities all of a picture would be its subject.
    assert recipe.result.noise > 0.01
    exact, found = trained[classes], {}
    with torch.inference_mode():
        x = candidate.module("fp32", ()).before(torch.from_numpy(frames))
        scores = exact(x)
        found = recipe.apply(candidate.module("fp32", ()).network).logits(x)
    if kind != "clip":
        assert (found - scores).square().mean().sqrt() < 0.2 * scores.std()
    masks = candidate.module("int8", ()).eval()(torch.from_numpy(frames))[0].numpy()
    assert np.mean(masks == expected) >= 0.97 if classes > 1 else iou(masks, expected) >= 0.99


def test_scores_are_enlarged_as_the_network_gives_them(trained, tmp_path, pictures):
    """Probabilities and logits between two pixels are not the same."""
    path = exported(Ending(trained[3], "softmax"), tmp_path / "net.onnx")
    candidate = open_network(path, "stream", Contract("mine", (SIZE, SIZE), activation="none"), upsample="scores")
    frames = pictures(2, 200, 240)
    program = candidate.module("fp32", ()).eval()
    assert np.mean(program(torch.from_numpy(frames))[0].numpy() == candidate.reference(frames).masks_nhw) > 0.9999


def test_weights_beside_it_and_nodes_in_any_order(place, trained, compiled, tmp_path, pictures):
    path = exported(trained[1], tmp_path / "net.onnx", dynamo=True)
    model = onnx.load(path)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    bundle, _ = compiled(path, "--precision", "fp16")
    frames = pictures(4, 96, 128, seed=3)
    assert iou(masks_of(bundle, frames), original_masks(place / "net.onnx", frames)) >= 0.995
    # Other weights in the same graph are other weights: a search must not be taken for theirs.
    data = bytearray((tmp_path / "net.onnx.data").read_bytes())
    data[:4] = np.float32(0.125).tobytes()
    (tmp_path / "net.onnx.data").write_bytes(data)
    options = BuildOptions(output=tmp_path / "other", weights=path, contract=str(place / "sigmoid.yaml"))
    assert open_trained(options).weights_sha256 != bundle.manifest.weights["sha256"]


def with_a_determinant(path, target):
    """The network with a sum that changes nothing and that has no counterpart among layers."""
    model = onnx.load(path)
    (end,) = [node for node in model.graph.node if model.graph.output[0].name in node.output]
    end.output[0] = "scores"
    picture, zeros = model.graph.input[0].name, np.zeros(1, np.float32)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(zeros, "zeros")])
    model.graph.node.extend(
        [
            helper.make_node("Det", [picture], ["det"]),
            helper.make_node("ReduceMean", ["det"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zeros"], ["nothing"]),
            helper.make_node("Add", ["scores", "nothing"], [model.graph.output[0].name]),
        ]
    )
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_fp32_alone_is_told_and_taken(place, compiled, tmp_path, precision):
    path = with_a_determinant(place / "net.onnx", tmp_path / "net.onnx")
    bundle, said = compiled(path, "--precision", precision, "--calib", place / "calib")
    assert bundle.manifest.precision == "fp32"
    (line,) = [line for line in said.splitlines() if "FP32 alone" in line]
    assert "Det" in line
    assert "not int8: " in said
    assert "not fp16: " in said


def test_fp32_alone_is_refused_where_int8_is_a_must(place, compiled, tmp_path):
    path = with_a_determinant(place / "net.onnx", tmp_path / "net.onnx")
    _, said = compiled(path, "--precision", "int8", "--calib", place / "calib", "--strict", status=2)
    assert "expected fp32" in said
    _, said = compiled(path, "--target", "torch-tensorrt", status=2)
    assert re.search("--target: expected onnx or tensorrt for a network that .* layers, got torch-tensorrt", said)


def test_one_picture_at_a_time_is_layers_all_the_same(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "weight")
    shape = onnx.numpy_helper.from_array(np.array([1, 1, SIZE, SIZE]), "shape")
    index = onnx.numpy_helper.from_array(np.array(0), "index")
    nodes = [
        helper.make_node("Gather", ["x", "index"], ["first"], axis=0),
        helper.make_node("Unsqueeze", ["first", "zero"], ["again"]),
        helper.make_node("Conv", ["again", "weight"], ["y"]),
    ]
    zero = onnx.numpy_helper.from_array(np.array([0]), "zero")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, SIZE, SIZE]) for name, c in (("x", 3), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], [weight, shape, index, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "n.onnx")
    candidate = open_network(tmp_path / "n.onnx", "stream", Contract("mine", (SIZE, SIZE)))
    assert (candidate.has_layers, candidate.takes_batch) == (True, False)
    assert candidate.export("fp16", (40, 50), ()).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_contract_of_the_file_s_axes(trained, tmp_path, pictures):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = trained[1]

        def forward(self, x):
            return self.network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.randn(1, SIZE, SIZE, 3)
        torch.onnx.export(Last().eval(), (x,), str(tmp_path / "n.onnx"), dynamo=False, opset_version=17)
    candidate = open_network(tmp_path / "n.onnx", "stream", Contract("mine", (SIZE, SIZE), layout="nhwc"))
    assert (candidate.contract.layout, candidate.contract.output_layout) == ("nhwc", "nhwc")
    assert Contract.from_dict(json.loads(json.dumps(candidate.contract.as_dict()))) == candidate.contract
    frames = pictures(2, 96, 128)
    exported(trained[1], tmp_path / "plain.onnx")
    half = candidate.module("fp16", ()).eval()(torch.from_numpy(frames))[0].numpy()
    np.testing.assert_allclose(half.astype(int), candidate.reference(frames).masks_nhw, atol=4)


# torch.export's files


def saved(network, path, *, dynamic=True):
    shapes = ({0: torch.export.Dim("N", max=64)},) if dynamic else None
    torch.export.save(
        torch.export.export(network.eval(), (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes=shapes), path
    )
    return path


def test_exported_programs(place, trained, compiled, tmp_path, pictures):
    path = saved(trained[1], tmp_path / "net.pt2")
    bundle, _ = compiled(path, "--precision", "int8", "--calib", place / "calib", "--strict")
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.calibration["left"]["stem.0"] == "the first layer"
    frames = pictures(4, 96, 128, seed=3)
    expected = original_masks(place / "net.onnx", frames)
    assert iou(masks_of(bundle, frames), expected) >= 0.99
    contract = Contract("mine", (SIZE, SIZE), filter="bilinear")
    exact = open_network(path, "stream", contract).module("fp32", ()).eval()(torch.from_numpy(frames))[0].numpy()
    assert np.abs(exact.astype(int) - expected).max() <= 1


def test_exported_programs_with_probabilities(trained, tmp_path, pictures):
    path = saved(Ending(trained[1], "sigmoid"), tmp_path / "net.pt2")
    candidate = open_network(path, "stream", Contract("mine", (SIZE, SIZE), activation="none"))
    frames = pictures(2, 96, 128)
    expected = open_network(saved(trained[1], path), "stream", Contract("mine", (SIZE, SIZE))).reference(frames)
    masks = candidate.reference(frames).masks_nhw
    assert np.abs(masks.astype(int) - expected.masks_nhw).max() <= 1
    assert candidate.doubt() is None
    twice = open_network(saved(Ending(trained[1], "sigmoid"), path), "stream", Contract("mine", (SIZE, SIZE)))
    np.testing.assert_array_equal(twice.reference(frames).masks_nhw, masks)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (Contract("mine", (SIZE, SIZE), layout="nhwc"), "layout: expected none for"),
        (Contract("mine", (SIZE, SIZE), channels="grey", mean=(0.0,), std=(1.0,)), "does not take them"),
        (Contract("mine", (SIZE, SIZE), activation="softmax"), "activation: expected sigmoid"),
        (Contract("mine", (SIZE, SIZE), classes=("a", "b")), "classes: expected 1 name"),
    ],
)
def test_exported_programs_that_do_not_fit(trained, tmp_path, contract, message):
    path = saved(trained[1], tmp_path / "net.pt2")
    with pytest.raises(CompileError, match=message):
        open_network(path, "stream", contract)
    with pytest.raises(CompileError, match=r"--contract contract\.yaml"):
        open_network(path, "stream")


# What the searches ask of a graph


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)
        self.wide, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        y = self.patches(x)
        t = self.mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)
        return F.interpolate(self.head(self.wide(t.relu() + y).relu()), x.shape[2:], mode="bilinear")


def test_linear_layers_are_counted_and_become_int8(tmp_path, pictures):
    torch.manual_seed(0)
    exported(Attending().eval(), tmp_path / "n.onnx")
    candidate = open_network(tmp_path / "n.onnx", "stream", Contract("mine", (SIZE, SIZE)))
    frames = pictures(2, SIZE, SIZE)
    with candidate.watching():
        expected = candidate.reference(frames).masks_nhw
    half = candidate.module("fp16", ["mix"]).eval()
    assert half.network.get_submodule("mix").dtype == torch.float32
    np.testing.assert_allclose(half(torch.from_numpy(frames))[0].numpy().astype(int), expected, atol=2)
    network = candidate.module("fp32", ()).network
    search = Int8Search(network, (SIZE, SIZE))
    x = torch.rand(1, 3, SIZE, SIZE)
    search.observe(lambda: search.network.logits(x))
    recipe = search.find([Example(x, network.logits(x).clone())], "max", goal_iou=0.5)
    assert recipe.left == {"patches": "the first layer", "head": "a last layer"}
    assert set(recipe.layers) == {"mix", "wide"}
    assert recipe.work["mix"] == pytest.approx(16 * 16 / (16 * 16 + 3 * 16 * 16 + 16 * 16 * 9 + 16))


def large_sum():
    """A convolution, a constant that makes its values too large for FP16, and another convolution."""
    builder = GraphBuilder()
    torch.manual_seed(0)
    x = builder.picture((1, 3, 16, 16))
    y = builder.layer("first", nn.Conv2d(3, 8, 3, padding=1), x)
    big = builder.call(torch.mul, y, 1e5)
    small = builder.call(torch.mul, big, 1e-5)
    return builder.finish(builder.layer("last", nn.Conv2d(8, 1, 1), small))


def test_values_between_layers_are_watched():
    network = large_sum()
    recorder = RangeRecorder(network)
    with torch.inference_mode(), recorder.watching():
        recorder.run(torch.randn(1, 3, 16, 16))
    beyond = recorder.beyond_half()
    assert set(beyond) == {"first"}
    assert beyond["first"] > LARGEST
    exact = large_sum()
    program = FrameProgram(network, Contract("x", (16, 16)), half=True, keep=set(beyond)).eval()
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    expected = FrameProgram(exact, Contract("x", (16, 16))).eval()(frames)[0]
    masks, not_finite = program(frames)
    assert not not_finite.any()
    assert (masks.int() - expected.int()).abs().max() <= 2


def test_constants_of_a_graph_meet_kept_layers():
    builder = GraphBuilder()
    torch.manual_seed(0)
    y = builder.layer("first", nn.Conv2d(3, 8, 3, padding=1), builder.picture((1, 3, 16, 16)))
    y = builder.call(torch.matmul, y, Value(torch.randn(16, 16) / 4))
    network = builder.finish(builder.layer("last", nn.Conv2d(8, 1, 1), y))
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    expected = FrameProgram(copy.deepcopy(network), Contract("x", (16, 16))).eval()(frames)[0]
    for keep in ((), ("first",), ("last",), ("first", "last")):
        program = FrameProgram(copy.deepcopy(network), Contract("x", (16, 16)), half=True, keep=keep).eval()
        assert (program(frames)[0].int() - expected.int()).abs().max() <= 2, keep


def test_a_constant_beyond_half_is_told():
    builder = GraphBuilder()
    y = builder.layer("first", nn.Conv2d(3, 1, 1), builder.picture((1, 3, 16, 16)))
    network = builder.finish(builder.call(torch.maximum, y, Value(torch.tensor([[[[-1e6]]]]))))
    with pytest.raises(CompileError, match=r"FP16 ends at 65504, got fp16 and 1e\+06"):
        FrameProgram(network, Contract("x", (16, 16)), half=True)
