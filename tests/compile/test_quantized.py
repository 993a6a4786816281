"""Convolutions in INT8, and the search for what can be."""

import json
import re

import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import nn

from calibration.agreement import iou
from calibration.ranges import METHODS, Histogram
from compile import options as compile_options
from compile.__main__ import main
from compile.contract import Contract
from compile.int8_layers import Int8Search
from compile.onnx_export import export_program
from compile.program import FrameProgram
from compile.quantized import QuantizedConv
from compile.tensorrt_build import BuildOptions, build_plan
from compile.verify import open_session
from pipeline.bundle import Bundle

CONTRACT = Contract("x", (64, 64))


@pytest.fixture
def frames(pictures):
    return pictures(4, 64, 64)


def searched(network, frames, **options):
    """A search that has seen the frames, its plan, and the masks of FP32."""
    search = Int8Search(network)
    program = FrameProgram(search.network, CONTRACT).eval()
    run = lambda: program(torch.from_numpy(frames))  # noqa: E731
    with torch.inference_mode():
        expected = run().numpy()
        search.observe(run)

        def agreement(quantised):
            masks = FrameProgram(quantised, CONTRACT).eval()(torch.from_numpy(frames)).numpy()
            return float(np.mean([iou(mask, other, "binary") for mask, other in zip(masks, expected, strict=True)]))

        return search, search.find(run, agreement, "mse", **options), expected


def test_a_convolution_in_int8_is_what_its_integers_say():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 9, 9)
    limit = float(x.abs().max())
    got = QuantizedConv(conv, limit)(x)
    x_scale, w_scale = limit / 127, conv.weight.abs().amax((1, 2, 3)) / 127
    integers = nn.functional.conv2d(
        (x / x_scale).round().double(), (conv.weight / w_scale.view(-1, 1, 1, 1)).round().double(), stride=2, padding=1
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
    plain, split = QuantizedConv(conv, 1000.0), QuantizedConv(conv, 1.0, exact=(2,))
    wrong, error = ((layer(x) - conv(x)).abs().max() for layer in (plain, split))
    assert wrong > 20 * error
    assert error < 0.02


def test_every_channel_but_one_may_leave():
    conv = nn.Conv2d(2, 3, 1)
    x = torch.rand(1, 2, 4, 4)
    assert torch.allclose(QuantizedConv(conv, 1.0, exact=(1,))(x), conv(x), atol=0.02)


@pytest.mark.parametrize("kind", ["unet", "u2net"])
def test_the_program_in_int8_is_what_was_searched(kind, tiny_unet, tiny_u2net, frames):
    network = tiny_unet(1) if kind == "unet" else tiny_u2net(1)
    search, plan, expected = searched(network, frames)
    assert plan.share > 0.5
    assert plan.iou > 0.9
    quantised = search.quantised(plan.ranges, plan.exact)
    exact = FrameProgram(quantised, CONTRACT).eval()
    with torch.inference_mode():
        emulated = exact(torch.from_numpy(frames)).numpy()
    model = export_program(FrameProgram(quantised, CONTRACT))
    assert model.opset_import[0].version == 19
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == len(plan.ranges)
    weights = [
        tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == len(plan.ranges)
    (masks,) = open_session(model.SerializeToString(), "x").run(None, {"frames": frames})
    ious = [iou(mask, other, "binary") for mask, other in zip(masks, emulated, strict=True)]
    assert np.mean(ious) > 0.98  # a value halfway between two levels may go either way
    assert np.mean([iou(mask, other, "binary") for mask, other in zip(masks, expected, strict=True)]) > 0.85


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_int8_programs_of_both_networks_become_plans(tiny_unet, tiny_u2net, frames):
    for network in (tiny_unet(1), tiny_unet(1, bilinear=True), tiny_u2net(1)):
        search, plan, _ = searched(network, frames)
        exact = {next(iter(plan.ranges)): (0,)}
        quantised = search.quantised(plan.ranges, {**plan.exact, **exact}, torch.float16)
        program = export_program(FrameProgram(quantised, CONTRACT, half=True)).SerializeToString()
        assert build_plan(program, BuildOptions("tensorrt-rtx", (86, 120))).content


def test_first_and_last_layers_and_what_is_no_convolution_stay(tiny_unet, frames):
    search, plan, _ = searched(tiny_unet(1), frames)
    assert plan.left["inc.double_conv.0"] == "the first layer"
    assert plan.left["outc.conv"] == "a last layer"
    transposed = {name for name, layer in search.network.named_modules() if isinstance(layer, nn.ConvTranspose2d)}
    assert transposed
    assert not transposed & set(plan.ranges)


def test_an_outlier_channel_is_found_and_taken_out():
    torch.manual_seed(0)
    network = nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 1, 1),
        )
    ).eval()
    with torch.no_grad():  # one channel that takes the whole range, and says little
        network[2].weight[5] *= 3000
        network[4].weight[:, 5] /= 1000
    x = torch.rand(1, 3, 24, 24)
    search = Int8Search(network)
    with torch.inference_mode():
        expected = network(x)
        search.observe(lambda: search.network(x))

        def agreement(quantised):
            return 1 - float((quantised(x) - expected).square().mean().sqrt() / expected.std())

        plan = search.find(lambda: search.network(x), agreement, "max", goal_iou=0.9)
        unrepaired = agreement(search.quantised({**plan.ranges, "4": 3000.0}, {}))
    assert max(plan.noise, key=plan.noise.get) == "4"
    assert 5 in plan.exact["4"]
    assert plan.ranges["4"] < 10
    assert plan.iou >= 0.9
    assert unrepaired < 0.7


def test_the_command_writes_an_int8_bundle(tmp_path, tiny_unet, capsys):
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
    arguments += ["--calib", "test://?size=96x64&frames=6&step=11", "--calib-method", "max", "--verify-count", "3"]
    assert main([*arguments, "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.read(tmp_path / "bundle").manifest
    assert manifest.precision == "int8"
    assert manifest.layers["outc.conv"] == "fp16"
    calibration = manifest.calibration
    assert (calibration["frames"], calibration["method"]) == (6, "max")
    assert len(calibration["sha256"]) == 64
    assert calibration["share_of_work"] > 0.5
    said = capsys.readouterr().out
    assert "INT8 from 6 frames of test://" in said
    assert "inc.double_conv.0 stays FP16: the first layer" in said
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["calibration"] == calibration


def test_int8_that_does_not_pass_steps_down_and_says_so(tmp_path, tiny_unet, capsys, monkeypatch):
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    arguments = ["-w", str(tmp_path / "net.pth"), "--imgsz", "64", "--precision", "int8", "--verify-count", "2"]
    arguments += ["--calib", "test://?size=96x64&frames=2"]
    # Ranges that are far too small: INT8 with nothing in it.
    monkeypatch.setattr(Histogram, "range", lambda *_: 1e-3)
    assert main([*arguments, "--strict", "-o", str(tmp_path / "strict")]) == 2
    assert re.search("what was compiled (agrees with|gives the same value)", capsys.readouterr().err)
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
        (["--calib", "x"], "--calib, --strict: expected --precision int8 beside them, got fp32"),
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
