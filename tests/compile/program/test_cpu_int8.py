"""INT8 for CPUs: unsigned values, outputs rounded too, masks that stay; and never taken for TensorRT's."""

import cv2
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from calibration.int8.ranges import Histograms
from calibration.int8.recipe import Int8Recipe
from calibration.int8.search import Int8Search
from calibration.int8.sensitivity import Example
from compile import timing
from compile.__main__ import main
from compile.program.cpu_int8 import exact_layers, rounded_network
from pipeline.bundles.bundle import Bundle


@pytest.fixture
def compiled(tmp_path, tiny_unet, pictures, monkeypatch, capsys):
    """``compiled(*arguments)``: status, what was said, the bundle or None, of a small U-Net for CPUs."""
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(pictures(16, 64, 96)):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index:02d}.png"), picture)

    def run(*arguments):
        status = main(
            [
                *(
                    "-w",
                    str(tmp_path / "net.pth"),
                    "--imgsz",
                    "64",
                    "-o",
                    str(tmp_path / "bundle"),
                    "--target",
                    "onnxruntime",
                ),
                *("--verify", str(tmp_path / "pictures"), "--verify-count", "4", *arguments),
            ]
        )
        said = capsys.readouterr()
        made = (tmp_path / "bundle").exists()
        return status, said.out + said.err, Bundle.read(tmp_path / "bundle") if made else None

    return run


@pytest.fixture
def int8(compiled, tmp_path):
    status, said, bundle = compiled(
        "--precision", "int8", "--strict", "--min-iou", "0.9", "--calib", str(tmp_path / "pictures")
    )
    assert status == 0, said
    return said, bundle


def test_convolutions_take_and_give_eight_bits_without_a_sign(int8, tmp_path):
    said, bundle = int8
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.for_cpu
    assert "INT8 for CPUs from 16 frames" in said
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(bundle.program_path), options, providers=["CPUExecutionProvider"])
    optimised = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    exact = bundle.manifest.layers
    assert optimised.count("QLinearConv") >= 10
    # Whatever is left in FP32 was meant to be: no convolution gives FP32 because its output was not rounded.
    assert optimised.count("Conv") + optimised.count("FusedConv") <= len(exact)
    zeros = [
        onnx.numpy_helper.to_array(item)
        for item in onnx.load(bundle.program_path).graph.initializer
        if item.data_type == TensorProto.UINT8
    ]
    assert [int(zero) for zero in zeros if zero.ndim == 0 and zero not in (0, 127, 128)] == []
    assert any(zero.ndim == 0 and zero == 0 for zero in zeros)


def test_masks_agree_and_the_manifest_tells_what_it_was_made_from(int8):
    _, bundle = int8
    manifest = bundle.manifest
    assert manifest.verification["iou_mean"] >= 0.9
    assert manifest.calibration["graph"] == "cpu"
    assert manifest.calibration["frames"] == 16
    assert 0.8 < manifest.calibration["share_of_weights"] < 1.0  # of all layers, transposed ones too, which stay
    assert set(manifest.layers.values()) == {"fp32"}


def test_no_plan_is_built_of_it(int8, tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "bundle"), "--target", "tensorrt-rtx", "--sm", "86"]) == 2
    said = capsys.readouterr().err
    assert (
        "expected a program for a GPU, got INT8 for CPUs: compile the network itself with --target tensorrt-rtx" in said
    )


def test_inspect_shows_it(int8, tmp_path, run):
    status, said, _ = run(tmp_path / "bundle")
    assert status == 0
    assert "int8" in said


@pytest.mark.parametrize(("times_ms", "taken"), [([4.0, 10.0], "int8"), ([11.0, 10.0], "fp32")])
def test_it_is_taken_only_where_it_is_faster(compiled, tmp_path, monkeypatch, times_ms, taken):
    monkeypatch.setattr(timing, "_times_ms", lambda *_: times_ms)
    status, said, bundle = compiled("--precision", "int8", "--min-iou", "0.9", "--calib", str(tmp_path / "pictures"))
    assert status == 0
    assert bundle.manifest.precision == taken
    assert f"the fastest here that passes is {taken}" in said
    assert "fp16" not in said  # which a CPU computes in FP32


def recipe_of(network):
    search = Int8Search(network, (64, 64))
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    examples = []
    search.observe(lambda: examples.append(Example(x, search.network.logits(x))))
    return search.find(examples, "mse")


def test_the_rounded_network_computes_what_the_trained_one_does(tiny_unet):
    network = tiny_unet(1)
    recipe = recipe_of(network)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        trained, rounded = network.logits(x), rounded_network(network, recipe).logits(x)
    assert not torch.equal(trained, rounded)
    assert (trained - rounded).std() < 0.2 * trained.std()
    name, layer = next(iter(recipe.layers.items()))
    weight = rounded_network(network, recipe).get_submodule(name).weight
    if not layer.exact:
        levels = weight.flatten(1) / layer.scales.view(-1, 1)
        assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_layers_with_channels_out_of_int8_stay_whole(tiny_unet):
    network = tiny_unet(1)
    recipe = recipe_of(network)
    name = next(iter(recipe.layers))
    layers = dict(recipe.layers)
    layers[name] = type(layers[name])(
        **{**{f: getattr(layers[name], f) for f in layers[name].__dataclass_fields__}, "exact": (1,)}
    )
    split = Int8Recipe(
        {}, layers, {"a": "the first layer", "b": "a last layer", "c": "3.0 % of the damage"}, recipe.work
    )
    found = {other for other, layer in recipe.layers.items() if layer.exact}
    assert exact_layers(split) == {"a", "b", name} | found
    same = rounded_network(network, split).get_submodule(name).weight
    assert torch.equal(same, rounded_network(network, Int8Recipe({}, {}, {}, {})).get_submodule(name).weight)


def test_unsigned_ranges_use_twice_the_steps():
    values = torch.rand(1, 1, 1, 20_000) ** 4
    histogram = Histograms()
    histogram.add(values)
    signed, unsigned = histogram.range("mse"), histogram.range("mse", levels=255)
    assert signed <= unsigned <= float(values.max())
    # Twice the steps clip less, for a step costs less.
    errors = [
        float((values - (values / limit * n).round().clamp(max=n) * limit / n).square().mean())
        for limit, n in ((signed, 127), (unsigned, 255))
    ]
    assert errors[1] < 0.35 * errors[0]


def test_the_largest_value_counts_though_it_is_not_in_the_sample():
    histogram = Histograms()
    histogram.add(torch.full((1, 1, 1, 100), 0.5), torch.tensor([2.0]))
    assert histogram.range("max") == 2.0
