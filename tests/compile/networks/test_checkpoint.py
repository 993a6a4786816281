# Every family is written here a second time, as plain functions on a file's tensors by the file's own names: what the
# mapper does is compared with another way to the same output, never with a copy of itself.

import argparse
import os
import pickle
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from compile.networks.checkpoint import load_network
from compile.networks.families import FAMILIES
from compile.networks.u2net import FULL, LITE, U2Net
from compile.networks.unet import UNet
from pipeline.errors import CheckpointError, NotOurNetworkError

# --- U-Net: two ways to name it

NAMES = ("inc", "down", "up", "out")
MILESIAL = dict(
    zip(
        NAMES,
        ("inc.double_conv", "down{}.maxpool_conv.1.double_conv", "up{}.conv.double_conv", "outc.conv"),
        strict=True,
    )
)
BASE32 = dict(zip(NAMES, ("in_conv", "down{}.1", "up{}.conv", "out_conv.0"), strict=True))


def random_conv(state, name, in_channels, out_channels, kernel=3, bias=False):
    scale = (2 / (in_channels * kernel**2)) ** 0.5
    state[f"{name}.weight"] = torch.randn(out_channels, in_channels, kernel, kernel) * scale
    if bias:
        state[f"{name}.bias"] = torch.randn(out_channels) * 0.5


def random_norm(state, name, channels):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) * 0.3
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = (
        torch.randn(channels) * 0.3,
        torch.rand(channels) + 0.5,
    )
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def unet_state(names, bilinear=False, width=4, n_channels=3, n_classes=2, bias=False):
    state = {}

    def double(name, in_channels, mid_channels, out_channels):
        for first, (ins, outs) in ((0, (in_channels, mid_channels)), (3, (mid_channels, out_channels))):
            random_conv(state, f"{name}.{first}", ins, outs, bias=bias)
            random_norm(state, f"{name}.{first + 1}", outs)

    halved = 2 if bilinear else 1
    double(names["inc"], n_channels, width, width)
    for level, ins, outs in ((1, 1, 2), (2, 2, 4), (3, 4, 8), (4, 8, 16 // halved)):
        double(names["down"].format(level), ins * width, outs * width, outs * width)
    for level, ins, outs in ((1, 16, 8 // halved), (2, 8, 4 // halved), (3, 4, 2 // halved), (4, 2, 1)):
        if not bilinear:
            state[f"up{level}.up.weight"] = (
                torch.randn(ins * width, ins * width // 2, 2, 2) * (2 / (ins * width)) ** 0.5
            )
            state[f"up{level}.up.bias"] = torch.randn(ins * width // 2)
        double(names["up"].format(level), ins * width, ins * width // 2 if bilinear else outs * width, outs * width)
    random_conv(state, names["out"], width, n_classes, kernel=1, bias=True)
    return state


def batch_norm(state, name, x):
    values = (state[f"{name}.{value}"] for value in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values, training=False, eps=1e-5)


def unet_logits(state, names, x):
    def double(name, x):
        for first in (0, 3):
            x = F.conv2d(x, state[f"{name}.{first}.weight"], state.get(f"{name}.{first}.bias"), padding=1)
            x = F.relu(batch_norm(state, f"{name}.{first + 1}", x))
        return x

    maps = [double(names["inc"], x)]
    for level in (1, 2, 3, 4):
        maps.append(double(names["down"].format(level), F.max_pool2d(maps[-1], 2)))
    y = maps.pop()
    for level in (1, 2, 3, 4):
        if f"up{level}.up.weight" in state:
            y = F.conv_transpose2d(y, state[f"up{level}.up.weight"], state[f"up{level}.up.bias"], stride=2)
        else:
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        skip = maps.pop()
        dy, dx = skip.shape[2] - y.shape[2], skip.shape[3] - y.shape[3]
        y = double(
            names["up"].format(level), torch.cat([skip, F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], 1)
        )
    return F.conv2d(y, state[f"{names['out']}.weight"], state[f"{names['out']}.bias"])


# --- U²-Net: one graph, told in the authors' stages and units; two ways to name them

HEIGHTS = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}
DILATED = ("5", "6", "5d")
TINY = ((3, 2, 4), *((4, 2, 4),) * 5, *((8, 2, 4),) * 5)
SLIM = (
    (1, 2, 3),
    (3, 1, 4),
    (4, 2, 5),
    (5, 3, 2),
    (2, 1, 3),
    (3, 2, 4),
    (7, 1, 2),
    (4, 2, 3),
    (8, 3, 1),
    (5, 1, 2),
    (5, 2, 4),
)


def official(stage, unit):
    return f"stage{stage}.rebnconv{unit}.conv_s1", f"stage{stage}.rebnconv{unit}.bn_s1"


def reimplemented(stage, unit):
    place = f"encode_modules.{int(stage) - 1}" if stage.isdigit() else f"decode_modules.{5 - int(stage[0])}"
    if unit == "in":
        place += ".conv_in"
    elif unit.isdigit():
        place += f".encode_modules.{int(unit) - 1}"
    else:
        place += f".decode_modules.{HEIGHTS[stage] - 1 - int(unit[:-1])}"
    return f"{place}.conv", f"{place}.bn"


LAST = {official: ("side{}", "outconv"), reimplemented: ("side_modules.{}", "out_conv")}


def side_name(name, size):
    return LAST[name][0].format(size if name is official else 6 - size)


def u2net_state(name, stages=TINY, n_classes=1, bias=None):
    state = {}
    bias = name is official if bias is None else bias
    for stage, (in_channels, mid, out) in zip(HEIGHTS, stages, strict=True):
        height = HEIGHTS[stage]
        units = {"in": (in_channels, out), "1": (out, mid)}
        units |= {str(unit): (mid, mid) for unit in range(2, height + 1)}
        units |= {f"{unit}d": (2 * mid, mid) for unit in range(height - 1, 1, -1)} | {"1d": (2 * mid, out)}
        for unit, (ins, outs) in units.items():
            conv, norm = name(stage, unit)
            random_conv(state, conv, ins, outs, bias=bias)
            random_norm(state, norm, outs)
    widths = [stages[10 - k][2] for k in range(5)] + [stages[5][2]]
    for size, width in enumerate(widths, start=1):
        random_conv(state, side_name(name, size), width, n_classes, bias=True)
    random_conv(state, LAST[name][1], 6 * n_classes, n_classes, kernel=1, bias=True)
    return state


class TorchOps:
    def __init__(self, state):
        self.state = state

    def unit(self, conv, norm, x, dilation):
        weight, bias = self.state[f"{conv}.weight"], self.state.get(f"{conv}.bias")
        return F.relu(batch_norm(self.state, norm, F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)))

    def conv(self, name, x, padding):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=padding)

    def pool(self, x):
        return F.max_pool2d(x, 2, 2, ceil_mode=True)

    def resize(self, x, like):
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    def cat(self, *xs):
        return torch.cat(xs, 1)

    def add(self, a, b):
        return a + b


class OnnxOps:
    """Writes the same graph as ONNX nodes, normalisation folded into the convolutions."""

    def __init__(self, state):
        self.state, self.nodes, self.constants = state, [], []

    def node(self, operation, inputs, **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def constant(self, name, tensor):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(tensor.numpy()), name))
        return name

    def convolve(self, x, weight, bias, padding, dilation=1, name=None):
        name = f"w{len(self.nodes)}" if name is None else name
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node("Conv", inputs, pads=[padding] * 4, dilations=[dilation] * 2, kernel_shape=weight.shape[2:])

    def unit(self, conv, norm, x, dilation):
        mean, var, scale, shift = (
            self.state[f"{norm}.{value}"] for value in ("running_mean", "running_var", "weight", "bias")
        )
        factor = scale / torch.sqrt(var + 1e-5)
        bias = shift + (self.state.get(f"{conv}.bias", torch.zeros_like(mean)) - mean) * factor
        weight = self.state[f"{conv}.weight"] * factor[:, None, None, None]
        return self.node("Relu", [self.convolve(x, weight, bias, dilation, dilation)])

    def conv(self, name, x, padding):
        return self.convolve(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding, name=name)

    def pool(self, x):
        return self.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)

    def resize(self, x, like):
        size = self.node("Shape", [like])
        return self.node(
            "Resize", [x, "", "", size], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
        )

    def cat(self, *xs):
        return self.node("Concat", list(xs), axis=1)

    def add(self, a, b):
        return self.node("Add", [a, b])


class ChannelSafeOnnxOps(OnnxOps):
    """Resizes to height and width of the other map; the channels of the two may differ."""

    def resize(self, x, like):
        half = [self.node("Shape", [tensor]) for tensor in (x, like)]
        zero, two, four = (self.constant(f"n{len(self.nodes)}.{n}", torch.tensor([n])) for n in (0, 2, 4))
        size = self.node(
            "Concat", [self.node("Slice", [half[0], zero, two]), self.node("Slice", [half[1], two, four])], axis=0
        )
        return self.node(
            "Resize", [x, "", "", size], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
        )


def u2net_graph(ops, name, x, deepest_side_first=False):
    def block(stage, x):
        def unit(key, x, dilation=1):
            return ops.unit(*name(stage, key), x, dilation)

        height, dilated = HEIGHTS[stage], stage in DILATED
        y = residual = unit("in", x)
        maps = {}
        for depth in range(1, height + 1):
            if not dilated and 1 < depth < height:
                y = ops.pool(y)
            y = maps[depth] = unit(str(depth), y, 2 ** (depth - 1) if dilated else 2 if depth == height else 1)
        for depth in range(height - 1, 0, -1):
            if not dilated and depth < height - 1:
                y = ops.resize(y, maps[depth])
            y = unit(f"{depth}d", ops.cat(y, maps[depth]), 2 ** (depth - 1) if dilated else 1)
        return ops.add(y, residual)

    maps, y = {}, x
    for stage in range(1, 7):
        y = maps[stage] = block(str(stage), y if stage == 1 else ops.pool(y))
    for stage in range(5, 0, -1):
        y = maps[stage] = block(f"{stage}d", ops.cat(ops.resize(y, maps[stage]), maps[stage]))
    order = range(6, 0, -1) if deepest_side_first else range(1, 7)
    sides = {size: ops.conv(side_name(name, size), maps[size], 1) for size in order}
    return ops.conv(LAST[name][1], ops.cat(sides[1], *(ops.resize(sides[size], sides[1]) for size in range(2, 7))), 0)


def u2net_onnx(state, name, n_channels=3, n_classes=1, size_hw=(40, 33), **options):
    ops = ChannelSafeOnnxOps(state)
    mask = ops.node("Sigmoid", [u2net_graph(ops, name, "image", **options)])
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, n_channels, *size_hw))]
    outputs = [helper.make_tensor_value_info(mask, TensorProto.FLOAT, (1, n_classes, *size_hw))]
    graph = helper.make_graph(ops.nodes, "u2net", inputs, outputs, ops.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


# --- The four families

WRITTEN = {
    "unet": (lambda **o: unet_state(MILESIAL, **o), lambda state, x: unet_logits(state, MILESIAL, x)),
    "unet-base32": (lambda **o: unet_state(BASE32, **o), lambda state, x: unet_logits(state, BASE32, x)),
    "u2net-official": (
        lambda **o: u2net_state(official, **o),
        lambda state, x: u2net_graph(TorchOps(state), official, x),
    ),
    "u2net": (
        lambda **o: u2net_state(reimplemented, **o),
        lambda state, x: u2net_graph(TorchOps(state), reimplemented, x),
    ),
}
VARIANTS = [
    pytest.param("unet", {}, "unet", id="unet"),
    pytest.param("unet", {"bilinear": True, "n_classes": 1}, "unet", id="unet-bilinear"),
    pytest.param("unet", {"bias": True, "width": 3, "n_channels": 1, "n_classes": 19}, "unet", id="unet-biases"),
    pytest.param("unet-base32", {"bilinear": True}, "unet", id="base32-bilinear"),
    pytest.param("unet-base32", {"n_classes": 4, "n_channels": 4}, "unet", id="base32"),
    pytest.param("u2net-official", {}, "u2net", id="official"),
    pytest.param("u2net-official", {"stages": SLIM, "n_classes": 2}, "u2net", id="official-slim"),
    pytest.param("u2net", {}, "u2net", id="reimplemented"),
    pytest.param("u2net", {"bias": True, "n_classes": 3}, "u2net", id="reimplemented-biases"),
    pytest.param("u2net", {"stages": SLIM}, "u2net", id="reimplemented-slim"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Threads that wait for each other cost such small networks many times their own work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def check(loaded, family, state, n_channels=3):
    """The loaded network gives what the family's own functions give on the file's own tensors."""
    image = torch.randn(2, n_channels, 40, 33)
    with torch.no_grad():
        expected = WRITTEN[family][1](state, image)
        logits = loaded.model.logits(image)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.family == family
    assert (loaded.n_channels, loaded.n_classes) == (n_channels, expected.shape[1])
    assert not loaded.model.training


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("family", "options", "architecture"), VARIANTS)
def test_every_family_gives_what_its_own_network_gives(family, options, architecture, suffix, tmp_path):
    state = WRITTEN[family][0](**options)
    loaded = load_network(save(state, tmp_path / f"weights{suffix}"))
    n_channels = options.get("n_channels", 1 if options.get("stages") is SLIM else 3)
    check(loaded, family, state, n_channels)
    assert loaded.architecture == architecture
    assert {tensor.dtype for tensor in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("bilinear", "width"), [(True, 4), (False, 5)])
def test_unet_is_inferred(bilinear, width, tmp_path):
    state = unet_state(BASE32, bilinear, width)
    model = load_network(save(state, tmp_path / "weights.pt")).model
    assert isinstance(model, UNet)
    assert (model.bilinear, model.base_width) == (bilinear, width)


def test_u2net_is_inferred(tmp_path):
    model = load_network(save(u2net_state(official, SLIM), tmp_path / "weights.pt")).model
    assert isinstance(model, U2Net)
    assert model.stages == SLIM


@pytest.mark.parametrize(("table", "architecture"), [(FULL, "u2net_full"), (LITE, "u2net_lite")])
@pytest.mark.parametrize("n_channels", [3, 1])
def test_published_widths_are_named(table, architecture, n_channels):
    with torch.device("meta"):
        weights = U2Net(1, table, n_channels).state_dict()
    fit = next(family for family in FAMILIES if family.name == "u2net").fit(weights)
    assert (fit.architecture, fit.n_channels, fit.n_classes) == (architecture, n_channels, 1)


# --- What is around the weights in a file


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_wrapped_weights(wrapper, tmp_path):
    state = unet_state(BASE32)
    checkpoint = {wrapper: state, "epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1, amp=True)}
    torch.save(checkpoint, tmp_path / "weights.pth")
    check(load_network(tmp_path / "weights.pth"), "unet-base32", state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_taken_off(prefix, tmp_path):
    state = u2net_state(official)
    path = save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "weights.pth")
    check(load_network(path), "u2net-official", state)


def test_a_weight_with_and_without_prefix_is_refused(tmp_path):
    state = unet_state(MILESIAL)
    path = save({**state, "module.outc.conv.bias": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 left over \(module\.outc\.conv\.bias\)"):
        load_network(path)
    path = save({**state, "_orig_mod.outc.conv.bias": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"expected each weight once, got outc\.conv\.bias twice"):
        load_network(path)


def test_mask_values_are_dropped(tmp_path):
    state = unet_state(MILESIAL)
    torch.save({**state, "mask_values": [0, 255]}, tmp_path / "weights.pth")
    check(load_network(tmp_path / "weights.pth"), "unet", state)


def test_file_from_before_pytorch_1_6(tmp_path):
    state = u2net_state(official)
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    check(load_network(tmp_path / "weights.pth"), "u2net-official", state)


def test_counters_of_batches_may_be_absent(tmp_path):
    state = u2net_state(reimplemented)
    path = save({key: tensor for key, tensor in state.items() if "num_batches" not in key}, tmp_path / "weights.pth")
    check(load_network(path), "u2net", state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(dtype, suffix, tmp_path):
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in unet_state(MILESIAL).items()
    }
    loaded = load_network(save(state, tmp_path / f"weights{suffix}"))
    check(loaded, "unet", {key: tensor.float() for key, tensor in state.items()})


def test_integer_weights_become_float32(tmp_path):
    state = unet_state(MILESIAL)
    state["outc.conv.weight"] = torch.randint(-3, 4, (2, 4, 1, 1), dtype=torch.int8)
    loaded = load_network(save(state, tmp_path / "weights.pth"))
    check(loaded, "unet", {key: tensor.float() for key, tensor in state.items()})


# --- ONNX


def session_mask(path, image):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


@pytest.mark.parametrize("name", [official, reimplemented])
@pytest.mark.parametrize("deepest_side_first", [False, True])
def test_onnx_gives_what_onnx_runtime_gives(name, deepest_side_first, tmp_path):
    model = u2net_onnx(u2net_state(name), name, deepest_side_first=deepest_side_first)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "weights.onnx")
    loaded = load_network(tmp_path / "weights.onnx")
    image = torch.randn(1, 3, 40, 33)
    expected = session_mask(tmp_path / "weights.onnx", image)
    assert expected.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), expected, rtol=0, atol=1e-5)
    assert loaded.family == ("u2net-official" if name is official else "u2net")
    assert (loaded.architecture, loaded.n_channels, loaded.n_classes) == ("u2net", 3, 1)


def test_onnx_of_other_widths_and_classes(tmp_path):
    onnx.save(
        u2net_onnx(u2net_state(official, SLIM, 2), official, n_channels=1, n_classes=2), tmp_path / "weights.onnx"
    )
    loaded = load_network(tmp_path / "weights.onnx")
    image = torch.randn(1, 1, 40, 33)
    with torch.no_grad():
        mask = loaded.model(image)
    torch.testing.assert_close(mask, session_mask(tmp_path / "weights.onnx", image), rtol=0, atol=1e-5)
    assert (loaded.n_channels, loaded.n_classes) == (1, 2)
    assert loaded.model.stages == SLIM


def pool_by_average(graph):
    next(node for node in graph.node if node.op_type == "MaxPool").op_type = "AveragePool"


def one_convolution_more(graph):
    like = next(node for node in graph.node if node.op_type == "Conv")
    graph.node.append(helper.make_node("Conv", [like.output[0], "side1.weight"], ["more"], name="one_more"))


def another_dilation(graph):
    conv = next(node for node in graph.node if node.op_type == "Conv")
    for attribute in conv.attribute:
        if attribute.name in ("dilations", "pads"):
            attribute.ints[:] = [2] * len(attribute.ints)


def nearest(graph):
    resize = next(node for node in graph.node if node.op_type == "Resize")
    next(attribute for attribute in resize.attribute if attribute.name == "mode").s = b"nearest"


def swapped_skip(graph):
    concat = next(node for node in graph.node if node.op_type == "Concat" and node.attribute[0].i == 1)
    concat.input[:] = concat.input[::-1]


def two_inputs(graph):
    graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, (1,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pool_by_average, "no MaxPool where"),
        (one_convolution_more, "1 more convolutions, the first is one_more"),
        (another_dilation, r"other padding, dilation, stride or groups where encode_modules\.0\.conv_in\.conv"),
        (nearest, "no Conv where"),
        (swapped_skip, "no Conv where"),
        (two_inputs, "2 inputs"),
    ],
)
def test_onnx_of_another_graph_is_told_apart(change, message, tmp_path):
    model = u2net_onnx(u2net_state(official), official)
    change(model.graph)
    onnx.save(model, tmp_path / "weights.onnx")
    with pytest.raises(NotOurNetworkError, match=rf"expected the graph of a U²-Net .*{message}.*foreign network"):
        load_network(tmp_path / "weights.onnx")


def test_onnx_of_something_else_is_told_apart(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 8, 8))
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [output])),
        tmp_path / "x.onnx",
    )
    with pytest.raises(NotOurNetworkError, match=r"no Conv where encode_modules\.0\.conv_in\.conv is"):
        load_network(tmp_path / "x.onnx")


def test_onnx_with_weights_in_other_files_is_a_foreign_network(tmp_path):
    model = u2net_onnx(u2net_state(official), official)
    onnx.save(model, tmp_path / "weights.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(NotOurNetworkError, match=r"inside the file, got some in other files"):
        load_network(tmp_path / "weights.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "cut short or damaged"),
        (lambda _whole: b"no protobuf at all", "cut short or damaged"),
        (lambda _whole: b"", "got an empty file"),
        (lambda _whole: helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), "without a graph"),
    ],
)
def test_damaged_onnx_is_refused(content, message, tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(content(u2net_onnx(u2net_state(official), official).SerializeToString()))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_network(path)
    assert not isinstance(raised.value, NotOurNetworkError)


def test_onnx_with_wrong_number_of_values_is_refused(tmp_path):
    model = u2net_onnx(u2net_state(official), official)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "side2.weight")
    tensor.raw_data = tensor.raw_data[:-4]
    onnx.save(model, tmp_path / "weights.onnx")
    with pytest.raises(CheckpointError, match=r"side2\.weight: expected \[1, 4, 3, 3\] numbers"):
        load_network(tmp_path / "weights.onnx")


@pytest.mark.network
def test_published_weights_give_what_the_published_graph_gives(published_u2netp):
    loaded = load_network(published_u2netp)
    assert (loaded.family, loaded.architecture) == ("u2net-official", "u2net_lite")
    image = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        mask = loaded.model(image)
    torch.testing.assert_close(mask, session_mask(published_u2netp, image), rtol=0, atol=1e-4)


# --- Weights that do not fit


@pytest.mark.parametrize(
    ("family", "drop", "message"),
    [
        ("unet", "inc.double_conv", r"10 missing \(inc\.double_conv\.0\.weight, .* and 7 more\)"),
        ("unet-base32", "out_conv.0.bias", r"1 missing \(out_conv\.0\.bias\)"),
        (
            "u2net-official",
            "stage3d.rebnconv2d.bn_s1.running_var",
            r"1 missing \(stage3d\.rebnconv2d\.bn_s1\.running_var\)",
        ),
        ("u2net-official", "side2.", r"2 missing \(side2\.weight, side2\.bias\)"),
        ("u2net", "out_conv.weight", r"1 missing \(out_conv\.weight\)"),
    ],
)
def test_missing_weights_are_named_as_in_the_file(family, drop, message, tmp_path):
    state = WRITTEN[family][0]()
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(drop)}
    with pytest.raises(CheckpointError, match=message):
        load_network(save(kept, tmp_path / "weights.pth"))


def test_left_over_weights_are_named_as_in_the_file(tmp_path):
    more = {f"stage7.conv{i}.weight": torch.zeros(1) for i in range(5)}
    path = save({**u2net_state(official), **more}, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"5 left over \(stage7\.conv0\.weight, .*stage7\.conv2\.weight and 2 more\)"
    ):
        load_network(path)


def test_weights_of_two_networks_are_left_over(tmp_path):
    path = save({**u2net_state(official), **unet_state(MILESIAL)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="left over"):
        load_network(path)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "stage2.rebnconv3.conv_s1.weight",
            (2, 2, 5, 5),
            r"stage2\.rebnconv3\.conv_s1\.weight: expected \(2, 2, 3, 3\), got \(2, 2, 5, 5\)",
        ),
        (
            "stage2.rebnconvin.conv_s1.weight",
            (4,),
            r"stage2\.rebnconvin\.conv_s1\.weight: expected 4 dimensions, got shape \(4,\)",
        ),
        ("stage2.rebnconvin.conv_s1.weight", (4, 9, 3, 3), r"encoder stage 2 expected 4 input channels, got 9"),
        (
            "stage2.rebnconvin.conv_s1.bias",
            (3,),
            r"stage2\.rebnconvin\.bn_s1\.running_mean: expected the shape of the bias before it, \(3,\)",
        ),
        ("stage1.rebnconvin.bn_s1.num_batches_tracked", (2,), r"num_batches_tracked: expected \(\), got \(2,\)"),
        ("outconv.weight", (0, 6, 1, 1), r"expected 1 or more each"),
    ],
)
def test_wrong_shapes_are_named_as_in_the_file(key, shape, message, tmp_path):
    path = save({**u2net_state(official), key: torch.zeros(shape)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    state = u2net_state(official)
    state["stage4.rebnconv2.bn_s1.running_var"][1] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinity in stage4\.rebnconv2\.bn_s1\.running_var:"):
        load_network(save(state, tmp_path / "weights.pth"))


def test_complex_weights_are_refused(tmp_path):
    state = unet_state(MILESIAL)
    state["outc.conv.bias"] = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(CheckpointError, match=r"outc\.conv\.bias: expected plain numbers, got torch\.complex64"):
        load_network(save(state, tmp_path / "weights.pth"))


def test_number_of_classes_must_be_the_files(tmp_path):
    path = save(unet_state(BASE32, n_classes=4), tmp_path / "weights.pth")
    assert load_network(path, classes=4).n_classes == 4
    with pytest.raises(CheckpointError, match=r"expected 2 classes, got 4 in out_conv\.0\.weight"):
        load_network(path, classes=2)


def test_another_network_is_refused(tmp_path):
    state = {}
    random_conv(state, "conv1", 3, 8, kernel=7)
    random_norm(state, "bn1", 8)
    random_conv(state, "layer1.0.conv1", 8, 8)
    path = save(state, tmp_path / "resnet.pth")
    families = r"U-Net \(inc, .* or U-Net \(in_conv, .* or U²-Net \(stage1 .* or U²-Net \(encode_modules"
    with pytest.raises(
        NotOurNetworkError, match=families + r".*got a file with conv1\.weight, bn1\.weight, bn1\.bias and 4 more"
    ):
        load_network(path)


# --- Files that are not weights


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_carries_code_is_refused_and_not_run(zipped, tmp_path):
    checkpoint = {**unet_state(MILESIAL), "extra": RunsCode(tmp_path / "was_run")}
    torch.save(checkpoint, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"expected weights only, got a pickle that calls \w+\.mkdir, which is not loaded"
    ):
        load_network(tmp_path / "weights.pth")
    assert not (tmp_path / "was_run").exists()


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"calls torch\.nn\.modules\.container\.Sequential.*torch\.load\("):
        load_network(tmp_path / "weights.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
    with pytest.raises(CheckpointError, match="got a TorchScript program"):
        load_network(tmp_path / "weights.pt")


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "old", ".safetensors"])
def test_a_file_that_is_cut_short_is_refused(kind, part, tmp_path):
    path = tmp_path / ("weights.safetensors" if kind == ".safetensors" else "weights.pth")
    if kind == "old":
        torch.save(unet_state(MILESIAL), path, _use_new_zipfile_serialization=False)
    else:
        save(unet_state(MILESIAL), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_network(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".onnx"])
def test_an_empty_file_is_refused(suffix, tmp_path):
    (tmp_path / f"weights{suffix}").touch()
    with pytest.raises(CheckpointError, match="got an empty file"):
        load_network(tmp_path / f"weights{suffix}")


@pytest.mark.parametrize("text", ["404: not found\n", "version https://git-lfs.github.com/spec/v1\n" * 9])
def test_a_text_file_is_refused(text, tmp_path):
    (tmp_path / "weights.pth").write_text(text)
    with pytest.raises(CheckpointError, match=r"expected a file written by torch\.save, got something else"):
        load_network(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "content",
    [b"PK\x05\x06" + bytes(18), pickle.dumps({"a": 1}), b"\x80\x02" + bytes(range(256))],
    ids=["zip", "pickle", "noise"],
)
def test_a_file_of_another_program_is_refused(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_network(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.engine", "weights.pth.tmp", "weights"])
def test_another_suffix_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"ends in \.pt, \.pth, .*\.safetensors, \.onnx or \.pt2"):
        load_network(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
def test_no_file_and_a_folder_are_refused(suffix, tmp_path):
    with pytest.raises(CheckpointError, match="got no such file"):
        load_network(str(tmp_path / f"weights{suffix}"))
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(CheckpointError, match="got a folder"):
        load_network(tmp_path / f"folder{suffix}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a state dict, got list"),
        ({}, "expected tensors by name, got none"),
        ({"epoch": 3}, r"got none \(epoch\): .*torch\.onnx\.export"),
        ({"model": {"a": 1}}, r"got none \(model\)"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path / "weights.pth")
