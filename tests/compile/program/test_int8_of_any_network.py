"""INT8 and FP16 for kinds of network that are not ours: transformers, dense, mobile and gated ones, trained for seconds."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import nn

from calibration.inference_form import fold_norms
from calibration.int8.equalise import ChannelGraph, equalise
from calibration.int8.quantized import QuantizedLayer
from calibration.int8.search import GROUPED, ONE_PLACE, Int8Search
from calibration.int8.sensitivity import Example
from compile.networks.contract import Contract
from compile.networks.exported_program import with_layers
from compile.plans.tensorrt_build import PlanOptions, build_plan
from compile.program.cpu_int8 import exact_layers, quantise, rounded_network
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from compile.proof.verify import open_session
from pipeline.frames.frame import Frame

SIZE = 32
CONTRACT = Contract("x", (SIZE, SIZE), filter="bilinear")


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        count, places, width = x.shape
        q, k, v = self.qkv(x).view(count, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(count, places, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.before, self.attention, self.behind = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.behind(x))


class Transformer(nn.Module):
    """Patches, two blocks, and a head that is enlarged."""

    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        y = self.patches(x)
        count, width, height, side = y.shape
        t = self.norm(self.blocks(y.flatten(2).transpose(1, 2)))
        y = self.head(t.transpose(1, 2).reshape(count, width, height, side))
        return F.interpolate(y, x.shape[2:], mode="bilinear")


class Dense(nn.Module):
    """Normalizations in front of convolutions, of all that came before."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16 + 8 * i) for i in range(3)])
        self.steps = nn.ModuleList([nn.Conv2d(16 + 8 * i, 8, 3, 1, 1, bias=False) for i in range(3)])
        self.norm, self.head = nn.BatchNorm2d(40), nn.Conv2d(40, 1, 1)

    def forward(self, x):
        y = self.stem(x)
        for norm, step in zip(self.norms, self.steps, strict=True):
            y = torch.cat((y, step(norm(y).relu())), 1)
        return F.interpolate(self.head(self.norm(y).relu()), x.shape[2:], mode="bilinear")


class Separable(nn.Module):
    """Inverted bottlenecks with ReLU6, a sum, and a gate of squeeze-and-excitation."""

    def __init__(self, gated=False):
        super().__init__()
        self.stem = self.unit(3, 16, 3, 2)
        self.wide, self.deep, self.narrow = self.unit(16, 64), self.unit(64, 64, 3, groups=64), nn.Conv2d(64, 16, 1)
        self.gate = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64), nn.Sigmoid()) if gated else None
        self.wide_2, self.narrow_2 = self.unit(16, 64, 3), nn.Conv2d(64, 16, 1)
        self.head = nn.Conv2d(16, 1, 1)

    @staticmethod
    def unit(inputs, outputs, kernel=1, stride=1, groups=1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

    def forward(self, x):
        y = self.stem(x)
        z = self.deep(self.wide(y))
        if self.gate is not None:
            z = z * self.gate(z.mean((2, 3)))[:, :, None, None]
        y = y + self.narrow(z)
        y = y + self.narrow_2(self.wide_2(y))
        return F.interpolate(self.head(y), x.shape[2:], mode="bilinear")


KINDS = {"transformer": Transformer, "dense": Dense, "separable": Separable, "gated": lambda: Separable(gated=True)}


def as_input(frames):
    x = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(x, (SIZE, SIZE), mode="bilinear")


@pytest.fixture(scope="session")
def trained(pictures):
    """``trained(kind)``: a module that finds where red is more than green."""
    x = as_input(pictures(64, SIZE, SIZE, seed=5))
    truth = (F.avg_pool2d(x[:, :1] - x[:, 1:2], 5, 1, 2) > 0).float()

    def train(kind):
        torch.manual_seed(0)
        network = KINDS[kind]().train()
        optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
        with torch.enable_grad():
            for step in range(120):
                some = torch.arange(16) + 16 * (step % 4)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(x[some]), truth[some]).backward()
                optimizer.step()
        return network.eval()

    made = functools.cache(train)
    return lambda kind: copy.deepcopy(made(kind))


def one_form(network):
    x = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},))
    return with_layers(program.module(check_guards=False), "a network")


def searched(network, frames, **options):
    search = Int8Search(network, (SIZE, SIZE))
    examples = []
    for x in as_input(frames).split(1):
        search.observe(lambda x=x: examples.append(Example(x, search.network.logits(x))))
    return search.find(examples, "mse", **options)


def masks_of(program, frames):
    with torch.inference_mode():
        return program.eval()(torch.from_numpy(frames))[0].numpy()


def mean_iou(masks, others):
    pairs = [(one > 127, other > 127) for one, other in zip(masks, others, strict=True)]
    return np.mean([(one & other).sum() / max(1, (one | other).sum()) for one, other in pairs])


@pytest.fixture
def frames(pictures):
    """To calibrate on, and to judge on."""
    return pictures(16, 48, 64, seed=1), pictures(12, 48, 64, seed=2)


LEFT = {
    "transformer": {"patches": "the first layer", "head": "a last layer"},
    "dense": {"stem": "the first layer", "head": "a last layer"},
    "separable": {"stem.0": "the first layer", "head": "a last layer", "deep.0": GROUPED},
    "gated": {
        "stem.0": "the first layer",
        "head": "a last layer",
        "deep.0": GROUPED,
        "gate.0": ONE_PLACE,
        "gate.2": ONE_PLACE,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_stay_and_the_graph_says_what_is_left(kind, trained, frames):
    network = one_form(trained(kind))
    calibration, judged = frames
    recipe = searched(network, calibration, goal_iou=0.0)
    assert recipe.left == LEFT[kind]
    expected = masks_of(FrameProgram(network, CONTRACT), judged)
    assert 0.2 < (expected > 127).mean() < 0.8
    program = FrameProgram(recipe.apply(network, torch.float16), CONTRACT, half=True)
    model = export_program(program)
    (masks,) = open_session(model.SerializeToString(), "x").run(["masks"], {"frames": judged})
    assert mean_iou(masks, expected) >= 0.98
    assert mean_iou(masks_of(FrameProgram(copy.deepcopy(network), CONTRACT, half=True), judged), expected) >= 0.99


def test_linear_layers_are_quantised_by_output_channel(trained, frames):
    network = one_form(trained("transformer"))
    recipe = searched(network, frames[0], goal_iou=0.0)
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 8
    assert set(recipe.layers) == set(linear)
    model = export_program(FrameProgram(recipe.apply(network, torch.float16), CONTRACT, half=True))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    quantised = 0
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in makers:
            continue
        value, weight = (makers[name] for name in node.input)
        weight = makers[weight.input[0]] if weight.op_type == "Transpose" else weight
        if weight.op_type != "DequantizeLinear":
            continue
        quantised += 1
        assert (value.op_type, makers[value.input[0]].op_type) == ("DequantizeLinear", "QuantizeLinear")
        stored = tensors[weight.input[0]]
        assert stored.data_type == TensorProto.INT8
        assert tensors[weight.input[1]].dims == [stored.dims[0]]  # a scale for each output
    assert quantised == len(linear)
    # Between activations, and in normalizations, nothing is rounded.
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == len(linear)


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_becomes_a_plan(kind, trained, frames):
    network = one_form(trained(kind))
    quantised = searched(network, frames[0][:4], goal_iou=0.0).apply(network, torch.float16)
    program = export_program(FrameProgram(quantised, CONTRACT, half=True)).SerializeToString()
    assert build_plan(program, PlanOptions("tensorrt-rtx", (86, 120))).content


def test_linear_layers_are_int8_on_a_cpu_too(trained, frames):
    network = one_form(trained("transformer"))
    calibration, judged = frames
    recipe = searched(network, calibration, goal_iou=0.0)
    rounded = rounded_network(network, recipe)
    program = export_program(FrameProgram(copy.deepcopy(rounded), CONTRACT))
    some = [Frame(image, index, float(index), "blobs", str(index)) for index, image in enumerate(calibration)]
    model, share = quantise(program, rounded, exact_layers(recipe), some, "mse")
    assert share > 0.9
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    multiplied = [node for node in model.graph.node if node.op_type == "MatMul"]
    both = [node for node in multiplied if {makers.get(name) for name in node.input} == {"DequantizeLinear"}]
    assert len(both) == len([name for name in recipe.layers if name not in exact_layers(recipe)]) >= 6
    (masks,) = open_session(model.SerializeToString(), "x").run(["masks"], {"frames": judged})
    assert mean_iou(masks, masks_of(FrameProgram(network, CONTRACT), judged)) >= 0.97


def test_a_linear_layer_in_int8_is_what_its_integers_say():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 5), torch.randn(2, 7, 8)
    limit = float(x.abs().max())
    quantised = QuantizedLayer(layer, limit, exact=(3,))
    rest = [0, 1, 2, 4, 5, 6, 7]
    integers = (x[..., rest] / (limit / 127)).round() @ quantised.weight.float().T
    expected = integers * limit / 127 * quantised.weight_scale + x[..., 3:4] @ layer.weight[:, 3:4].T + layer.bias
    torch.testing.assert_close(quantised(x), expected)
    assert quantised.input_error(x)[..., 3].abs().max() == 0
    assert 0 < quantised.input_error(x).abs().max() <= limit / 127


# Channels at one reach, through all that stands between layers.


@pytest.mark.parametrize(("kind", "moved"), [("transformer", 4), ("dense", 3), ("separable", 3), ("gated", 3)])
def test_the_function_stays_where_channels_are_brought_to_one_reach(kind, moved, trained, frames):
    network = one_form(trained(kind))
    search = Int8Search(network, (SIZE, SIZE))
    x = as_input(frames[0])
    for one in x.split(1):
        search.observe(lambda one=one: search.network.logits(one))
    factors = search._factors(1.0)
    changed = copy.deepcopy(network)
    equalise(changed, factors)
    with torch.inference_mode():
        torch.testing.assert_close(changed.logits(x), network.logits(x), rtol=1e-3, atol=1e-3)
    read_otherwise = [
        name for name in search._layers if name in factors and factors[name].inputs.std(correction=0) > 0.01
    ]
    assert len(read_otherwise) >= moved


def test_clipped_channels_move_only_below_the_clip():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Conv2d(8, 1, 1)).eval()
    with torch.no_grad():
        network[0].weight *= torch.logspace(-2, 1.5, 8).view(-1, 1, 1, 1)
    graph = ChannelGraph(one_form(network), (1, 3, SIZE, SIZE))
    assert graph.clipped_layers == {"0", "2"}
    x = torch.rand(4, 3, SIZE, SIZE)
    with torch.inference_mode():
        first = network[0](x)
    peak, reach = first.amax((0, 2, 3)), first.clamp(0, 6).amax((0, 2, 3))
    factors = graph.factors({"2": reach}, 1.0, {"0": peak})
    by = factors["0"].outputs
    assert torch.equal(by[peak > 6], torch.ones(int((peak > 6).sum())))
    assert (peak > 6).any()
    assert (by[(peak > 0) & (peak < 5)] > 1).all()
    assert (by * peak)[peak < 5].max() <= 6
    assert torch.equal(by, factors["2"].inputs)
    without = graph.factors({"2": reach}, 1.0)
    assert torch.equal(without["0"].outputs, torch.ones(8))


# Normalizations of modules as they were written.


def test_norms_are_folded_only_where_they_follow_a_convolution(trained):
    x = torch.rand(2, 3, SIZE, SIZE)
    for kind, folded in (("dense", 0), ("separable", 4)):
        network = trained(kind)
        with torch.inference_mode():
            expected = network(x)
            count = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
            torch.testing.assert_close(fold_norms(network)(x), expected, rtol=1e-4, atol=1e-4)
        assert count - sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == folded


def test_a_norm_of_what_others_read_too_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    network = Shared().eval()
    network.norm.running_mean += 1
    x = torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        expected = network(x)
        assert torch.equal(fold_norms(network)(x), expected)
    assert isinstance(network.norm, nn.BatchNorm2d)
