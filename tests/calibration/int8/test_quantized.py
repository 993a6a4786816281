"""Convolutions in INT8, and the search for what can be."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import nn

from calibration.int8 import search
from calibration.int8.quantized import QuantizedLayer
from calibration.int8.ranges import METHODS, Histograms
from calibration.int8.rounding import weight_scales
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from calibration.metrics.agreement import iou
from compile import options as compile_options
from compile.__main__ import main
from compile.networks.contract import Contract
from compile.plans.tensorrt_build import PlanOptions, build_plan
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram, FrameToInput
from compile.proof.verify import open_session
from pipeline.bundles.bundle import Bundle
from pipeline.errors import CompileError

CONTRACT = Contract("x", (64, 64))


@pytest.fixture
def frames(pictures):
    return pictures(4, 64, 64)


def searched(network, frames, **options):
    """A search that has seen the frames, and its recipe."""
    looking = Int8Search(network, (64, 64))
    before = FrameToInput(CONTRACT).eval()
    examples = []
    for frame in frames:
        x = before(torch.from_numpy(frame[None]))
        looking.observe(lambda x=x: examples.append(Example(x, looking.network.logits(x))))
    return looking.find(examples, "mse", **options)


def masks_of(network, frames, **options):
    with torch.inference_mode():
        return FrameProgram(network, CONTRACT, **options).eval()(torch.from_numpy(frames))[0].numpy()


def mean_iou(masks, others):
    return np.mean([iou(mask, other, "binary") for mask, other in zip(masks, others, strict=True)])


def test_a_convolution_in_int8_is_what_its_integers_say():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 9, 9)
    limit = float(x.abs().max())
    got = QuantizedLayer(conv, limit)(x)
    x_scale, w_scale = limit / 127, weight_scales(conv.weight.detach().flatten(1))
    integers = nn.functional.conv2d(
        (x / x_scale).round().double(),
        (conv.weight / w_scale.view(-1, 1, 1, 1)).round().clamp(-127, 127).double(),
        stride=2,
        padding=1,
    )
    expected = integers * x_scale * w_scale.view(1, -1, 1, 1).double() + conv.bias.view(1, -1, 1, 1)
    assert torch.allclose(got.double(), expected, atol=1e-5)
    assert (got - conv(x)).abs().max() < 0.1
    assert not torch.equal(got, conv(x))


def test_channels_out_of_int8_are_exact():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 3, 1)
    x = torch.rand(1, 4, 8, 8)
    x[:, 2] *= 1000
    with torch.no_grad():
        conv.weight[:, 2] *= 50
    plain, split = QuantizedLayer(conv, 1000.0), QuantizedLayer(conv, 1.0, exact=(2,))
    wrong, error = ((layer(x) - conv(x)).abs().max() for layer in (plain, split))
    assert wrong > 20 * error
    assert error < 0.02


def test_every_channel_but_one_may_leave():
    conv = nn.Conv2d(2, 3, 1)
    x = torch.rand(1, 2, 4, 4)
    assert torch.allclose(QuantizedLayer(conv, 1.0, exact=(1,))(x), conv(x), atol=0.02)


@pytest.mark.parametrize("kind", ["unet", "u2net"])
def test_the_program_in_int8_is_what_was_searched(kind, tiny_unet, tiny_u2net, frames):
    network = tiny_unet(1) if kind == "unet" else tiny_u2net(1)
    recipe = searched(network, frames, goal_iou=0.0)
    assert recipe.share > 0.5
    quantised = recipe.apply(network)
    emulated, expected = masks_of(quantised, frames), masks_of(network, frames)
    model = export_program(FrameProgram(quantised, CONTRACT))
    assert model.opset_import[0].version == 19
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == len(recipe.layers)
    weights = [
        tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == len(recipe.layers)
    (masks,) = open_session(model.SerializeToString(), "x").run(["masks"], {"frames": frames})
    # A value halfway between two levels may go either way, as the processor adds, and in so small a network moves all of a frame.
    assert np.median(np.abs(masks.astype(int) - emulated).mean((1, 2))) < 1
    assert mean_iou(masks, expected) > 0.85


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_int8_programs_of_both_networks_become_plans(tiny_unet, tiny_u2net, frames):
    for network in (tiny_unet(1), tiny_unet(1, bilinear=True), tiny_u2net(1)):
        recipe = searched(network, frames, goal_iou=0.0)
        quantised = recipe.apply(network, torch.float16)
        program = export_program(FrameProgram(quantised, CONTRACT, half=True)).SerializeToString()
        assert build_plan(program, PlanOptions("tensorrt-rtx", (86, 120))).content


def test_first_and_last_layers_and_what_is_no_convolution_stay(tiny_unet, frames):
    network = tiny_unet(1)
    recipe = searched(network, frames)
    assert recipe.left["inc.double_conv.0"] == "the first layer"
    assert recipe.left["outc.conv"] == "a last layer"
    transposed = {name for name, layer in network.named_modules() if isinstance(layer, nn.ConvTranspose2d)}
    assert transposed
    assert not transposed & set(recipe.layers)


class Chain(nn.Module):
    """Convolutions in a row, with a last one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 1)
        )  # fmt: skip

    def logits(self, x):
        return self.layers(x)


def drowned():
    """A network with a channel whose values and weights are far above all others."""
    network = Chain().eval()
    with torch.no_grad():
        network.layers[2].weight[5] *= 300
        network.layers[4].weight[:, 5] *= 300
        network.layers[6].weight /= 3000
    return network


def test_an_outlier_channel_is_found_and_taken_out(frames):
    network = drowned()
    recipe = searched(network, frames, goal_iou=0.0)
    assert recipe.layers["layers.4"].exact == (5,)
    assert recipe.layers["layers.2"].exact == ()
    assert recipe.share == pytest.approx(
        sum(recipe.work[name] for name in recipe.layers) - recipe.work["layers.4"] / 16
    )
    quantised = recipe.apply(network, torch.float16).get_submodule("layers.4")
    assert quantised.exact == (5,)
    assert quantised.weight.shape == (16, 15, 3, 3)


def test_what_fp16_would_spoil_is_fp32_in_an_int8_program_too(frames):
    network = drowned()
    recipe = searched(network, frames, goal_iou=0.0)
    x = torch.rand(1, 16, 9, 9, generator=torch.Generator().manual_seed(0)).half()
    for single, dtype in (((), torch.float16), (("layers.2",), torch.float32)):
        y = recipe.apply(network, torch.float16, single).get_submodule("layers.2")(x)
        assert y.dtype is dtype
        assert torch.equal(y, y.half().float()) is (dtype is torch.float16)  # more than FP16's 11 bits


def test_layers_that_do_most_damage_are_left_within_a_limit(tiny_unet, frames):
    network = tiny_unet(1)
    without = searched(network, frames, goal_iou=0.0)
    able = 1.0 - sum(without.work[name] for name in without.left)
    some = searched(network, frames, goal_iou=1.1, shares=(0.8,))
    assert set(some.left) > set(without.left)
    assert some.share >= 0.8 * able
    assert some.result.noise < without.result.noise
    assert all(
        re.fullmatch(r"\d+\.\d % of the damage for its work", some.left[name])
        for name in set(some.left) - set(without.left)
    )
    assert some.steps[-1].share <= without.steps[-1].share
    assert sum(without.damage.values()) == pytest.approx(1.0)


def test_less_is_int8_only_where_that_is_worth_it(tiny_unet, frames, monkeypatch):
    network = tiny_unet(1)
    shares = (0.97, 0.7, 0.3)
    monkeypatch.setattr(search, "_WORTH_A_LOWER_SHARE", 0.0)
    never = searched(network, frames, goal_iou=1.1, shares=shares)
    able = 1.0 - sum(work for name, work in never.work.items() if never.left.get(name, "").endswith("layer"))
    assert never.share >= 0.97 * able
    more, most = never.steps[-2:]
    assert 0.97 * able > more.share >= 0.7 * able > most.share >= 0.3 * able
    assert most.result.iou > max(never.result.iou, more.result.iou)
    reached = searched(network, frames, goal_iou=most.result.iou, shares=shares)
    assert (reached.share, reached.result) == (most.share, most.result)
    monkeypatch.setattr(search, "_WORTH_A_LOWER_SHARE", 1.0)  # anything that is better at all
    better = searched(network, frames, goal_iou=1.1, shares=shares)
    assert better.share in (more.share, most.share)
    assert better.result.noise < never.result.noise


def test_channels_at_one_reach_save_what_one_scale_would_lose(frames):
    network = Chain().eval()
    with torch.no_grad():  # what the first makes large the second takes small
        by = torch.logspace(-2, 2, 16)
        network.layers[2].weight *= by.view(-1, 1, 1, 1)
        network.layers[2].bias *= by
        network.layers[4].weight /= by.view(1, -1, 1, 1)
    recipe = searched(network, frames, goal_iou=0.0)
    noise = {step.what: step.result.noise for step in recipe.steps}
    assert noise["cross-layer equalization, strength 1"] < 0.3 * noise["cross-layer equalization, strength 0"]
    assert recipe.result.noise == min(noise.values())


def test_weights_that_are_no_numbers_are_told(tiny_unet, frames):
    network = tiny_unet(1)
    with torch.no_grad():
        network.down1.maxpool_conv[1].double_conv[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        CompileError, match=r"expected finite values, got others before down1.*: its weights are damaged"
    ):
        searched(network, frames)


def test_the_command_writes_an_int8_bundle(tmp_path, tiny_unet, pictures, capsys):
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    arguments = [
        "-w",
        str(tmp_path / "net.pth"),
        "--imgsz",
        "64",
        "--precision",
        "int8",
        "--min-iou",
        "0.8",
        "--strict",
    ]
    for name, count, seed in (("calib", 6, 1), ("verify", 3, 0)):
        (tmp_path / name).mkdir()
        for index, picture in enumerate(pictures(count, 120, 160, seed)):
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), picture)
    arguments += ["--calib", str(tmp_path / "calib"), "--calib-method", "max"]
    arguments += ["--verify", str(tmp_path / "verify"), "--verify-count", "3"]
    assert main([*arguments, "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.read(tmp_path / "bundle").manifest
    assert manifest.precision == "int8"
    assert manifest.layers["outc.conv"] == "fp16"
    calibration = manifest.calibration
    assert (calibration["frames"], calibration["method"]) == (6, "max")
    assert len(calibration["sha256"]) == 64
    assert calibration["share_of_work"] > 0.5
    said = capsys.readouterr().out
    assert f"INT8 calibrated on 6 frames of {tmp_path / 'calib'}" in said
    assert calibration["left"]["inc.double_conv.0"] == "the first layer"
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["calibration"] == calibration


def test_int8_that_does_not_pass_steps_down_and_says_so(tmp_path, tiny_unet, capsys, monkeypatch):
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    arguments = ["-w", str(tmp_path / "net.pth"), "--imgsz", "64", "--precision", "int8", "--verify-count", "2"]
    arguments += ["--calib", "test://?size=96x64&frames=2"]
    # Ranges that are far too small: INT8 with nothing in it.
    monkeypatch.setattr(Histograms, "range", lambda *_: 1e-3)
    assert main([*arguments, "--strict", "-o", str(tmp_path / "strict")]) == 2
    assert re.search("what was compiled does not agree", capsys.readouterr().err)
    assert not (tmp_path / "strict").exists()
    assert main([*arguments, "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.read(tmp_path / "bundle").manifest
    assert manifest.precision in ("fp16", "fp32")
    assert manifest.calibration == {}
    assert "not int8: what was compiled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "--precision int8: expected --calib SOURCE, pictures or a video .*, got none"),
        (["--calib", "x"], "--calib: expected --precision int8 or auto beside it, got fp32"),
        (["--strict"], "--strict: expected --precision int8 beside it, got fp32"),
        (["--precision", "int8", "--calib", "none.mp4"], r"none\.mp4: no such file"),
        (["--precision", "int8", "--calib", "x", "--calib-method", "best"], "--calib-method: invalid choice: 'best'"),
        (["--precision", "int8", "--calib", "x", "--calib-size", "0"], "--calib-size: expected a whole number from 1"),
    ],
)
def test_wrong_options(tmp_path, tiny_unet, capsys, options, message):
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    assert main(["-w", str(tmp_path / "net.pth"), "--imgsz", "32", "-o", str(tmp_path / "bundle"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert not (tmp_path / "bundle").exists()


def test_the_methods_of_the_command_are_those_there_are():
    assert compile_options.METHODS == METHODS
